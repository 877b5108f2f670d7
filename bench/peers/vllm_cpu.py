"""vLLM on a CPU: its offline engine, in this process, and how its server is started."""
from __future__ import annotations

import os
from importlib.metadata import version
from pathlib import Path

from .protocol import Generate, Peer, Prompts, Room, main

KV_GIB = 2


def load(model: Path, weights: str, room: Room) -> Generate:
    os.environ |= environment(room) | {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    from vllm import LLM, SamplingParams

    llm = LLM(
        str(model), dtype="bfloat16", skip_tokenizer_init=True, enable_prefix_caching=False, max_model_len=room.tokens,
        max_num_seqs=room.requests,
    )

    def generate(prompts: Prompts, output_tokens: int) -> int:
        params = SamplingParams(max_tokens=output_tokens, temperature=0.0, ignore_eos=True, detokenize=False)
        answers = llm.generate([{"prompt_token_ids": ids} for ids in prompts], params, use_tqdm=False)
        return sum(len(answer.outputs[0].token_ids) for answer in answers)

    return generate


def environment(room: Room) -> dict[str, str]:
    return {
        "VLLM_CPU_KVCACHE_SPACE": str(KV_GIB), "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": f"0-{room.threads - 1}",
    }


def server(model: Path, room: Room, port: int) -> list[str]:
    """What its interpreter is given to serve the model in bfloat16."""
    return ["-m", "vllm.entrypoints.openai.api_server", "--model", str(model), "--served-model-name", model.name, "--dtype", "bfloat16",
            "--no-enable-prefix-caching", "--max-model-len", str(room.tokens), "--max-num-seqs", str(room.requests),
            "--host", "127.0.0.1", "--port", str(port)]


PEER = Peer("vllm", lambda: version("vllm-cpu"), {"bf16": "bfloat16"}, load)

if __name__ == "__main__":
    main(PEER)
