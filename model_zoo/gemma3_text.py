"""gemma3_text: Gemma 3 without its images (HF `Gemma3ForCausalLM`)."""
from __future__ import annotations

from .config import AGAIN, Fields
from .decoder import FULL, SLIDING, Decoder, Design
from .gemma2 import DEFAULTS, gemma

LAYERED = "must describe the rotary embeddings of full_attention and sliding_attention, each by itself"


class Gemma3Text(Decoder):
    """An RMS norm on each head of q and k instead of capped scores; sliding layers turn by a base of their own."""

    model_type = "gemma3_text"
    computed = frozenset({"final_logit_softcapping"})

    @staticmethod
    def design(config: Fields) -> Design:
        config = config.with_defaults(**DEFAULTS, max_position_embeddings=131072)
        return gemma(
            config, every=config.integer("sliding_window_pattern", 6), qk_norm=True,
            rope=_rope(config, FULL, config.real("rope_theta", 1e6)),
            local_rope=_rope(config, SLIDING, config.real("rope_local_base_freq", 1e4)),
            context_tokens=config.integer("max_position_embeddings"),
        )


def _rope(config: Fields, kind: str, base: float) -> Fields:
    """The config as layers of one kind read it: the `rope_parameters` of that kind alone, and no `rope_scaling` of sliding ones."""
    layered = config.table("rope_parameters")
    if set(layered) - {FULL, SLIDING}:
        raise config.error("rope_parameters", LAYERED, AGAIN)
    own = Fields(layered, config.family).table(kind)
    scaling = config.values.get("rope_scaling") if kind == FULL else None
    return Fields({**config.values, "rope_theta": base, "rope_parameters": own, "rope_scaling": scaling}, config.family)
