"""Compiled programs of this process, found again by what was traced: two steps that come to the same program are compiled once."""
from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from threading import Lock
from typing import Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr

MOST = 192
"""Programs that are kept; the one that was not asked for longest goes first."""

_kept: OrderedDict[Any, Any] = OrderedDict()
_lock, _starting = Lock(), Lock()


def shared(function: Callable[..., Any], place: Any, options: Mapping[str, Any]) -> Callable[..., Any]:
    """`function` as a program, its second argument donated. place: the devices it runs on. options: XLA's, the same for all.

    It is traced as if nobody had traced it before; only an equal trace takes the program that there is.
    """
    jitted = jax.jit(function, donate_argnums=1, compiler_options=dict(options))
    found: dict[int, tuple[Any, Any]] = {}

    def run(*arguments: Any) -> Any:
        traced = jitted.trace(*arguments)
        if (one := found.get(id(traced.jaxpr))) is None:
            one = found[id(traced.jaxpr)] = traced.jaxpr, _program(traced, place)
        # JAX looks up the last effect that is to be waited for, and renews it, without a lock: interpreted kernels would overlap.
        with _starting:
            return one[1](*arguments)

    return run


def _program(traced: Any, place: Any) -> Any:
    digest = hashlib.sha256()
    for part in _told(traced.jaxpr, set()):
        digest.update(part)
    key = (digest.digest(), tuple(traced.jaxpr.in_avals), traced.in_tree, traced.out_tree, place)
    with _lock:
        program = _kept.pop(key, None)
    program = program or traced.lower().compile()
    with _lock:
        _kept[key] = program
        while len(_kept) > MOST:
            _kept.popitem(last=False)
    return program


def _told(value: Any, seen: set[int]) -> Iterator[bytes]:
    """All that makes a program: the text of each trace in it, and the numbers of its constants, which the text leaves out."""
    if isinstance(value, np.ndarray | jax.Array):
        array = np.asarray(value)
        yield f"{array.dtype} {array.shape}".encode()
        yield array.tobytes()
    elif id(value) in seen:
        return
    elif isinstance(value, ClosedJaxpr):
        seen.add(id(value))
        yield str(value).encode()
        yield from _told([*value.consts, value.jaxpr.eqns], seen)
    elif isinstance(value, Jaxpr):
        seen.add(id(value))
        yield str(value).encode()
        yield from _told(value.eqns, seen)
    elif hasattr(value, "primitive"):
        yield from _told([[one.val for one in value.invars if hasattr(one, "val")], value.params], seen)
    elif isinstance(value, Mapping):
        yield from _told(list(value.values()), seen)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _told(one, seen)
    elif is_dataclass(value) and not isinstance(value, type):
        yield from _told([getattr(value, field.name) for field in fields(value)], seen)
