"""A source whose tensors are a shape and no numbers: for programs that are compiled and never run."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from ..model_zoo.base import Precision
from ..ops import Quantized, Tensor, WeightTable
from ..ops.quantize import SCALES


class AbstractWeights:
    """A `Source` after a config. precision: how it claims to be stored. Its tensors are views of one zero, and take no memory."""

    def __init__(self, config: Mapping[str, Any], precision: Precision) -> None:
        self.config, self.precision, self.fingerprint = config, precision, "abstract"
        self._tensors: Mapping[str, Tensor] = {}

    def check(self, weights: WeightTable) -> None:
        self._tensors = weights.tensors()

    def tensor(self, name: str) -> np.ndarray[Any, Any] | Quantized:
        shape = self._tensors[name].shape
        scheme = self.precision.scheme(name.removesuffix(".weight")) if len(shape) == 2 else None
        if scheme is None:
            return _zeros(shape, ml_dtypes.bfloat16)
        groups = scheme.scale_shape(*shape)
        codes = ml_dtypes.float8_e4m3fn if scheme.weight == "float8_e4m3fn" else np.int8
        return Quantized(_zeros(shape, codes), _zeros(groups, SCALES[scheme.scales]), _zeros(groups, np.int8) if scheme.zeros else None)


def _zeros(shape: tuple[int, ...], dtype: Any) -> np.ndarray[Any, Any]:
    return np.broadcast_to(np.zeros((), dtype), shape)
