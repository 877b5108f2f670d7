"""Wrote the checkpoints beside this file with the packages that people quantize with; README.md says which, and how to run it."""
from __future__ import annotations

import importlib.util
import json
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

HERE = Path(__file__).parent
CONFIG = {
    "model_type": "llama", "vocab_size": 48, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1,
    "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32, "max_position_embeddings": 64, "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0, "tie_word_embeddings": False, "eos_token_id": 5, "bos_token_id": 1,
}
PROMPT = [3, 1, 4, 1, 5, 9, 2, 6]
GROUP = 32
Packed = tuple[dict[str, torch.Tensor], torch.Tensor]


def module(path: Path, name: str) -> Any:
    """One file of a package whose __init__ wants a GPU."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    sys.modules[name] = made
    spec.loader.exec_module(made)
    return made


def ranges(weight: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Scales and zero points [outputs, groups] of the range of each group."""
    tiles = weight.reshape(len(weight), -1, GROUP)
    low, high = tiles.amin(-1).clamp(max=0), tiles.amax(-1).clamp(min=0)
    scales = ((high - low) / (2**bits - 1)).half().float()
    return scales, torch.round(-low / scales).clamp(0, 2**bits - 1)


def compressed(kind: str, **weights: Any) -> tuple[dict[str, Any], Callable[[torch.Tensor], Packed]]:
    from compressed_tensors.compressors.base import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationConfig, QuantizationScheme
    from compressed_tensors.quantization.utils.helpers import calculate_qparams

    args = QuantizationArgs(**weights)
    scheme = QuantizationScheme(targets=["Linear"], weights=args)
    config = QuantizationConfig(config_groups={"group_0": scheme}, format=kind, ignore=["re:.*lm_head"], quantization_status="compressed")

    def pack(weight: torch.Tensor) -> Packed:
        tiles = weight.reshape(len(weight), -1, args.group_size or weight.shape[1])
        scale, zero = calculate_qparams(tiles.amin(-1), tiles.amax(-1), args)
        state = {"weight": weight, "weight_scale": scale.half().float(), "weight_zero_point": zero.to(torch.int8)}
        compressor = BaseCompressor.get_value_from_registry(kind)
        stored = compressor.compress(state, scheme)
        return stored, compressor.decompress(stored, scheme)["weight"]

    return json.loads(config.model_dump_json()), pack


def gptq(package: Path, bits: int) -> tuple[dict[str, Any], Callable[[torch.Tensor], Packed]]:
    linear = module(package / "auto_gptq/nn_modules/qlinear/qlinear_cuda_old.py", "qlinear_cuda_old").QuantLinear

    def pack(weight: torch.Tensor) -> Packed:
        scales, zeros = ranges(weight, bits)
        source = torch.nn.Linear(weight.shape[1], len(weight), bias=False)
        source.weight.data = weight.clone()
        made = linear(bits, GROUP, weight.shape[1], len(weight), False, weight_dtype=torch.float32)
        made.pack(source, scales, zeros.clamp(min=1), None)
        return {name: value.half() if name == "scales" else value for name, value in made.state_dict().items()}, made(
            torch.eye(weight.shape[1])
        ).T

    return {"quant_method": "gptq", "bits": bits, "group_size": GROUP, "desc_act": False, "sym": False}, pack


