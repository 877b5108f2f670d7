"""qwen2: Qwen 1.5, 2 and 2.5 (HF `Qwen2ForCausalLM`)."""
from __future__ import annotations

from .config import Fields
from .decoder import Decoder, Design, qwen_windows, standard


class Qwen2(Decoder):
    """Biases on q, k and v only; the later layers may have a sliding window."""

    model_type = "qwen2"

    @staticmethod
    def design(config: Fields) -> Design:
        return standard(config, qkv_bias=True, windows=qwen_windows(config))
