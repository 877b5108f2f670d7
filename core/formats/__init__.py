"""Checkpoints that are quantized already: which format a config.json names, and what a folder of it holds."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...errors import CheckpointError, suggest
from .awq import Awq
from .compressed_tensors import CompressedTensors
from .format import Format
from .fp8 import Fp8
from .gptq import Gptq
from .mxfp4 import Mxfp4

METHODS: dict[str, type[Format]] = {"compressed-tensors": CompressedTensors, "gptq": Gptq, "awq": Awq, "fp8": Fp8, "mxfp4": Mxfp4}
"""`quant_method` -> how such a checkpoint stores its linears. A .gguf file says it itself (`gguf.py`)."""


def format_of(config: Mapping[str, Any], files: Mapping[str, Any]) -> Format | None:
    """By `quantization_config`; None for a model of floats. Raises `CheckpointError` for a method that is not known."""
    settings = config.get("quantization_config")
    if settings is None:
        return None
    method = settings.get("quant_method") if isinstance(settings, Mapping) else None
    if method not in METHODS:
        raise CheckpointError(
            f"config.json: 'quantization_config' names the method {method!r}. {suggest(str(method), METHODS)} "
            "Remedy: use the unquantized checkpoint, with --quantization int8 or int4, or one in a known method."
        )
    return METHODS[method](settings, files)
