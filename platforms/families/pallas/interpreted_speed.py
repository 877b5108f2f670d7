"""What makes Pallas' TPU interpreter fast enough for a suite; no result changes by it.

Each of its loads, stores and copies is a call of the host, and JAX makes an array of its own of each argument for it. The
interpreter copies what it keeps and asks the rest for its numbers, so that it takes the host's arrays as they come.
"""
from __future__ import annotations

from functools import partial
from typing import Any

import jax
import numpy as np
from jax._src import callback as callbacks

INTERPRETER = "jax._src.pallas.mosaic.interpret."
_of_jax: Any = getattr(callbacks, "io_callback_impl", None)


def quicken() -> None:
    """From here on, in this process. Nothing where JAX keeps its callbacks elsewhere."""
    if _of_jax is not None:
        callbacks.io_callback_impl = _called


def _called(*args: Any, callback: Any, **rest: Any) -> Any:
    """The interpreter's own functions straight away; anybody else's by JAX's way."""
    function = getattr(callback, "callback_func", None)
    while isinstance(function, partial):
        function = function.func
    if not getattr(function, "__module__", "").startswith(INTERPRETER):
        return _of_jax(*args, callback=callback, **rest)
    return jax.tree.map(np.asarray, callback(*args))
