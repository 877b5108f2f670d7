"""mistral: Mistral 7B and its successors (HF `MistralForCausalLM`)."""
from __future__ import annotations

from .config import Fields
from .decoder import Decoder, Design, one_window, standard


class Mistral(Decoder):
    """One sliding window in every layer, or none where the config says null; a config that is silent means 4096."""

    model_type = "mistral"

    @staticmethod
    def design(config: Fields) -> Design:
        silent = "sliding_window" not in config.values
        window = config.integer("sliding_window", 4096) if silent or "sliding_window" in config else None
        return standard(config, windows=one_window(config, window))
