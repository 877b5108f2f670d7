"""rope: rotary position embedding (Su et al. 2021). Scaling methods reduce to frequencies and one factor."""
from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import SpecError
from .spec import Abstract, Dim, Spec, expect, spec, wide
from .tolerance import elementwise


@spec
class Rope(Spec):
    """`ops.rope(spec, x [tokens, heads, head_dim], batch) -> [tokens, heads, head_dim]`.

    Pair j of the first 2 * len(frequencies) dims turns by position * frequencies[j] and is multiplied by `scale`.
    Pairs are (j, j + half), or (2j, 2j + 1) when `interleaved`. Angles are exact to float32 rounding of the position
    times the float32 frequency: what checkpoints were trained with.
    """

    op = "rope"
    tolerance = elementwise(depth=64)

    heads: Dim
    head_dim: int
    frequencies: tuple[float, ...]
    dtype: str
    scale: float = 1.0
    interleaved: bool = False

    def validate(self) -> None:
        if not 0 < 2 * len(self.frequencies) <= self.head_dim:
            raise SpecError(f"rope: {len(self.frequencies)} frequencies turn {2 * len(self.frequencies)} of {self.head_dim} dims")

    def infer(self, x: Abstract, batch: Any) -> Abstract:
        expect(self.op, "x", x, (self.heads.size, self.head_dim), self.dtype)
        return x

    def angles(self, positions: Any) -> np.ndarray[Any, Any]:
        """[tokens, len(frequencies)] in radians, rounded to float32 as position * frequency is."""
        frequencies = np.asarray(self.frequencies, np.float32)
        return np.asarray(positions, np.float32)[:, None] * frequencies

    def reference(self, x: Any, batch: Any) -> Any:
        x, angles = wide(x), wide(self.angles(batch.positions))[:, None, :]
        cos, sin = np.cos(angles) * self.scale, np.sin(angles) * self.scale
        half = len(self.frequencies)
        first, second = (slice(0, 2 * half, 2), slice(1, 2 * half, 2)) if self.interleaved else (slice(0, half), slice(half, 2 * half))
        y = x.copy()
        y[..., first] = x[..., first] * cos - x[..., second] * sin
        y[..., second] = x[..., second] * cos + x[..., first] * sin
        return y

    def magnitude(self, x: Any, batch: Any) -> Any:
        half = len(self.frequencies)
        size = np.abs(wide(x))
        turned = size[..., : 2 * half]
        pairs = turned.reshape(*turned.shape[:-1], half, 2) if self.interleaved else turned.reshape(*turned.shape[:-1], 2, half)
        axis = -1 if self.interleaved else -2
        size[..., : 2 * half] = np.broadcast_to(pairs.sum(axis=axis, keepdims=True), pairs.shape).reshape(turned.shape) * abs(self.scale)
        return size
