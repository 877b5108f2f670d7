"""Kernels under Triton's interpreter, on CPU tensors, in a process that may compile the same kernels as well.

Triton decides between the two when a kernel is defined. Ours are always defined for the compiler; `start` interprets one
that was, and, while it runs, whatever other `@triton.jit` function it calls (Triton's own library included).
"""
from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import product
from threading import RLock
from typing import Any
from unittest.mock import patch

import ml_dtypes
import numpy as np
from triton.runtime import interpreter
from triton.runtime.jit import JITFunction

from .interpreted_speed import kept, language, rewritten
from .launches import Launch

LOCK = RLock()
"""The interpreter replaces parts of `triton.language`, for every thread: whoever compiles meanwhile must wait for it."""


def start(kernel: Any, grid: tuple[int, ...], arguments: tuple[Any, ...], constants: dict[str, Any], launch: Launch) -> None:
    """One program after the other, in place. Warps and stages mean nothing here."""
    names = [parameter.name for parameter in kernel.params]
    given = dict(zip(names, arguments, strict=False)) | constants
    fixed = {parameter.name for parameter in kernel.params if parameter.is_constexpr}
    run = rewritten(kernel.fn)
    with _interpreting():
        values = {name: given[name] if name in fixed else interpreter._implicit_cvt(given[name]) for name in names if name in given}
        sizes = (*grid, 1, 1)[:3]
        interpreter.interpreter_builder.set_grid_dim(*sizes)
        for place in product(*map(range, sizes)):
            interpreter.interpreter_builder.set_grid_idx(*place)
            run(**values)


FLOATS: dict[str, Any] = {
    "fp32": np.float32, "fp16": np.float16, "fp64": np.float64, "bf16": ml_dtypes.bfloat16, "fp8e5": ml_dtypes.float8_e5m2,
    "fp8e4nv": ml_dtypes.float8_e4m3fn, "fp8e4b8": ml_dtypes.float8_e4m3fnuz, "fp8e5b16": ml_dtypes.float8_e5m2fnuz,
}


def converted(values: Any, source: Any, target: Any, rounding: Any) -> Any:
    """Bits of floats as bits of another format, to the nearest and ties to even, as chips do.

    The interpreter's own drops bits on the way to bfloat16, loses carries and reads NaN of AMD's formats as -0.
    """
    made = values.view(FLOATS[source.name]).astype(np.float64).astype(FLOATS[target.name])
    return made.view(f"u{made.itemsize}")


def cast(_: Any, source: Any, target: Any) -> Any:
    """Any number to any format by its value. The interpreter's own writes an integer's bits where bfloat16 is asked."""
    made = _numbers(source).astype(FLOATS.get(target.scalar.name, interpreter._get_np_dtype(target)))
    return interpreter.TensorHandle(made.view(interpreter._get_np_dtype(target)), target.scalar)


def dot(_: Any, a: Any, b: Any, added: Any, *__: Any) -> Any:
    """A product added up in the format of `added`. The interpreter's own takes the bits of bfloat16 for integers."""
    made = np.matmul(*(_numbers(one).astype(added.data.dtype) for one in (a, b))) + added.data
    return interpreter.TensorHandle(made, added.dtype.scalar)


def _numbers(handle: Any) -> Any:
    """An array of the values; the interpreter keeps formats that NumPy lacks as bits."""
    own = FLOATS.get(handle.dtype.scalar.name)
    return handle.data if own is None else handle.data.view(own)


@contextmanager
def _interpreting() -> Iterator[None]:
    """`triton.language` works on NumPy arrays; what a chip does in silence (overflow, 0 / 0) gives no warning.

    Checks of integer overflow cost a third of the time, and act only where `debug` is set.
    """
    repaired = patch.multiple(interpreter.InterpreterBuilder, cast_impl=cast, create_dot=dot)
    with LOCK, warnings.catch_warnings(), np.errstate(all="ignore"), repaired, kept(), language():
        warnings.simplefilter("ignore", RuntimeWarning)
        called, JITFunction.__call__ = JITFunction.__call__, lambda self, *given, **named: rewritten(self.fn)(*given, **named)
        convert, interpreter._convert_float = interpreter._convert_float, converted
        options = interpreter.interpreter_builder.options
        interpreter.interpreter_builder.options = replace(options, sanitize_overflow=False)
        try:
            yield
        finally:
            interpreter.interpreter_builder.options = options
            interpreter._convert_float = convert
            JITFunction.__call__ = called
