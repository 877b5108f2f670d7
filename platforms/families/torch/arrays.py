"""Host arrays to torch tensors and back, dtype by dtype, and over the structures that a step returns."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from ....ops import DTYPES

TORCH: dict[str, torch.dtype] = {name: getattr(torch, name) for name in DTYPES}
HOST = {dtype: DTYPES[name] for name, dtype in TORCH.items()}
BITS = {1: (np.uint8, torch.uint8), 2: (np.uint16, torch.uint16)}
"""Same-sized integers: how a dtype that only one side knows crosses over."""


def tensor(host: np.ndarray[Any, Any]) -> torch.Tensor:
    """A CPU tensor with the same values, in memory of its own."""
    host = np.array(host, order="C")
    if host.dtype.name in TORCH and host.dtype.kind == "V":
        return torch.from_numpy(host.view(BITS[host.itemsize][0])).view(TORCH[host.dtype.name])
    return torch.from_numpy(host)


def host(array: torch.Tensor) -> np.ndarray[Any, Any]:
    """A tensor as a host array, which shares the memory of a CPU tensor. Zeros of one that has a shape only (torch's `meta` device)."""
    array = torch.zeros_like(array, device="cpu") if array.is_meta else array.detach().cpu().contiguous()
    known = HOST.get(array.dtype)
    if known is not None and known.kind == "V":
        made: np.ndarray[Any, Any] = array.view(BITS[known.itemsize][1]).numpy().view(known)
        return made
    return array.numpy()


def mapped(change: Callable[[torch.Tensor], Any], tree: Any) -> Any:
    """The same structure of tuples, lists and mappings with every tensor changed; anything else stays."""
    if isinstance(tree, torch.Tensor):
        return change(tree)
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(mapped(change, item) for item in tree))
    if isinstance(tree, tuple | list):
        return type(tree)(mapped(change, item) for item in tree)
    if isinstance(tree, dict):
        return {name: mapped(change, item) for name, item in tree.items()}
    return tree
