"""llama.cpp through llama-cpp-python's C calls, since its Python class runs one sequence at a time."""
from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

from .gguf_file import write_gguf
from .protocol import Generate, Peer, Prompts, Room, main

BATCH_TOKENS = 2048


def load(model: Path, weights: str, room: Room) -> Generate:
    import llama_cpp

    llama_cpp.llama_backend_init()
    loaded = llama_cpp.llama_model_load_from_file(str(model).encode(), llama_cpp.llama_model_default_params())
    if not loaded:
        raise SystemExit(f"llama.cpp cannot load {model}")
    contexts: dict[tuple[int, int], Any] = {}

    def generate(prompts: Prompts, output_tokens: int) -> int:
        size = (len(prompts), len(prompts[0]) + max(output_tokens, BATCH_TOKENS // len(prompts)))
        if size not in contexts:
            contexts[size] = _context(loaded, *size, room.threads)
        context = contexts[size]
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), False)
        last = _prefill(context, prompts)
        drawn = len(last)
        for place in range(len(prompts[0]), len(prompts[0]) + output_tokens - 1):
            last = _decode(context, [(token, place, sequence, True) for sequence, token in enumerate(last)])
            drawn += len(last)
        return drawn

    return generate


def _context(loaded: Any, sequences: int, tokens: int, threads: int) -> Any:
    import llama_cpp

    params = llama_cpp.llama_context_default_params()
    params.n_ctx = sequences * (-(-tokens // 256) * 256)
    params.n_seq_max = sequences
    params.n_batch = BATCH_TOKENS
    params.n_threads = params.n_threads_batch = threads
    return llama_cpp.llama_init_from_model(loaded, params)


def _prefill(context: Any, prompts: Prompts) -> list[int]:
    """The first token of each answer, in the prompts' order."""
    rows = [(token, place, sequence, place == len(ids) - 1) for sequence, ids in enumerate(prompts) for place, token in enumerate(ids)]
    first: list[int] = []
    for at in range(0, len(rows), BATCH_TOKENS):
        first += _decode(context, rows[at : at + BATCH_TOKENS])
    return first


def _decode(context: Any, rows: list[tuple[int, int, int, bool]]) -> list[int]:
    """rows: (token, place, sequence, whether one is drawn) -> the likeliest next token of each that is drawn."""
    import llama_cpp
    import numpy as np

    batch = llama_cpp.llama_batch_init(len(rows), 0, 1)
    batch.n_tokens = len(rows)
    for i, (token, place, sequence, draws) in enumerate(rows):
        batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0], batch.logits[i] = token, place, 1, sequence, draws
    failed = llama_cpp.llama_decode(context, batch)
    llama_cpp.llama_batch_free(batch)
    if failed:
        raise SystemExit(f"llama_decode answered {failed}")
    vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(llama_cpp.llama_get_model(context)))
    return [int(np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(context, i), (vocab,)).argmax())
            for i, row in enumerate(rows) if row[3]]


def convert(checkpoint: Path, weights: str, to: Path) -> None:
    write_gguf(checkpoint, PEER.weights[weights], to)


PEER = Peer("llama", lambda: version("llama-cpp-python"), {"bf16": "BF16", "int8": "Q8_0", "int4": "Q4_0"}, load, convert)

if __name__ == "__main__":
    main(PEER)
