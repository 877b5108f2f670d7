"""Values as codes with a scale for each group of them: to the bit what ops/quantize.py says."""
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ....ops.quantize import ACTIVATIONS
from .arrays import TORCH


def coded(x: Tensor, dtype: str) -> tuple[Tensor, Tensor]:
    """x [..., group] -> codes in its shape and scales [..., 1] float32. A group with an infinity or NaN: codes 0, scale NaN.

    The limit is a tensor, as a division by a number may become a product.
    """
    limit, x = float(ACTIVATIONS[dtype]), x.float()
    largest = x.abs().amax(-1, keepdim=True)
    finite = torch.isfinite(largest)
    inverse = torch.where(largest > 0, torch.full_like(largest, limit) / largest, 0)
    codes = torch.where(finite, x * torch.where(torch.isfinite(inverse), inverse, 0), 0)
    scales = torch.where(finite, largest / torch.full_like(largest, limit), torch.nan)
    return (codes.round() if dtype == "int8" else codes).to(TORCH[dtype]), scales


def bits(array: Tensor) -> Tensor:
    """Floats of one byte as integers: not every backend can pick rows of the former."""
    return array.view(torch.uint8) if array.is_floating_point() and array.itemsize == 1 else array


def values(found: Tensor, dtype: torch.dtype) -> Tensor:
    """The reverse. A view in the dtype that is there already would still be an op."""
    return found if found.dtype == dtype else found.view(dtype)


def gathered(cell: Any, name: str, blocks: Tensor, kv_dtype: str | None) -> Tensor:
    """[tiles, columns] block ids -> [tiles, kv_heads, columns * block_tokens, dim] in float32, decoded."""
    array = getattr(cell, name)
    found = values(bits(array)[blocks], array.dtype).transpose(1, 2).flatten(2, 3).float()
    return found if kv_dtype is None else found * gathered(cell, f"{name}_scale", blocks, None)
