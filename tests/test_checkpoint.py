"""A checkpoint is opened without reading it, checked before it is loaded, and told apart from any other."""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from inferplane.core.checkpoint import INDEX, SINGLE, Checkpoint
from inferplane.errors import CheckpointError, ModelNotFound
from inferplane.model_zoo.llama import Llama
from safetensors.numpy import save_file

CONFIG: dict[str, Any] = {
    "model_type": "llama", "vocab_size": 11, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 32, "eos_token_id": 5,
}


def tensors(dtype: Any = np.float32, **changes: Any) -> dict[str, np.ndarray[Any, Any]]:
    """Random weights for CONFIG; a change of None leaves a tensor out, a shape replaces it."""
    random = np.random.default_rng(0)
    shapes = {name: tensor.shape for name, tensor in table().tensors().items()}
    for name, shape in changes.items():
        shapes.pop(name, None)
        if shape is not None:
            shapes[name] = shape
    return {name: random.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}


def table(**changes: Any) -> Any:
    return Llama({**CONFIG, **changes}, dtype="float32", block_tokens=16).weights


def write(folder: Path, weights: dict[str, Any] | None = None, config: Any = CONFIG) -> Path:
    (folder / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    save_file(tensors() if weights is None else weights, folder / SINGLE)
    return folder


def shard(folder: Path, weights: dict[str, Any], count: int = 3) -> list[str]:
    places: dict[str, str] = {}
    names = sorted(weights)
    for i in range(count):
        file = f"model-{i + 1:05}-of-{count:05}.safetensors"
        save_file({name: weights[name] for name in names[i::count]}, folder / file)
        places |= dict.fromkeys(names[i::count], file)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return sorted(set(places.values()))


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16], ids=["float32", "float16", "bfloat16"])
def test_a_tensor_is_a_read_only_view_of_the_file_in_its_own_dtype(dtype: Any, tmp_path: Path) -> None:
    weights = tensors(np.float32)
    if dtype is ml_dtypes.bfloat16:
        torch = pytest.importorskip("torch")
        from safetensors.torch import save_file as save_torch

        write(tmp_path)
        save_torch({name: torch.tensor(value).bfloat16() for name, value in weights.items()}, tmp_path / SINGLE)
    else:
        write(tmp_path, {name: value.astype(dtype) for name, value in weights.items()})
    checkpoint = Checkpoint.open(tmp_path)
    checkpoint.check(table())
    for name, value in weights.items():
        found = checkpoint.tensor(name)
        assert found.dtype == dtype
        assert np.shares_memory(found, checkpoint.files[name].data)
        np.testing.assert_array_equal(found, value.astype(dtype))
    with pytest.raises(ValueError, match="read-only"):
        found[...] = 0


def test_an_unaligned_tensor_is_copied_so_that_kernels_may_rely_on_alignment(tmp_path: Path) -> None:
    layout = {"odd": _entry(0, 1, (1,), "U8"), "x": _entry(1, 9)}
    header = json.dumps(layout).encode()
    data = b"\1" + np.array([1.5, -2.0], np.float32).tobytes()
    write(tmp_path)
    (tmp_path / SINGLE).write_bytes(_file(header + b" " * (-len(header) % 8), data))
    found = Checkpoint.open(tmp_path).tensor("x")
    assert found.flags.aligned
    assert found.tolist() == [1.5, -2.0]


def test_shards_read_like_one_file(tmp_path: Path) -> None:
    weights = tensors()
    shard(tmp_path, weights)
    checkpoint = Checkpoint.open(tmp_path)
    checkpoint.check(table())
    checkpoint.check_finite()
    for name, value in weights.items():
        np.testing.assert_array_equal(checkpoint.tensor(name), value)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    lost = shard(tmp_path, tensors())[1]
    (tmp_path / lost).unlink()
    with pytest.raises(CheckpointError, match=f"lacks 1 of 3 shards: {lost}.*Remedy"):
        Checkpoint.open(tmp_path)


