"""linear: y = x W^T + b, for one or several W that share their input; gated_linear: two of them, and activation(gate) * up."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np

from ..errors import SpecError
from .elementwise import GatedActivation
from .kernel import Default
from .quantize import Quantized, Scheme, dequantized, requantized, undecided
from .spec import DTYPES, Abstract, Dim, Spec, expect, spec, wide
from .tolerance import Tolerance, elementwise
from .weights import Tensor, Weight

SCALING = 8
"""Float32 roundings of a quantized linear besides its sum: of scales, codes and zero points."""


@spec
class Linear(Spec):
    """`ops.linear(spec, x [tokens, input], weight, batch) -> [tokens, output]`, or a tuple of them.

    scheme: how the weight is quantized (None: stored in `dtype`), and with it x on the fly: a part of such a weight is a
    `Quantized`.
    """

    op = "linear"
    input: Dim
    outputs: tuple[Dim, ...]
    dtype: str
    out_dtype: str | None = None
    bias: bool = False
    scheme: Scheme | None = None

    @property
    def tolerance(self) -> Tolerance:  # type: ignore[override]
        return elementwise(depth=self.input.size + (SCALING if self.scheme else 0))

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
        """With activations that are quantized, also what codes near a tie may change, as if it were roundings."""
        count = len(self.outputs)
        tensors = [_magnitudes(tensor, self.scheme) for tensor in weight[:count]]
        sizes = np.abs(requantized(x, self.scheme))
        if self.scheme and self.scheme.activation:
            sizes += undecided(x, self.scheme) * (2.0**24 / self.tolerance.depth)
        return replace(self, scheme=None).reference(sizes, [*tensors, *(np.abs(wide(bias)) for bias in weight[count:])], batch)

    def weight(self, *names: str, bias: str = ".bias", suffix: str = ".weight") -> Weight:
        """The checkpoint tensors of this linear: a module name per output."""
        if len(names) != len(self.outputs):
            raise SpecError(f"linear: {len(names)} names for {len(self.outputs)} outputs")
        pairs = list(zip(names, self.outputs, strict=True))
        tensors = tuple(Tensor(name + suffix, (out.size, self.input.size), (out.axis, self.input.axis)) for name, out in pairs)
        biases = tuple(Tensor(name + bias, (out.size,), (out.axis,)) for name, out in pairs) if self.bias else ()
        return Weight(tensors, biases)


@spec
class GatedLinear(Spec):
    """`ops.gated_linear(spec, x [tokens, input], weight, batch) -> [tokens, output]`: activation(gate) * up of a linear with these outputs.

    A kernel may round gate, up and what is activated first.
    """

    op = "gated_linear"

    linear: Linear
    activation: GatedActivation

    @property
    def dtype(self) -> str:
        return self.linear.dtype

    @property
    def scheme(self) -> Scheme | None:
        return self.linear.scheme

    @property
    def tolerance(self) -> Tolerance:  # type: ignore[override]
        return elementwise(depth=self.linear.tolerance.depth + self.activation.tolerance.depth, halves=self.activation.tolerance.halves)

    def validate(self) -> None:
        gate_up = {dim.size for dim in self.linear.outputs}
        if len(self.linear.outputs) != 2 or len(gate_up) != 1:
            found = [dim.size for dim in self.linear.outputs]
            raise SpecError(f"gated_linear: needs a gate and an up of one size; found outputs of {found}")
        if self.linear.out_dtype not in (None, self.dtype) or self.activation.dtype != self.dtype:
            raise SpecError("gated_linear: its linear and its activation share one dtype")

    def infer(self, x: Abstract, weight: Any, batch: Any) -> Abstract:
        expect(self.op, "x", x, (self.linear.input.size,), self.dtype)
        return Abstract((*x.shape[:-1], self.linear.outputs[0].size), self.dtype)

    def reference(self, x: Any, weight: Sequence[Any], batch: Any) -> Any:
        return self.activation.reference(*self.linear.reference(x, weight, batch))

    def magnitude(self, x: Any, weight: Sequence[Any], batch: Any) -> Any:
        """Of errors in gate and up, which may be rounded; no activation here is steeper than 1.13."""
        unit, rounding = self.tolerance.depth * 2.0**-24, ml_dtypes.finfo(DTYPES[self.dtype]).eps / 2
        gate, up = (np.abs(part) for part in self.linear.reference(x, weight, batch))
        gate_size, up_size = self.linear.magnitude(x, weight, batch)
        of_gate, of_up = gate_size + rounding / unit * gate, up_size + rounding / unit * up
        return 1.13 * (of_gate * up + gate * of_up + unit * of_gate * of_up)


def _gated_linear(ops: Any, op: GatedLinear, x: Any, weight: Any, batch: Any) -> Any:
    return ops.gated_activation(op.activation, *ops.linear(op.linear, x, weight, batch))


GATED_LINEAR = Default("gated_linear", lambda op: (op.linear, op.activation), _gated_linear)


def _magnitudes(tensor: Any, scheme: Scheme | None) -> Any:
    """Of the weight, where zero points count by themselves: a kernel may multiply by them apart from the codes."""
    if isinstance(tensor, Quantized):
        codes, scales = np.abs(wide(tensor.codes)), np.abs(wide(tensor.scales))
        tensor = Quantized(codes, scales, None if tensor.zeros is None else -np.abs(wide(tensor.zeros)))
    return np.abs(dequantized(tensor, scheme))
