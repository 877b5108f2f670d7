"""A model on several devices computes what it computes on one: each device a thread with the torch family and gloo between them."""
from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from inferplane.conformance.case import GOOD, Verdict
from inferplane.conformance.cases import FAMILIES, spread
from inferplane.conformance.models import RandomSource, greedy
from inferplane.conformance.rig import Rig
from inferplane.core import loader, localize, resolve
from inferplane.core.loader import Loaded, LoadOptions, load, plan_model
from inferplane.core.localize import Mesh, local_codes, local_groups, local_spec, local_tensor
from inferplane.core.score import logits
from inferplane.errors import ConfigError, PlatformUnavailable, SpecError
from inferplane.ops import Attention, Dim, Linear, Quantized, Scheme, StateArray, StateGroup, Tensor
from inferplane.ops.quantize import dequantized, quantize
from inferplane.platforms.contract import Options, World
from inferplane.platforms.reference import Reference

torch = pytest.importorskip("torch")

PROMPT = list(range(3, 20))
STEPS = 12
LLAMA = {
    "model_type": "llama", "vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 8,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
}
MODELS: dict[str, dict[str, Any]] = {
    "llama": LLAMA,
    "tied": {**LLAMA, "tie_word_embeddings": True},
    "all-biases": {**LLAMA, "attention_bias": True, "mlp_bias": True},
    "one-kv-head": {**LLAMA, "num_key_value_heads": 1},
    "odd-vocabulary": {**LLAMA, "vocab_size": 97},
    "qwen2": {**LLAMA, "model_type": "qwen2"},
    "qwen3": {**LLAMA, "model_type": "qwen3"},
    "gemma2": {**LLAMA, "model_type": "gemma2", "sliding_window": 5, "query_pre_attn_scalar": 8},
    "mixtral": {**LLAMA, "model_type": "mixtral", "num_local_experts": 5, "num_experts_per_tok": 2},
    "qwen3_moe": {
        **LLAMA, "model_type": "qwen3_moe", "num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 20,
        "decoder_sparse_step": 2, "norm_topk_prob": True,
    },
    "gpt_oss": {
        **{name: value for name, value in LLAMA.items() if name != "head_dim"}, "model_type": "gpt_oss", "sliding_window": 7,
        "num_local_experts": 3, "num_experts_per_tok": 2, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    },
    "deepseek_v3": {
        **{name: value for name, value in LLAMA.items() if name != "head_dim"}, "model_type": "deepseek_v3", "num_key_value_heads": 4,
        "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 2, "topk_group": 1, "moe_intermediate_size": 40,
        "first_k_dense_replace": 1, "q_lora_rank": 20, "kv_lora_rank": 24, "qk_nope_head_dim": 10, "qk_rope_head_dim": 8, "v_head_dim": 12,
    },
}


