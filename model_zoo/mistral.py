"""mistral: Mistral 7B and its successors (HF `MistralForCausalLM`)."""
from __future__ import annotations

from .config import Fields
from .decoder import FULL, SLIDING, Decoder, Design, standard


class Mistral(Decoder):
    """One sliding window in every layer, or none where the config says null; a config that is silent means 4096."""

    model_type = "mistral"

    @staticmethod
    def design(config: Fields) -> Design:
        layers = config.integer("num_hidden_layers")
        silent = "sliding_window" not in config.values
        window = config.integer("sliding_window", 4096) if silent or "sliding_window" in config else None
        kind = FULL if window is None else SLIDING
        config.refuse("layer_types", ([kind] * layers,), "remove it; all layers of a mistral model have the same window")
        return standard(config, windows=(window,) * layers)