def test_an_index_that_promises_too_much_or_leaves_the_folder_is_refused(tmp_path: Path) -> None:
    shard(tmp_path, tensors())
    index = json.loads((tmp_path / INDEX).read_text())
    index["weight_map"]["model.ghost"] = "model-00001-of-00003.safetensors"
    (tmp_path / INDEX).write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="promises model.ghost"):
        Checkpoint.open(tmp_path)
    index["weight_map"]["model.ghost"] = "../elsewhere.safetensors"
    (tmp_path / INDEX).write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="files beside it"):
        Checkpoint.open(tmp_path)


@pytest.mark.parametrize("lost", [1, 100, 500], ids=lambda lost: f"{lost}-bytes")
def test_a_truncated_file_says_how_many_bytes_are_missing(lost: int, tmp_path: Path) -> None:
    data = (write(tmp_path) / SINGLE).read_bytes()
    (tmp_path / SINGLE).write_bytes(data[:-lost])
    with pytest.raises(CheckpointError, match=f"truncated: {lost} of {len(data)} bytes are missing"):
        Checkpoint.open(tmp_path)


def _file(header: Any, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def _entry(start: int, stop: int, shape: Any = (2,), dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, stop]}


DAMAGED = {
    "empty": (b"", "0 bytes and no header; 8 bytes are missing"),
    "within-the-header": (_file({"x": _entry(0, 8)})[:20], "ends within its header"),
    "no-safetensors": (b"PK\3\4" + b"\xff" * 20, "claims a header of"),
    "header-no-json": (_file(b"{nonsense"), "not JSON"),
    "header-no-object": (_file([1]), "no JSON object"),
    "overlap": (_file({"x": _entry(0, 8), "y": _entry(4, 12)}, bytes(12)), "y starts at byte 4 and overlaps"),
    "gap": (_file({"x": _entry(0, 8), "y": _entry(12, 20)}, bytes(20)), "leaves a gap"),
    "trailing": (_file({"x": _entry(0, 8)}, bytes(9)), "1 bytes that belong to no tensor"),
    "size": (_file({"x": _entry(0, 8, (3,))}, bytes(8)), r"x \[3\] in F32 needs 12 bytes, and has 8"),
    "negative": (_file({"x": _entry(-4, 4)}, bytes(8)), "offsets -4..4"),
    "dtype": (_file({"x": _entry(0, 8, (2,), "F4")}, bytes(8)), "'F4'"),
    "no-offsets": (_file({"x": {"dtype": "F32"}}), "entry for x"),
}


@pytest.mark.parametrize(("data", "message"), DAMAGED.values(), ids=list(DAMAGED))
def test_a_damaged_file_is_refused_with_what_is_wrong(data: bytes, message: str, tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / SINGLE).write_bytes(data)
    with pytest.raises(CheckpointError, match=message) as caught:
        Checkpoint.open(tmp_path)
    assert "Remedy" in str(caught.value)


UNFIT: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "shape": ({"model.norm.weight": (9,)}, {}, r"model.norm.weight has shape \[9\], and config.json asks for \[8\]"),
    "missing": ({"model.norm.weight": None}, {}, "lacks model.norm.weight"),
    "missing-head": ({"lm_head.weight": None}, {}, "lacks lm_head.weight.*tie_word_embeddings"),
    "unexpected": (
        {"model.layers.0.self_attn.q_proj.bias": (8,)},
        {},
        "has model.layers.0.self_attn.q_proj.bias.*no use.*biases",
    ),
    "too-few-layers": ({}, {"num_hidden_layers": 3}, "lacks model.layers.2.* and 5 more"),
}


@pytest.mark.parametrize(("changes", "config", "message"), UNFIT.values(), ids=list(UNFIT))
def test_tensors_that_do_not_fit_the_model_are_named_before_anything_loads(
    changes: dict[str, Any], config: dict[str, Any], message: str, tmp_path: Path
) -> None:
    checkpoint = Checkpoint.open(write(tmp_path, tensors(**changes)))
    with pytest.raises(CheckpointError, match=message) as caught:
        checkpoint.check(table(**config))
    assert "Remedy" in str(caught.value)


def test_integers_are_no_weights(tmp_path: Path) -> None:
    weights = tensors() | {"model.norm.weight": np.ones(8, np.int8)}
    with pytest.raises(CheckpointError, match="model.norm.weight is stored as int8"):
        Checkpoint.open(write(tmp_path, weights)).check(table())


