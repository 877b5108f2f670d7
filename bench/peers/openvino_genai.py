"""OpenVINO GenAI: its continuous batching pipeline on IR that optimum-intel writes."""
from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from .protocol import Generate, Peer, Prompts, Room, main

BATCHED_TOKENS = 1024
"""Of a step. The default, 256, is slower at long prompts."""


def load(model: Path, weights: str, room: Room) -> Generate:
    import numpy as np
    import openvino
    import openvino_genai

    config = openvino_genai.SchedulerConfig()
    config.max_num_batched_tokens = BATCHED_TOKENS
    config.max_num_seqs = room.requests
    config.enable_prefix_caching = False
    pipeline = openvino_genai.ContinuousBatchingPipeline(str(model), config, "CPU", {"INFERENCE_NUM_THREADS": room.threads})

    def generate(prompts: Prompts, output_tokens: int) -> int:
        params = openvino_genai.GenerationConfig(max_new_tokens=output_tokens, ignore_eos=True, do_sample=False)
        tensors = [openvino.Tensor(np.array([ids], np.int64)) for ids in prompts]
        answers = pipeline.generate(tensors, [params] * len(prompts))
        return sum(len(answer.m_generation_ids[0]) for answer in answers)

    return generate


def convert(checkpoint: Path, weights: str, to: Path) -> None:
    exporter = Path(sys.executable).with_name("optimum-cli")
    subprocess.run([
        exporter, "export", "openvino", "--model", checkpoint, "--task", "text-generation-with-past",
        "--weight-format", PEER.weights[weights], to,
    ], check=True)


PEER = Peer("openvino", lambda: version("openvino-genai"), {"bf16": "fp16", "int8": "int8"}, load, convert)
"""Half floats are stored as fp16; the CPU plugin computes in bf16 by itself."""

if __name__ == "__main__":
    main(PEER)