@pytest.fixture(scope="module")
def torch_cpu(devices: ModuleType) -> type[Any]:
    kind: type[Any] = devices.TorchCpu
    return kind


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """Each device takes its share of them, and here all are in one process."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def on(torch_cpu: type[Any], tmp_path: Path) -> Iterator[Callable[..., list[Any]]]:
    """on(devices, config, work, **options): what `work(loaded)` gives on each device of a model."""
    count = iter(range(100))

    def run(devices: int, config: dict[str, Any], work: Callable[[Loaded], Any], **options: Any) -> list[Any]:
        meeting = tmp_path / str(next(count))
        meeting.mkdir()

        def device(rank: int) -> Any:
            platform, world = torch_cpu(Options(rank=rank)), World(rank, devices, meeting, timeout_seconds=60)
            collectives = platform.collectives(world) if devices > 1 else None
            try:
                source = RandomSource(config)
                settings = LoadOptions(**{"dtype": "float32", "max_model_len": 64, **options})
                return work(load(source, platform, settings, world=world, collectives=collectives))
            finally:
                platform.close()
                if collectives is not None:
                    collectives.close()

        with ThreadPoolExecutor(devices) as pool:
            return list(pool.map(device, range(devices)))

    return run


def tokens(loaded: Loaded) -> Any:
    return greedy(loaded, PROMPT, STEPS).tolist()


# The same tokens


@pytest.mark.parametrize("model", MODELS)
def test_two_devices_give_the_tokens_of_one(model: str, on: Callable[..., list[Any]]) -> None:
    [alone], together = on(1, MODELS[model], tokens), on(2, MODELS[model], tokens)
    assert together == [alone, alone]
    assert len(set(alone)) > 1, "a model that repeats itself shows nothing"


@pytest.mark.parametrize("model", ["llama", "all-biases", "gpt_oss"])
def test_key_value_heads_are_held_by_several_of_four_devices(model: str, on: Callable[..., list[Any]]) -> None:
    config = {**MODELS[model], "num_attention_heads": 4, "num_key_value_heads": 2}
    [alone], together = on(1, config, tokens), on(4, config, tokens)
    assert together == [alone] * 4


@pytest.mark.parametrize("quantization", ["float8_e4m3fn", "int8:g8", "int4:g8:zeros", "int8:a8g8", "float8_e4m3fn:rall"])
def test_quantized_weights_give_the_tokens_of_one_device(quantization: str, on: Callable[..., list[Any]]) -> None:
    [alone], together = (on(devices, MODELS["qwen2"], tokens, quantization=quantization) for devices in (1, 2))
    assert together == [alone, alone]


@pytest.mark.parametrize("kv_dtype", ["int8", "float8_e4m3fn"])
def test_kv_in_codes_gives_the_tokens_of_one_device(kv_dtype: str, on: Callable[..., list[Any]]) -> None:
    [alone], together = (on(devices, MODELS["llama"], tokens, kv_dtype=kv_dtype) for devices in (1, 2))
    assert together == [alone, alone]


@pytest.mark.parametrize("model", ["all-biases", "gemma2", "mixtral"])
def test_logits_are_the_same_bits_on_every_device_and_in_every_run(model: str, on: Callable[..., list[Any]]) -> None:
    def scored(loaded: Loaded) -> Any:
        return logits(loaded, PROMPT)

    [alone] = on(1, MODELS[model], scored)
    first, second = on(2, MODELS[model], scored)
    assert np.array_equal(first, second)
    assert np.array_equal(first, on(2, MODELS[model], scored)[0])
    assert np.abs(first - alone).max() <= 1e-4 * np.abs(alone).max()


def test_a_sum_in_bfloat16_is_rounded_once(on: Callable[..., list[Any]]) -> None:
    def scored(loaded: Loaded) -> Any:
        return logits(loaded, PROMPT)

    [exact] = on(1, MODELS["llama"], scored)
    [alone], [divided, _] = on(1, MODELS["llama"], scored, dtype="bfloat16"), on(2, MODELS["llama"], scored, dtype="bfloat16")
    assert np.abs(divided - exact).mean() <= 1.25 * np.abs(alone - exact).mean()


# Planted bugs, each of which the comparison above must see


def without_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    joining = localize.joining
    monkeypatch.setattr(resolve, "joining", lambda spec, local: None if joining(spec, local) == "sum" else joining(spec, local))


def with_the_first_part_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the second tensor of a fused linear: every device takes the keys of the first."""
    def wrong(array: Any, tensor: Tensor, mesh: Mesh) -> Any:
        return local_tensor(array, tensor, Mesh(mesh.ways, 0, mesh.size) if "k_proj" in tensor.name else mesh)

    monkeypatch.setattr(loader, "local_tensor", wrong)


def with_biases_added_by_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "once", lambda bias, tensor, mesh: bias)


