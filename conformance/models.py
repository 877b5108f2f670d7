"""Tiny models with random weights: configs by name, weights from a seed, and a model's own greedy answer."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any
from zlib import crc32

import numpy as np

from ..core.loader import Loaded, LoadOptions, load
from ..core.request import Request, SamplingParams
from ..core.runner import pack
from ..core.scheduler.plan import RowPlan
from ..errors import ResolutionError
from ..model_zoo.base import UNQUANTIZED
from ..ops import DTYPES, KernelPack, WeightTable
from ..platforms.contract import Collectives, Platform, World
from .case import Unsupported

if TYPE_CHECKING:
    from .rig import Rig

Array = np.ndarray[Any, Any]

CONTEXT = 96
"""Tokens of prompt and answer."""
SIZES: dict[str, Any] = {
    "vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 64, "max_position_embeddings": CONTEXT, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
}
MODELS: dict[str, dict[str, Any]] = {
    "full": {"model_type": "llama", "num_hidden_layers": 2, "tie_word_embeddings": True, **SIZES},
    "sliding": {"model_type": "mistral", "num_hidden_layers": 2, "sliding_window": 21, **SIZES},
    "full-and-sliding": {
        "model_type": "qwen3", "num_hidden_layers": 3, "use_sliding_window": True, "sliding_window": 21,
        "layer_types": ["full_attention", "sliding_attention", "sliding_attention"], **SIZES,
    },
}


class RandomSource:
    """Weights of any model: each tensor's numbers depend on its name and the seed alone.

    dtype: what they are rounded to, so that a load in float64 computes with the very same numbers.
    """

    def __init__(self, config: Mapping[str, Any], seed: int = 0, dtype: str = "float32") -> None:
        self.config, self.seed, self.dtype, self.fingerprint = config, seed, DTYPES[dtype], f"random-{dtype}-{seed}"
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.precision = UNQUANTIZED

    def check(self, weights: WeightTable) -> None:
        self.shapes = {name: tensor.shape for name, tensor in weights.tensors().items()}

    def tensor(self, name: str) -> Array:
        shape = self.shapes[name]
        center, spread = (1.0, 0.2) if "norm" in name else (0.0, 1.5 * shape[-1] ** -0.5)
        return np.random.default_rng([self.seed, crc32(name.encode())]).normal(center, spread, shape).astype(self.dtype)


def greedy(loaded: Loaded, prompt: Sequence[int], steps: int) -> Array:
    """[steps] token ids. Each step is submitted before the one before it was waited for: the device hands its token on."""
    platform, groups = loaded.platform, loaded.states
    total = len(prompt) + steps
    tables = tuple(np.arange(1, 1 + -(-total // group.block_tokens), dtype=np.int32) for group in groups)
    state = platform.allocate(groups, [len(table) + 1 for table in tables], slots=1)
    request = Request("greedy", np.asarray(prompt, np.int32), SamplingParams(temperature=0.0), max_tokens=steps)
    pending = []
    for start in (0, *range(len(prompt), total - 1)):
        tokens = request.prompt[start:] if start == 0 else np.zeros(1, np.int32)
        row = RowPlan(request, 1, start, len(tokens), tokens, start > 0, True, tables, start == 0)
        packed = pack([row], groups, platform.capabilities.buckets, sample=[len(tokens) - 1], sampled=[row])
        pending.append(platform.submit(loaded.compiled(packed.shape), loaded.weights, state, packed))
    return np.array([int(one.result().tokens[0]) for one in pending], np.int32)


def load_on(
    rig: Rig, source: RandomSource, *, platform: Platform | None = None, dtype: str = "float32", length: int = CONTEXT,
    block_tokens: int | None = None, deterministic: bool = False, quantization: str | None = None,
    kv_dtype: str | None = None, world: World | None = None, collectives: Collectives | None = None,
) -> Loaded:
    """The model on the rig's platform (or on another like it), with the rig's kernels, for sequences of `length` tokens.

    Raises `Unsupported` with the platform's own no.
    """
    platform = platform or rig.platform
    said = platform.capabilities
    if dtype not in said.dtypes or (block_tokens is not None and block_tokens not in said.block_tokens):
        raise Unsupported(f"capabilities: {', '.join(said.dtypes)}, in blocks of {', '.join(map(str, said.block_tokens))} tokens")
    options = LoadOptions(dtype=dtype, max_model_len=length, block_tokens=block_tokens, deterministic=deterministic,
                          quantization=quantization, kv_dtype=kv_dtype)
    own = {(kernel.op, kernel.name) for kernel in platform.kernels()}
    added = [kernel for kernel in rig.kernels if (kernel.op, kernel.name) not in own]
    try:
        return load(source, platform, options, [KernelPack(platform.name, added)], world=world, collectives=collectives)
    except ResolutionError as reason:
        raise Unsupported(str(reason)) from None
