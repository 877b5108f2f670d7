"""linear: y = x W^T + b, for one or several W that share their input (a fused linear returns a tuple)."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ..errors import SpecError
from .quantize import Scheme, dequantized, requantized
from .spec import Abstract, Dim, Spec, expect, spec, wide
from .tolerance import Tolerance, elementwise
from .weights import Tensor, Weight

CODE_STEP = {"int8": 1 / 127, "float8_e4m3fn": 1 / 16}
"""How far two neighbouring codes are apart, against the largest."""
FLIPPED_CODES = 8


@spec
class Linear(Spec):
    """`ops.linear(spec, x [tokens, input], weight, batch) -> [tokens, output]`, or a tuple of them.

    scheme: how the weight is quantized (None: stored in `dtype`), and with it x on the fly: a part of such a weight is a
    `Quantized`. reduce: the input axis is sharded, so sum over it.
    """

    op = "linear"
    input: Dim
    outputs: tuple[Dim, ...]
    dtype: str
    out_dtype: str | None = None
    bias: bool = False
    scheme: Scheme | None = None
    reduce: bool = False

    @property
    def tolerance(self) -> Tolerance:  # type: ignore[override]
        """The sums, and for activations that are quantized a few codes on the other side of a tie."""
        step = 0 if self.scheme is None or self.scheme.activation is None else CODE_STEP[self.scheme.activation]
        return elementwise(depth=self.input.size + int(FLIPPED_CODES * step * 2**24 / self.input.size))

    def validate(self) -> None:
        if not self.outputs:
            raise SpecError("linear: needs at least one output")

    def infer(self, x: Abstract, weight: Any, batch: Any) -> Abstract | tuple[Abstract, ...]:
        expect("linear", "x", x, (self.input.size,), self.dtype)
        made = tuple(Abstract((*x.shape[:-1], dim.size), self.out_dtype or self.dtype) for dim in self.outputs)
        return made if len(made) > 1 else made[0]

    def reference(self, x: Any, weight: Sequence[Any], batch: Any) -> Any:
        tensors, biases = weight[: len(self.outputs)], weight[len(self.outputs):]
        x = requantized(x, self.scheme)
        made = [x @ dequantized(tensor, self.scheme).T for tensor in tensors]
        for y, bias in zip(made, biases, strict=False):
            y += wide(bias)
        return tuple(made) if len(made) > 1 else made[0]

    def magnitude(self, x: Any, weight: Sequence[Any], batch: Any) -> Any:
        count = len(self.outputs)
        x, tensors = np.abs(requantized(x, self.scheme)), [np.abs(dequantized(tensor, self.scheme)) for tensor in weight[:count]]
        return replace(self, scheme=None).reference(x, [*tensors, *(np.abs(wide(bias)) for bias in weight[count:])], batch)

    def weight(self, *names: str, bias: str = ".bias", suffix: str = ".weight") -> Weight:
        """The checkpoint tensors of this linear: a module name per output."""
        if len(names) != len(self.outputs):
            raise SpecError(f"linear: {len(names)} names for {len(self.outputs)} outputs")
        pairs = list(zip(names, self.outputs, strict=True))
        tensors = tuple(Tensor(name + suffix, (out.size, self.input.size), (out.axis, self.input.axis)) for name, out in pairs)
        biases = tuple(Tensor(name + bias, (out.size,), (out.axis,)) for name, out in pairs) if self.bias else ()
        return Weight(tensors, biases)