def with_neighbours_exchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Embedding and logits are put together in the wrong order."""
    from inferplane.platforms.families.torch.collectives import TorchCollectives

    parts = TorchCollectives._parts
    monkeypatch.setattr(TorchCollectives, "_parts", lambda self, array: parts(self, array)[::-1])


def with_heads_interleaved(monkeypatch: pytest.MonkeyPatch) -> None:
    """Query heads of one half meet the key/value heads of the other."""
    def wrong(array: Any, tensor: Tensor, mesh: Mesh) -> Any:
        return local_tensor(array, tensor, Mesh(mesh.ways, mesh.size - 1 - mesh.rank, mesh.size) if "q_proj" in tensor.name else mesh)

    monkeypatch.setattr(loader, "local_tensor", wrong)


@pytest.mark.parametrize(("plant", "model"), [
    (without_sums, "llama"), (without_sums, "mixtral"), (with_biases_added_by_each, "gpt_oss"), (with_the_first_part_for_all, "qwen2"),
    (with_biases_added_by_each, "all-biases"),
    (with_neighbours_exchanged, "llama"), (with_heads_interleaved, "gemma2"),
], ids=lambda value: value if isinstance(value, str) else value.__name__.replace("_", "-"))
def test_a_planted_bug_changes_the_tokens(
    plant: Callable[[pytest.MonkeyPatch], None], model: str, on: Callable[..., list[Any]], monkeypatch: pytest.MonkeyPatch,
) -> None:
    [alone] = on(1, MODELS[model], tokens)
    plant(monkeypatch)
    assert on(2, MODELS[model], tokens) != [alone, alone]


@pytest.mark.parametrize("family", ["parallel.sums", "parallel.tokens"])
def test_the_conformance_cases_pass_over_gloo(family: str, torch_cpu: type[Any]) -> None:
    platform = torch_cpu(Options())
    rig = Rig(platform, device=lambda rank: torch_cpu(Options(rank=rank)))
    try:
        found = {case.id: case.run(rig) for case in spread(FAMILIES[family])[:6]}
    finally:
        platform.close()
    assert not {case: outcome for case, outcome in found.items() if outcome.verdict not in GOOD}
    assert any(outcome.verdict is Verdict.PASS for outcome in found.values())


# What is divided, and what is refused


def planned(config: dict[str, Any], devices: int, **options: Any) -> Any:
    return plan_model(RandomSource(config), Reference(Options()), LoadOptions(dtype="float32", **options), world=World(0, devices))


@pytest.mark.parametrize(("change", "devices", "told"), [
    ({}, 3, "heads of size 4 do not divide 3 ways; use one of 1, 2, 4"),
    ({"intermediate_size": 49}, 2, "mlp of size 49 do not divide 2 ways; use one of 1$"),
    ({"num_attention_heads": 12, "num_key_value_heads": 4}, 6, "4 key/value heads can neither be divided among 6 devices"),
], ids=["heads", "mlp", "kv-heads"])
def test_a_number_of_devices_that_does_not_fit_is_refused_with_those_that_do(change: dict[str, int], devices: int, told: str) -> None:
    with pytest.raises(ConfigError, match=f"tensor_parallel {devices} was asked for, and .*{told}"):
        planned({**LLAMA, **change}, devices)


@pytest.mark.parametrize(("scheme", "told"), [
    ("int8:g32", "heads of size 32 on 2 devices leaves 16 for each, within a group of 32 inputs"),
    ("int8:r32", "heads of size 32 on 2 devices leaves 16 for each, within a group of 32 outputs"),
    ("int8:a8", "activations share one scale, and no device of 2 sees them all; use one device, or a scheme with groups"),
    ("int8:a8g32", "within a group of 32 activations"),
], ids=["inputs", "outputs", "one-activation-scale", "activations"])
def test_a_border_inside_a_group_of_a_scheme_is_refused(scheme: str, told: str) -> None:
    with pytest.raises(SpecError, match=told):
        planned(LLAMA, 2, quantization=scheme)


def test_a_platform_without_collectives_says_so() -> None:
    with pytest.raises(PlatformUnavailable, match="platform 'reference' computes a model on one device. Leave tensor_parallel out."):
        Reference(Options()).collectives(World(0, 2))


@pytest.mark.parametrize("scheme", ["int8", "int8:g4", "int4:g8:zeros", "float8_e4m3fn:g8:r4", "int8:rall"])
@pytest.mark.parametrize("axes", [("heads", None), (None, "heads")], ids=["outputs", "inputs"])
def test_the_parts_of_a_quantized_weight_make_the_whole(scheme: str, axes: tuple[str | None, ...]) -> None:
    parsed = Scheme.parse(scheme)
    tensor = Tensor("w.weight", (16, 32), axes)
    whole = quantize(np.random.default_rng(0).normal(size=tensor.shape).astype(np.float32), parsed)
    parts = [local_codes(whole, parsed, tensor, Mesh({"heads": 2}, rank, 2)) for rank in range(2)]
    assert all(isinstance(part, Quantized) and part.codes.base is not None for part in parts), "views, no copies"
    joined = np.concatenate([dequantized(part, parsed) for part in parts], axis=axes.index("heads"))
    assert np.array_equal(joined, dequantized(whole, parsed))


def test_state_and_slopes_are_divided_by_heads() -> None:
    mesh = Mesh({"heads": 4, "kv_heads": 2}, 3, 4)
    group = StateGroup("full", (0,), {"k": StateArray(2, 8, "float32"), "scale": StateArray(2, 1, "float32")})
    assert {name: array.heads for name, array in local_groups([group], mesh)[0].arrays.items()} == {"k": 1, "scale": 1}
    spec = Attention(
        heads=Dim(4, "heads"), kv_heads=Dim(2, "kv_heads"), key_dim=8, value_dim=8, scale=1.0, dtype="float32",
        alibi=(0.5, 0.25, 0.125, 0.0625),
    )
    assert local_spec(spec, mesh).alibi == (0.0625,)
    assert mesh.ours(16, "kv_heads", "k") == slice(8, 16), "devices 2 and 3 hold the second key/value head"


def test_a_device_reads_its_own_part_of_the_weights(
    on: Callable[..., list[Any]], monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What a kernel gets is a view of the source's array, as large as the part."""
    given: list[tuple[Sequence[int], Sequence[int]]] = []

    def seen(array: Any, tensor: Tensor, mesh: Mesh) -> Any:
        part = local_tensor(array, tensor, mesh)
        assert part.base is not None
        given.append((array.shape, part.shape))
        return part

    monkeypatch.setattr(loader, "local_tensor", seen)
    on(2, MODELS["mixtral"], lambda loaded: None)
    halves = [part for whole, part in given if np.prod(part) * 2 == np.prod(whole)]
    layers, linears, experts = 2, 4, 5 * 3
    assert len(halves) == 2 * (layers * (linears + experts) + 2), "all but norms and routers, on both devices"


def test_linears_of_one_input_are_added_up_in_float32() -> None:
    spec = Linear(input=Dim(8, "mlp"), outputs=(Dim(4, "embed"),), dtype="bfloat16")
    local = local_spec(spec, Mesh({"mlp": 2}, 0, 2))
    assert (local.input.size, local.out_dtype) == (4, "float32")