def awq(package: Path) -> tuple[dict[str, Any], Callable[[torch.Tensor], Packed]]:
    for name in ("awq", "awq.utils"):
        sys.modules[name] = types.ModuleType(name)
    sys.modules["awq.utils.utils"] = types.SimpleNamespace(get_best_device=lambda: "cpu")  # type: ignore[assignment]
    packing = module(package / "awq/utils/packing_utils.py", "awq.utils.packing_utils")
    linear = module(package / "awq/modules/linear/gemm.py", "awq.gemm").WQLinear_GEMM

    def pack(weight: torch.Tensor) -> Packed:
        scales, zeros = ranges(weight, 4)
        source = torch.nn.Linear(weight.shape[1], len(weight), bias=False)
        source.weight.data = weight.clone()
        made = linear.from_linear(source, 4, GROUP, scales=scales.T.contiguous(), zeros=zeros.T.contiguous())
        stored = dict(made.state_dict())
        return stored, packing.dequantize_gemm(stored["qweight"], stored["qzeros"], stored["scales"].float(), 4, GROUP).T

    return {"quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True, "version": "gemm"}, pack


def checkpoint(name: str, settings: dict[str, Any], pack: Callable[[torch.Tensor], Packed]) -> None:
    folder = HERE / name
    folder.mkdir(exist_ok=True)
    model, stored = build(), {}
    for at, value in dict(model.state_dict()).items():
        if at.endswith("_proj.weight"):
            parts, meant = pack(value)
            value.copy_(meant)
            stored |= {at.removesuffix("weight") + part: tensor.contiguous() for part, tensor in parts.items()}
        else:
            stored[at] = value
    save_file(stored, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({**CONFIG, "quantization_config": settings}, indent=1) + "\n")
    expect(folder / "expected.npy", model)


def gguf_file(name: str) -> None:
    """With the writer and the quantizers of the gguf package, and the reordering of its converter of llama."""
    import gguf

    kind = getattr(gguf.GGMLQuantizationType, name)
    model, path = build(), HERE / f"{name.lower()}.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    for key in ("block_count", "embedding_length", "feed_forward_length", "head_count", "head_count_kv", "context_length"):
        source = {"block_count": "num_hidden_layers", "embedding_length": "hidden_size", "feed_forward_length": "intermediate_size",
                  "head_count": "num_attention_heads", "head_count_kv": "num_key_value_heads", "context_length": "max_position_embeddings"}
        getattr(writer, f"add_{key}")(CONFIG[source[key]])
    writer.add_key_length(CONFIG["head_dim"])
    writer.add_layer_norm_rms_eps(CONFIG["rms_norm_eps"])
    writer.add_rope_freq_base(CONFIG["rope_theta"])
    writer.add_eos_token_id(CONFIG["eos_token_id"])
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, CONFIG["num_hidden_layers"])
    for at, value in dict(model.state_dict()).items():
        array = value.numpy().copy()
        if "_proj" in at or "lm_head" in at or "embed" in at:
            value.copy_(torch.from_numpy(gguf.dequantize(gguf.quantize(array, kind), kind)))
            if "q_proj" in at or "k_proj" in at:
                heads = CONFIG["num_attention_heads" if "q_proj" in at else "num_key_value_heads"]
                array = array.reshape(heads, 2, -1, array.shape[1]).swapaxes(1, 2).reshape(array.shape)
            writer.add_tensor(names.get_name(at, (".weight",)), gguf.quantize(array, kind), raw_dtype=kind)
        else:
            writer.add_tensor(names.get_name(at, (".weight",)), array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    expect(path.with_suffix(".npy"), model)


def build() -> Any:
    torch.manual_seed(0)
    made = AutoConfig.for_model(**CONFIG)
    model = AutoModelForCausalLM.from_config(made, dtype=torch.float32, attn_implementation="eager").eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False).normal_(0.0, 1.5 * parameter.shape[-1] ** -0.5) if parameter.ndim > 1 else None
    return model


def expect(path: Path, model: Any) -> None:
    """The logits of transformers with the weights as the package itself restores them."""
    with torch.no_grad():
        np.save(path, model(torch.tensor([PROMPT])).logits[0].numpy().astype(np.float32))


def main() -> None:
    what, *packages = sys.argv[1:]
    if what == "compressed-tensors":
        checkpoint("compressed-int4-zeros", *compressed("pack-quantized", num_bits=4, symmetric=False, strategy="group", group_size=GROUP))
        checkpoint("compressed-int8", *compressed("int-quantized", num_bits=8, strategy="channel"))
        checkpoint("compressed-fp8", *compressed("float-quantized", num_bits=8, type="float", strategy="channel"))
    elif what == "gptq":
        checkpoint("gptq-4", *gptq(Path(packages[0]), 4))
        checkpoint("gptq-8", *gptq(Path(packages[0]), 8))
    elif what == "awq":
        checkpoint("awq", *awq(Path(packages[0])))
    else:
        gguf_file("Q8_0")
        gguf_file("Q4_0")


main()
