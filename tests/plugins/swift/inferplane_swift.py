"""One kernel for a platform of somebody else: `rms_norm` of `reference`."""
from __future__ import annotations

from typing import Any

import numpy as np
from inferplane.ops import Kernel, KernelPack, always


def rms_norm(spec: Any, x: Any, weight: Any) -> Any:
    """x [..., hidden], in float32 throughout."""
    [scale] = weight
    wide = np.asarray(x, np.float32)
    root = np.sqrt(np.mean(wide * wide, axis=-1, keepdims=True) + np.float32(spec.epsilon))
    return (wide / root * (np.asarray(scale, np.float32) + np.float32(spec.offset))).astype(x.dtype)


def pack() -> KernelPack:
    return KernelPack("reference", [Kernel("rms_norm", "swift.rms_norm", always, rms_norm)])