def test_tensors_that_a_model_ignores_may_be_there(tmp_path: Path) -> None:
    weights = tensors(**{"model.layers.0.self_attn.rotary_emb.inv_freq": (2,)})
    Checkpoint.open(write(tmp_path, weights)).check(table())


def test_a_tied_head_may_be_stored_twice_but_not_differ(tmp_path: Path) -> None:
    config = {**CONFIG, "tie_word_embeddings": True}
    weights = tensors()
    Checkpoint.open(write(tmp_path, tensors(**{"lm_head.weight": None}), config)).check(table(tie_word_embeddings=True))
    same = weights | {"lm_head.weight": weights["model.embed_tokens.weight"].copy()}
    Checkpoint.open(write(tmp_path, same, config)).check(table(tie_word_embeddings=True))
    with pytest.raises(CheckpointError, match="set tie_word_embeddings to false"):
        Checkpoint.open(write(tmp_path, weights, config)).check(table(tie_word_embeddings=True))


def test_a_nan_or_infinity_is_found_on_request(tmp_path: Path) -> None:
    weights = tensors()
    weights["model.norm.weight"][3:5] = [np.nan, np.inf]
    checkpoint = Checkpoint.open(write(tmp_path, weights))
    with pytest.raises(CheckpointError, match="model.norm.weight has 2 values that are NaN or infinite"):
        checkpoint.check_finite()


def test_a_folder_without_a_config_or_safetensors_says_what_it_has(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="no folder"):
        Checkpoint.open(tmp_path / "nowhere")
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(CheckpointError, match=r"no config.json; found: pytorch_model.bin"):
        Checkpoint.open(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"pytorch_model.bin. Remedy: only safetensors are read"):
        Checkpoint.open(tmp_path)


@pytest.mark.parametrize("text", ["{", "[1]", "\xff"], ids=["broken", "a-list", "no-utf8"])
def test_an_invalid_config_is_refused(text: str, tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(CheckpointError, match="config.json"):
        Checkpoint.open(tmp_path)


@pytest.mark.parametrize(("generation", "ends", "sampling"), [
    (None, (5,), {}),
    ({"eos_token_id": 7}, (7,), {}),
    ({"eos_token_id": [7, 8, 7], "temperature": 0.6, "top_p": 0.9}, (7, 8), {}),
    ({"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.9}, (5,), {"temperature": 0.6, "top_k": 20, "top_p": 0.9}),
    ({"repetition_penalty": 1.1}, (5,), {"repetition_penalty": 1.1}),
], ids=["none", "one", "several", "sampled", "greedy-with-penalty"])
def test_generation_defaults_are_the_checkpoints_own(generation: Any, ends: Any, sampling: Any, tmp_path: Path) -> None:
    write(tmp_path)
    if generation is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    found = Checkpoint.open(tmp_path).generation
    assert (found.end_tokens, found.sampling) == (ends, sampling)


@pytest.mark.parametrize(
    "generation", [{"eos_token_id": "</s>"}, {"do_sample": True, "temperature": "hot"}], ids=["eos", "temperature"]
)
def test_generation_defaults_of_the_wrong_type_are_refused(generation: Any, tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    with pytest.raises(CheckpointError, match="Remedy"):
        Checkpoint.open(tmp_path)


def test_a_fingerprint_names_config_and_weights_and_nothing_else(tmp_path: Path) -> None:
    def fingerprint(name: str, weights: Any = None, config: Any = CONFIG) -> str:
        (tmp_path / name).mkdir()
        return Checkpoint.open(write(tmp_path / name, weights, config)).fingerprint

    changed = tensors()
    changed["lm_head.weight"][0, 0] += 1
    reordered = dict(reversed(CONFIG.items()))
    first = fingerprint("first")
    assert first == fingerprint("again") == fingerprint("reordered", config=reordered)
    others = {
        fingerprint("changed", changed), fingerprint("half", tensors(np.float16)),
        fingerprint("config", config={**CONFIG, "rope_theta": 1.0}), fingerprint("fewer", tensors(**{"lm_head.weight": None})),
    }
    assert len(others | {first}) == 5
