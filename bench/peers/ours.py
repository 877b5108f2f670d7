"""This engine, by the same rules as its peers."""
from __future__ import annotations

from pathlib import Path

from ... import __version__
from .protocol import Generate, Peer, Prompts, Room, main


def load(model: Path, weights: str, room: Room) -> Generate:
    from ...core.llm import LLM
    from ...core.request import SamplingParams

    llm = LLM(
        model=str(model), platform="cpu", quantization=None if weights == "bf16" else weights, enable_prefix_caching=False,
        max_model_len=room.tokens, max_num_seqs=room.requests, threads=room.threads,
    )

    def generate(prompts: Prompts, output_tokens: int) -> int:
        params = SamplingParams(max_tokens=output_tokens, temperature=0.0, ignore_eos=True)
        answers = llm.generate([{"prompt_token_ids": ids} for ids in prompts], params)
        return sum(len(answer.outputs[0].token_ids) for answer in answers)

    return generate


PEER = Peer("ours", lambda: __version__, {"bf16": "bfloat16", "int8": "int8", "int4": "int4"}, load)

if __name__ == "__main__":
    main(PEER)
