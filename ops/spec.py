"""What every op is described by: dims with logical axes, dtypes, abstract arrays, and the base of all specs."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from math import prod
from typing import Any, ClassVar, NamedTuple, TypeVar, dataclass_transform

import ml_dtypes
import numpy as np

from ..errors import SpecError
from .tolerance import Tolerance

DTYPES: dict[str, np.dtype[Any]] = {
    "float64": np.dtype(np.float64),
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float8_e4m3fn": np.dtype(ml_dtypes.float8_e4m3fn),
    "int32": np.dtype(np.int32),
    "int8": np.dtype(np.int8),
}
FLOATS = ("float64", "float32", "bfloat16", "float16")


class Dim(NamedTuple):
    """A global size and the logical axis it lies on (None: never sharded)."""

    size: int
    axis: str | None = None


class Abstract(NamedTuple):
    """An array that is only a shape and a dtype: what a graph is traced with."""

    shape: tuple[int, ...]
    dtype: str

    def reshape(self, *shape: int) -> Abstract:
        size, known = prod(self.shape), prod(n for n in shape if n != -1)
        if shape.count(-1) > 1 or (size != known if -1 not in shape else not known or size % known):
            raise SpecError(f"cannot reshape {list(self.shape)} to {list(shape)}")
        return Abstract(tuple(size // known if n == -1 else n for n in shape), self.dtype)


T = TypeVar("T")


@dataclass_transform(frozen_default=True, kw_only_default=True)
def spec(cls: type[T]) -> type[T]:
    """Make `cls` a frozen keyword-only dataclass whose hash is computed once: specs are keys of the hot table."""
    made: type[T] = dataclass(frozen=True, kw_only=True)(cls)
    by_fields: Callable[[Any], int] = made.__hash__

    def cached(self: Any) -> int:
        value: int | None = self.__dict__.get("_hash")
        if value is None:
            value = by_fields(self)
            object.__setattr__(self, "_hash", value)
        return value

    made.__hash__ = cached  # type: ignore[method-assign]
    return made


class Spec:
    """Everything static about one use of one op, in global sizes. Hashable; built once, when the model is.

    A family states `validate`, `infer` and `reference`; the op's arguments follow the spec in every call.
    """

    op: ClassVar[str]
    tolerance: Tolerance
    families: ClassVar[dict[str, type[Spec]]] = {}

    def __init_subclass__(cls) -> None:
        Spec.families[cls.op] = cls

    def __post_init__(self) -> None:
        for field in fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            dims = [value] if isinstance(value, Dim) else value if isinstance(value, tuple) else []
            for dim in dims:
                if isinstance(dim, Dim) and dim.size < 1:
                    raise SpecError(f"{self.op}: {field.name} has size {dim.size}; every size is at least 1")
            if field.name.endswith("dtype") and value is not None and value not in DTYPES:
                raise SpecError(f"{self.op}: unknown dtype {value!r}; known: {', '.join(DTYPES)}")
        self.validate()

    def validate(self) -> None:
        """Raise `SpecError` for a description that means nothing on any platform."""

    def infer(self, *arrays: Any) -> Any:
        """Shapes and dtypes of the outputs from those of the inputs; raises `SpecError` on a mismatch."""
        raise NotImplementedError

    def reference(self, *arrays: Any) -> Any:
        """The definition of the op: float64 NumPy in, float64 NumPy out, state written in place."""
        raise NotImplementedError

    def magnitude(self, *arrays: Any) -> Any:
        """What an elementwise bound scales with: the sum of the absolute values behind each output. None: the output's own."""
        return None

    def __str__(self) -> str:
        shown = ((f.name, getattr(self, f.name)) for f in fields(self))  # type: ignore[arg-type]
        return " ".join(f"{name}={_brief(value)}" for name, value in shown if value not in (None, False))


def _brief(value: Any) -> str:
    if isinstance(value, Dim):
        return str(value.size)
    if isinstance(value, tuple) and len(value) > 6:
        return f"[{len(value)}]"
    if isinstance(value, tuple):
        return "+".join(_brief(v) for v in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def expect(op: str, what: str, array: Abstract, last: tuple[int, ...], dtype: str | None = None) -> None:
    """Raise unless `array` ends in the sizes `last` and has `dtype`."""
    if array.shape[len(array.shape) - len(last):] != last:
        raise SpecError(f"{op}: {what} has shape {list(array.shape)}, and must end in {list(last)}")
    if dtype is not None and array.dtype != dtype:
        raise SpecError(f"{op}: {what} is {array.dtype}, and the spec says {dtype}; cast one of them in the model")


def wide(array: Any) -> np.ndarray[Any, Any]:
    """The array in float64, copied only where it is not float64 already."""
    return np.asarray(array, dtype=np.float64)
