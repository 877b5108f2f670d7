"""Reading config.json: typed fields with the family's own defaults, and a refusal of whatever we would get wrong."""
from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any, TypeVar

from ..errors import CheckpointError, suggest

Choice = TypeVar("Choice")

ACTIVATIONS: dict[str, str] = {
    "silu": "silu", "swish": "silu",
    "gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}
"""`hidden_act` -> the op's kind."""

AGAIN = "correct it, or fetch the checkpoint again"
NEUTRAL: dict[str, tuple[tuple[Any, ...], str]] = {
    "compression_config": ((), "use the uncompressed checkpoint"),
    "pretraining_tp": ((1,), "set it to 1; the weights are the same"),
    "auto_map": ((), "the checkpoint brings code of its own; remove the key if the plain architecture is meant"),
    "partial_rotary_factor": ((1, 1.0), "only rotary embeddings over the whole head are known here"),
    "final_logit_softcapping": ((), "remove the key if the model was trained without it"),
    "attn_logit_softcapping": ((), "remove the key if the model was trained without it"),
    "use_bidirectional_attention": ((False,), "only causal attention is known here"),
    "is_decoder": ((True, False), "give true or leave it out"),
    "add_cross_attention": ((False,), "only decoders without cross attention are known here"),
    "vision_config": ((), "extract the language model into a checkpoint of its own"),
    "audio_config": ((), "extract the language model into a checkpoint of its own"),
}
"""Keys that change what is computed: the values that mean nothing unusual, and the remedy for any other."""


@dataclass(frozen=True)
class Fields:
    """A config.json, read with types. A key that is null counts as absent, as it does in transformers."""

    values: Mapping[str, Any]
    family: str

    def __contains__(self, key: str) -> bool:
        return self.values.get(key) is not None

    def with_defaults(self, **defaults: Any) -> Fields:
        """With a family's values for the keys that the config does not have; one that is null stays so."""
        return Fields({**defaults, **self.values}, self.family)

    def error(self, key: str, rule: str, remedy: str) -> CheckpointError:
        found = repr(self.values[key]) if key in self.values else "nothing"
        return CheckpointError(f"config.json of a {self.family} model: {key!r} {rule}; found {found}. Remedy: {remedy}.")

    def integer(self, key: str, default: int | None = None, *, least: int = 1) -> int:
        value = self.values.get(key)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise self.error(key, f"must be an integer of at least {least}", AGAIN)
        return value

    def real(self, key: str, default: float | None = None) -> float:
        value = self.values.get(key)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not isfinite(value) or value <= 0:
            raise self.error(key, "must be a number above 0", AGAIN)
        return float(value)

    def flag(self, key: str, default: bool = False) -> bool:
        value = self.values.get(key)
        value = default if value is None else value
        if not isinstance(value, bool):
            raise self.error(key, "must be true or false", AGAIN)
        return value

    def choice(self, key: str, known: Mapping[str, Choice], default: str) -> Choice:
        value = self.values.get(key) or default
        if not isinstance(value, str) or value not in known:
            raise self.error(key, "is not known", f"use a checkpoint with a known one. {suggest(str(value), known).rstrip('.')}")
        return known[value]

    def table(self, key: str) -> Mapping[str, Any]:
        value = self.values.get(key) or {}
        if not isinstance(value, Mapping):
            raise self.error(key, "must be an object", AGAIN)
        return value

    def names(self, key: str) -> Sequence[str] | None:
        value = self.values.get(key)
        if value is not None and not (isinstance(value, list) and all(isinstance(name, str) for name in value)):
            raise self.error(key, "must be a list of names", AGAIN)
        return value

    def integers(self, key: str) -> Sequence[int]:
        value = self.values.get(key)
        value = [] if value is None else value
        if not (isinstance(value, list) and all(type(number) is int for number in value)):
            raise self.error(key, "must be a list of integers", AGAIN)
        return value

    def need(self, *keys: str) -> None:
        """Raise for a key that is absent: families with other defaults than ours are asked to say theirs."""
        for key in keys:
            if key not in self:
                raise self.error(key, "must be given", AGAIN)

    def refuse(self, key: str, accepted: tuple[Any, ...], remedy: str) -> None:
        """Raise unless `key` is absent or has one of the values that change nothing."""
        if key in self and self.values[key] not in accepted:
            raise self.error(key, "is not supported", remedy)


def read(config: Mapping[str, Any], family: str, computed: Container[str] = ()) -> Fields:
    """The fields of one family's config, which computes what the keys `computed` of `NEUTRAL` ask for.

    Raises `CheckpointError` for another family, or a feature we would get wrong.
    """
    fields = Fields(config, family)
    if config.get("model_type") != family:
        raise fields.error("model_type", f"must be {family!r}", "load it through the model class of its own model_type")
    for key, (accepted, remedy) in NEUTRAL.items():
        if key not in computed:
            fields.refuse(key, accepted, remedy)
    architectures = fields.names("architectures")
    if architectures and not any(name.endswith("ForCausalLM") for name in architectures):
        raise fields.error("architectures", "must name a ...ForCausalLM", "use a checkpoint with a language model head")
    return fields
