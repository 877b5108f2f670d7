"""What makes Triton's interpreter fast enough for a suite; no result changes by it.

An operation on a small tile costs the interpreter some 100 us, of which NumPy's share is a few: the rest makes types and shapes
that were made before, and looks through `triton.language` for what to replace. That is made once and kept. Loads and stores
index memory as one array, a tenth of what one element after the other takes.
"""
from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any
from unittest.mock import patch

import numpy as np
import triton.language as tl
from triton.language import core
from triton.runtime import interpreter

Array = np.ndarray[Any, Any]
SEMANTIC = interpreter.interpreter_semantic
Made = dict[Any, dict[str, Any]]
BLOCKS: Made = {}
TENSORS: Made = {}
NUMPY: dict[str, Any] = {}
COMPUTED: dict[tuple[Any, ...], Any] = {}
_new_block_type: Callable[..., None] = core.block_type.__init__
_new_tensor: Callable[..., None] = core.tensor.__init__
_find_numpy_type = interpreter._get_np_dtype
_find_computed = SEMANTIC.computation_type_impl
_find_operands = SEMANTIC.binary_op_type_checking_impl
_find_broadcast = SEMANTIC.broadcast_impl_value
_find_cast = SEMANTIC._cast_to_computation_type


@contextmanager
def kept() -> Iterator[None]:
    """Meanwhile types and shapes come from before."""
    semantic = patch.multiple(SEMANTIC, computation_type_impl=_computed, binary_op_type_checking_impl=_operands,
                              broadcast_impl_value=_broadcast, _cast_to_computation_type=_cast)
    with semantic, patch.object(core.block_type, "__init__", _block_type), patch.object(core.tensor, "__init__", _tensor), \
            patch.object(interpreter, "_get_np_dtype", _numpy_type), patch.object(interpreter, "_interpreter", _Memory()):
        yield


@contextmanager
def language() -> Iterator[None]:
    """Meanwhile the words of `triton.language` work on NumPy arrays."""
    changes = _changes()
    for owner, name, new, _ in changes:
        setattr(owner, name, new)
    try:
        yield
    finally:
        for owner, name, _, old in reversed(changes):
            if old is interpreter._MISSING:
                delattr(owner, name)
            else:
                setattr(owner, name, old)


PAGE = 4096
"""Nothing lies below."""
ADDRESSES = 2**47


@cache
def _memory(dtype: Any) -> Array:
    """All of the process's memory from the first page on; only what is asked for is touched."""
    return np.frombuffer((ctypes.c_char * (ADDRESSES - PAGE)).from_address(PAGE), dtype)


class _Memory:
    """The interpreter's loads and stores by NumPy's indexing; the rest of its compiled part as it is."""

    compiled = interpreter._interpreter

    def __getattr__(self, name: str) -> Any:
        return getattr(self.compiled, name)

    def load(self, pointers: Array, mask: Array, other: Array, dtype: Any) -> Array:
        at = pointers if mask.all() else pointers[mask]
        if _unaligned(at, dtype):
            return self.compiled.load(pointers, mask, other, dtype)  # type: ignore[no-any-return]
        found = _memory(dtype)[_places(at, dtype)]
        if at is pointers:
            return found
        made = other.astype(dtype)
        made[mask] = found
        return made

    def store(self, pointers: Array, values: Array, mask: Array) -> None:
        at = pointers[mask]
        if _unaligned(at, values.dtype):
            self.compiled.store(pointers, values, mask)
        else:
            _memory(values.dtype)[_places(at, values.dtype)] = values[mask]


def _unaligned(at: Array, dtype: Any) -> bool:
    return bool(np.bitwise_or.reduce(at, axis=None) & np.uint64(dtype.itemsize - 1))


def _places(at: Array, dtype: Any) -> Array:
    return ((at - np.uint64(PAGE)) // np.uint64(dtype.itemsize)).view(np.int64)


@cache
def rewritten(function: Any) -> Any:
    """The Python function that the interpreter runs for a kernel's or a device function's own."""
    return interpreter.InterpretedFunction(function).rewrite()


@cache
def _changes() -> list[tuple[Any, str, Any, Any]]:
    """What the interpreter replaces: (owner, name, new value, old value)."""
    scope = interpreter._patch_lang(_words)
    # Triton 3.6 asks int() of an array with one dimension, which NumPy 2.4 refuses.
    scope.set_attr(tl.tensor, "__index__", lambda self: int(self.handle.data.item()))
    changes = [(owner, name, vars(owner)[name], old) for owner, name, old in scope._changes]
    scope.restore()
    return changes


def _words() -> tuple[Any, Any]:
    """Both modules that kernels and Triton's library take their words from; the interpreter finds them in these globals."""
    return tl, core


def _block_type(self: Any, element_ty: Any, shape: Any) -> None:
    key = (element_ty.name, *[size.value if isinstance(size, tl.constexpr) else size for size in shape])
    made = BLOCKS.get(key)
    if made is None:
        _new_block_type(self, element_ty, shape)
        BLOCKS[key] = self.__dict__.copy()
    else:
        self.__dict__.update(made)


def _tensor(self: Any, handle: Any, kind: Any) -> None:
    made = TENSORS.get(kind.name)
    if made is None:
        _new_tensor(self, handle, kind)
        TENSORS[kind.name] = {name: value for name, value in self.__dict__.items() if name != "handle"}
    else:
        self.__dict__.update(made)
        self.handle = handle


def _numpy_type(tt_dtype: Any) -> Any:
    found = NUMPY.get(tt_dtype.name)
    if found is None:
        found = NUMPY[tt_dtype.name] = _find_numpy_type(tt_dtype)
    return found


def _computed(a_ty: Any, a_is_scalar: bool, b_ty: Any, b_is_scalar: bool, div_or_mod: bool) -> Any:
    key = (a_ty.name, a_is_scalar, b_ty.name, b_is_scalar, div_or_mod)
    found = COMPUTED.get(key)
    if found is None:
        found = COMPUTED[key] = _find_computed(a_ty, a_is_scalar, b_ty, b_is_scalar, div_or_mod)
    return found


def _operands(lhs: Any, rhs: Any, allow_lhs_ptr: bool = False, allow_rhs_ptr: bool = False, arithmetic_check: bool = True,
              div_or_mod: bool = False) -> tuple[Any, Any]:
    """Two tiles of one type stay what they are; those of pointers, and what a division widens, are looked at."""
    if not div_or_mod and isinstance(lhs, tl.tensor) and isinstance(rhs, tl.tensor) and lhs.type.name == rhs.type.name \
            and not lhs.dtype.is_ptr():
        return lhs, rhs
    return _find_operands(lhs, rhs, allow_lhs_ptr, allow_rhs_ptr, arithmetic_check, div_or_mod)  # type: ignore[no-any-return]


def _broadcast(lhs: Any, rhs: Any) -> tuple[Any, Any]:
    """Two tiles of one shape, or two scalars, stay what they are."""
    left, right = lhs.type, rhs.type
    if left.is_block() == right.is_block() and (not left.is_block() or left.shape.values == right.shape.values):
        return lhs, rhs
    return _find_broadcast(lhs, rhs)  # type: ignore[no-any-return]


def _cast(value: Any, dtype: Any) -> Any:
    return value if isinstance(value, tl.tensor) and value.dtype.name == dtype.name else _find_cast(value, dtype)
