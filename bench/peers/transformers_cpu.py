"""Hugging Face transformers: `generate` of one batch; all prompts have one length, so nothing is padded."""
from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

from .protocol import Generate, Peer, Prompts, Room, main


def load(model: Path, weights: str, room: Room) -> Generate:
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(room.threads)
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16, attn_implementation="sdpa").eval()
    loaded.generation_config.eos_token_id = None

    def generate(prompts: Prompts, output_tokens: int) -> int:
        ids = torch.tensor(prompts)
        with torch.inference_mode():
            answers = loaded.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=output_tokens, do_sample=False, pad_token_id=0,
            )
        return int(answers[:, ids.shape[1] :].numel())

    return generate


PEER = Peer("transformers", lambda: version("transformers"), {"bf16": "bfloat16"}, load)

if __name__ == "__main__":
    main(PEER)
