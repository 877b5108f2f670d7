"""What of a model is quantized, and how: linears and KV, by a person's wish, or by what the checkpoint holds already."""
from __future__ import annotations

from dataclasses import replace

from ..errors import ConfigError, SpecError, suggest
from ..model_zoo.base import UNQUANTIZED, Precision
from ..ops import Scheme

PRESETS = {
    "int8": Scheme.parse("int8:g128:float16:a8g128"),
    "int4": Scheme.parse("int4:g32:float16:a8g32"),
}
"""What a person asks for by a short name. A scheme's own text is taken too.

The largest groups with which logits are no worse than under the best scheme of another engine at this size (`bench accuracy`):
larger groups are multiplied faster.
"""


def asked_scheme(asked: str) -> Scheme:
    """Raises `ConfigError` for a name that is neither a preset nor the text of a scheme."""
    if asked in PRESETS:
        return PRESETS[asked]
    try:
        return Scheme.parse(asked)
    except SpecError as error:
        raise ConfigError(f"quantization {asked!r} is unknown. {suggest(asked, PRESETS)} Or a scheme's own text: {error}") from None


def choose_precision(asked: str | None, stored: Precision, kv_dtype: str | None = None) -> Precision:
    """The checkpoint's own, or every linear in the scheme that was asked for; the embedding stays as it is stored.

    kv_dtype: of the KV's codes; None: the checkpoint's own.
    """
    kv_dtype = kv_dtype or stored.kv_dtype
    if asked is None:
        return replace(stored, kv_dtype=kv_dtype)
    if stored.scheme is not UNQUANTIZED.scheme:
        raise ConfigError(
            f"quantization {asked!r} was asked for, and the checkpoint is quantized already. Leave it out, or give the original."
        )
    scheme = asked_scheme(asked)
    return Precision(lambda module: scheme, kv_dtype)
