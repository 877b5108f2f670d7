"""linear: y = x W^T + b, for one or several W that share their input (a fused linear returns a tuple)."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import SpecError
from .spec import Abstract, Dim, Spec, expect, spec, wide
from .tolerance import Tolerance, elementwise
from .weights import Tensor, Weight


@spec
class Linear(Spec):
    """`ops.linear(spec, x [tokens, input], weight, batch) -> [tokens, output]`, or a tuple of them.

    scheme: how the weight is quantized (None: stored in `dtype`). reduce: the input axis is sharded, so sum over it.
    """

    op = "linear"
    input: Dim
    outputs: tuple[Dim, ...]
    dtype: str
    out_dtype: str | None = None
    bias: bool = False
    scheme: str | None = None
    reduce: bool = False

    @property
    def tolerance(self) -> Tolerance:  # type: ignore[override]
        return elementwise(depth=self.input.size)

    def validate(self) -> None:
        if not self.outputs:
            raise SpecError("linear: needs at least one output")

    def infer(self, x: Abstract, weight: Any, batch: Any) -> Abstract | tuple[Abstract, ...]:
        expect("linear", "x", x, (self.input.size,), self.dtype)
        made = tuple(Abstract((*x.shape[:-1], dim.size), self.out_dtype or self.dtype) for dim in self.outputs)
        return made if len(made) > 1 else made[0]

    def reference(self, x: Any, weight: Sequence[Any], batch: Any) -> Any:
        tensors, biases = weight[: len(self.outputs)], weight[len(self.outputs):]
        made = [wide(x) @ wide(tensor).T for tensor in tensors]
        for y, bias in zip(made, biases, strict=False):
            y += wide(bias)
        return tuple(made) if len(made) > 1 else made[0]

    def magnitude(self, x: Any, weight: Sequence[Any], batch: Any) -> Any:
        return self.reference(np.abs(wide(x)), [np.abs(wide(part)) for part in weight], batch)

    def weight(self, *names: str, bias: str = ".bias", suffix: str = ".weight") -> Weight:
        """The checkpoint tensors of this linear: a module name per output."""
        if len(names) != len(self.outputs):
            raise SpecError(f"linear: {len(names)} names for {len(self.outputs)} outputs")
        pairs = list(zip(names, self.outputs, strict=True))
        tensors = tuple(Tensor(name + suffix, (out.size, self.input.size), (out.axis, self.input.axis)) for name, out in pairs)
        biases = tuple(Tensor(name + bias, (out.size,), (out.axis,)) for name, out in pairs) if self.bias else ()
        return Weight(tensors, biases)
