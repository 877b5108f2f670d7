"""From a graph to kernels: what tracing catches, which kernel is chosen and why not another, and each device's part."""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from inferplane.core.loader import LoadOptions, load, plan_model
from inferplane.core.localize import Mesh, joining, local_spec, local_tensor
from inferplane.core.resolve import COMPOSED, Choice, Resolution, resolve
from inferplane.core.trace import Trace, trace
from inferplane.errors import ConfigError, ResolutionError, SpecError
from inferplane.model_zoo.llama import Llama
from inferplane.ops import (
    DEFAULTS,
    Add,
    AddRmsNorm,
    Attention,
    Dim,
    Embedding,
    Kernel,
    KernelPack,
    Linear,
    Moe,
    QkvRopeWrite,
    RmsNorm,
    Router,
    Spec,
    always,
)
from inferplane.platforms.contract import Options
from inferplane.platforms.families.numpy import reference_kernels
from inferplane.platforms.reference import Reference

CONFIG = {
    "model_type": "llama", "vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 8,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "tie_word_embeddings": True,
}


def llama(kind: type[Llama] = Llama, **config: Any) -> Llama:
    return kind({**CONFIG, **config}, dtype="float32", block_tokens=16)


@pytest.fixture
def reference() -> Iterator[Reference]:
    platform = Reference(Options())
    yield platform
    platform.close()


def kernel(op: str, name: str, supports: Any = always, *, batch_invariant: bool = False) -> Kernel:
    return Kernel(op, name, supports, lambda spec, *arrays: spec.reference(*arrays), batch_invariant=batch_invariant)


def never(_: Any) -> str:
    return "has no unit for it"


def narrow(spec: Linear) -> str | None:
    return None if len(spec.outputs) == 1 else f"has no fusion of {len(spec.outputs)} outputs"


# What a trace catches


class UnusedWeight(Llama):
    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        layers = [{**layer, "spare": self.norm.weight(f"layers.{i}.spare")} for i, layer in enumerate(self.weights.layers)]
        self.weights = replace(self.weights, layers=layers)


class UndeclaredWeight(Llama):
    def embed(self, ops: Any, w: Any, batch: Any) -> Any:
        return ops.embedding(self.embedding, batch.tokens, w.wte)


class MixedDtypes(Llama):
    def embed(self, ops: Any, w: Any, batch: Any) -> Any:
        x = super().embed(ops, w, batch)
        return ops.add(Add(dtype="bfloat16"), x, x)


class WrongShape(Llama):
    def head(self, ops: Any, w: Any, rows: Any, batch: Any) -> Any:
        return super().head(ops, w, rows.reshape(-1, 16), batch)


class WrongSpec(Llama):
    def embed(self, ops: Any, w: Any, batch: Any) -> Any:
        return ops.add(self.norm, super().embed(ops, w, batch), None)


class UnknownOp(Llama):
    def embed(self, ops: Any, w: Any, batch: Any) -> Any:
        return ops.softmax(self.norm, super().embed(ops, w, batch))


class ImpossibleReshape(Llama):
    def embed(self, ops: Any, w: Any, batch: Any) -> Any:
        return super().embed(ops, w, batch).reshape(-1, 33)


BROKEN: dict[str, tuple[type[Llama], type[Exception], str]] = {
    "unused-weight": (UnusedWeight, SpecError, "weight layers.0.spare is declared and never used"),
    "undeclared-weight": (UndeclaredWeight, AttributeError, "declares no weight 'wte' here; declared: embed, norm, head"),
    "mixed-dtypes": (MixedDtypes, SpecError, "add: a is float32, and the spec says bfloat16"),
    "wrong-shape": (WrongShape, SpecError, r"rms_norm: x has shape \[4, 16\], and must end in \[32\]"),
    "wrong-spec": (WrongSpec, SpecError, "ops.add was called with RmsNorm.*; its first argument is the Add spec"),
    "unknown-op": (UnknownOp, AttributeError, "there is no op 'softmax'; known: .*rms_norm"),
    "impossible-reshape": (ImpossibleReshape, SpecError, r"cannot reshape \[7, 32\] to \[-1, 33\]"),
}


@pytest.mark.parametrize(("model", "error", "match"), BROKEN.values(), ids=BROKEN)
def test_a_mistake_in_a_graph_is_caught_before_anything_loads(model: type[Llama], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        trace(llama(model))


def test_a_trace_has_every_spec_and_every_use_of_a_weight() -> None:
    model = llama()
    found = trace(model)
    ops = {spec.op for spec in found.specs}
    assert ops == {"derive", "embedding", "rms_norm", "linear", "qkv_rope_write", "attention", "add_rms_norm", "gated_linear",
                   "add", "take_rows", "sample"}
    assert found.specs[model.attention[0]] == 2, "once a layer"
    names = [part.name for use in found.uses for part in use.weight.parts]
    assert set(names) == set(model.weights.tensors())
    assert names.count("model.embed_tokens.weight") == 2, "a tied weight is used twice"


# Which kernel is chosen


def resolved(kernels: Sequence[Kernel] = (), **choices: Any) -> Resolution:
    return resolve(trace(llama()), [*kernels, *reference_kernels()], **choices)


def chosen(resolution: Resolution, op: str) -> set[str]:
    return {choice.name for choice in resolution if choice.spec.op == op}


def test_the_first_that_supports_a_spec_is_chosen_and_each_passed_over_keeps_its_reason() -> None:
    resolution = resolved([kernel("linear", "swift", never), kernel("linear", "single", narrow)])
    model = llama()
    assert resolution[model.qkv[0]].name == "numpy.reference"
    assert resolution[model.qkv[0]].passed == (("swift", "has no unit for it"), ("single", "has no fusion of 3 outputs"))
    assert resolution[model.mlps[0].down].name == "single"
    assert resolution[model.mlps[0].down].passed == (("swift", "has no unit for it"),)


def test_an_explicit_choice_is_met() -> None:
    resolution = resolved([kernel("attention", "first"), kernel("attention", "second")], explicit={"attention": "second"})
    assert chosen(resolution, "attention") == {"second"}
    assert [choice.passed for choice in resolution if choice.spec.op == "attention"] == [(("first", "second was asked for"),)]


WRONG_CHOICES: dict[str, tuple[dict[str, str], bool, str]] = {
    "unknown-kernel": ({"linear": "swifd"}, False, "kernel 'swifd' was chosen for linear.*mean 'swift'.*Known: numpy.reference, swift"),
    "unknown-op": ({"liner": "swift"}, False, "op 'liner', which does not exist. Did you mean 'linear'"),
    "kernel-of-another-op": ({"attention": "swift"}, False, "kernel 'swift' was chosen for attention, and this platform has none"),
    "unsupported": ({"linear": "swift"}, False, "swift: has no unit for it\n.*reference: swift was asked for\n.*kernel than 'swift'"),
    "required-op-composed": ({"linear": COMPOSED}, False, "kernel 'composed' was chosen for linear"),
    "not-deterministic": ({"attention": "numpy.reference"}, True, "not batch-invariant, and deterministic mode admits no other"),
}


@pytest.mark.parametrize(("explicit", "deterministic", "match"), WRONG_CHOICES.values(), ids=WRONG_CHOICES)
def test_an_explicit_choice_that_cannot_be_met_is_never_replaced(explicit: dict[str, str], deterministic: bool, match: str) -> None:
    steady = [kernel(op, "steady", batch_invariant=True) for op in Spec.families if op != "attention" or not deterministic]
    with pytest.raises(ResolutionError, match=f"(?s){match}"):
        resolved([kernel("linear", "swift", never), *(steady if deterministic else ())], explicit=explicit, deterministic=deterministic)


@pytest.mark.parametrize("setting", [{"linear": "nothing-such"}, {"linear": "composed"}], ids=["unknown", "composed"])
def test_an_engine_refuses_a_kernel_that_its_platform_lacks(small_models: ModuleType, setting: dict[str, str]) -> None:
    with pytest.raises(ResolutionError, match="this platform has none of that name"):
        small_models.random_llm("full", "reference", kernels=setting)
    with pytest.raises(ConfigError, match="Did you mean 'attention'"):
        small_models.random_llm("full", "reference", kernels={"atention": "x"})


def test_an_optional_op_without_a_kernel_is_composed_and_its_parts_are_resolved() -> None:
    resolution = resolved([kernel("add", "swift")])
    for op in DEFAULTS:
        assert chosen(resolution, op) == {COMPOSED}
    assert chosen(resolution, "rope") == chosen(resolution, "write_kv") == {"numpy.reference"}
    assert chosen(resolution, "add") == {"swift"}, "the addition before the norm is resolved like any other"


def test_an_optional_op_with_a_kernel_is_not_composed_unless_asked_for() -> None:
    kernels = [kernel("qkv_rope_write", "fused")]
    assert chosen(resolved(kernels), "qkv_rope_write") == {"fused"}
    assert chosen(resolved(kernels), "rope") == set(), "its parts are not needed"
    composed = resolved(kernels, explicit={"qkv_rope_write": COMPOSED})
    assert chosen(composed, "qkv_rope_write") == {COMPOSED}
    assert chosen(composed, "rope") == {"numpy.reference"}


def test_no_kernel_at_all_is_told_with_each_reason() -> None:
    kernels = [one for one in reference_kernels() if one.op != "attention"]
    with pytest.raises(ResolutionError, match="(?s)no kernel can do attention .*heads=4 .*the platform has no kernel for this op"):
        resolve(trace(llama()), kernels)
    with pytest.raises(ResolutionError, match="(?s)no kernel can do attention.*slow: has no unit for it.*another dtype or platform"):
        resolve(trace(llama()), [*kernels, kernel("attention", "slow", never)])


def test_deterministic_mode_admits_batch_invariant_kernels_only() -> None:
    steady = [kernel(op, "steady", batch_invariant=True) for op in Spec.families if op not in DEFAULTS]
    loose = [kernel("linear", "loose"), kernel("add_rms_norm", "loose")]
    resolution = resolve(trace(llama()), [*loose, *steady], deterministic=True)
    assert resolution.batch_invariant
    assert chosen(resolution, "linear") == {"steady"}
    assert chosen(resolution, "add_rms_norm") == {COMPOSED}
    assert all("deterministic mode" in reason for choice in resolution if choice.spec.op == "linear" for _, reason in choice.passed)
    assert not resolve(trace(llama()), [*loose, *steady]).batch_invariant


def test_deterministic_mode_runs_on_the_cpu(small_models: ModuleType) -> None:
    with small_models.random_llm("full-and-sliding", "cpu", deterministic=True) as llm:
        assert llm.loaded.resolution.batch_invariant
        assert llm.generate([3])[0].finished


def test_deterministic_mode_is_refused_where_sums_may_differ(small_models: ModuleType) -> None:
    with pytest.raises(ResolutionError, match="numpy.reference: not batch-invariant, and deterministic mode admits no other"):
        small_models.random_llm("full", "reference", deterministic=True)


def test_a_kernel_bound_against_its_own_word_raises() -> None:
    spec = RmsNorm(size=4, epsilon=1e-6, dtype="float32")
    resolution = Resolution({spec: Choice(spec, spec, kernel("rms_norm", "forced", never), (), 1)})
    with pytest.raises(ResolutionError, match="forced cannot be bound to rms_norm .*it says has no unit for it"):
        resolution.bind()


def test_bound_ops_call_the_kernel_and_the_composition() -> None:
    spec = AddRmsNorm(norm=RmsNorm(size=4, epsilon=1e-6, dtype="float32"))
    found = Trace()
    found.specs[spec] = 1
    ops = resolve(found, reference_kernels()).bind()
    x, y, weight = np.ones(4, np.float32), np.arange(4, dtype=np.float32), (np.full(4, 2.0, np.float32),)
    normed, total = ops.add_rms_norm(spec, x[None], y[None], weight)
    assert np.array_equal(total, (x + y)[None])
    assert np.allclose(normed, spec.norm.reference(total, weight))


# What a load makes of it


def test_a_pack_s_kernel_goes_before_the_platform_s_own(reference: Reference, small_models: ModuleType) -> None:
    source = small_models.RandomSource(CONFIG)
    pack = KernelPack("reference", [kernel("attention", "swift")])
    _, resolution = plan_model(source, reference, LoadOptions(), [pack])
    assert chosen(resolution, "attention") == {"swift"}
    _, resolution = plan_model(source, reference, LoadOptions(kernels={"attention": "numpy.reference"}), [pack])
    assert chosen(resolution, "attention") == {"numpy.reference"}


@pytest.mark.parametrize(("tied", "twice"), [(True, ("model.embed_tokens.weight",)), (False, ())], ids=["tied", "untied"])
def test_a_tied_weight_in_two_layouts_is_placed_twice_and_told(
    reference: Reference, small_models: ModuleType, tied: bool, twice: tuple[str, ...]
) -> None:
    loaded = load(small_models.RandomSource({**CONFIG, "tie_word_embeddings": tied}), reference)
    assert loaded.placed_twice == twice


def test_a_tied_weight_in_one_layout_is_placed_once(reference: Reference, small_models: ModuleType) -> None:
    pack = KernelPack("reference", [kernel("linear", "unpacked")])
    loaded = load(small_models.RandomSource(CONFIG), reference, packs=[pack])
    assert loaded.placed_twice == ()
    assert loaded.weights.top["head"] is loaded.weights.top["embed"]


@pytest.mark.parametrize(("setting", "match"), [
    ({"dtype": "float16"}, None),
    ({"block_size": 24}, "block_size 24 was asked for, and reference takes 16, 32, 64"),
    ({"dtype": "float8_e4m3fn"}, "dtype must be one of"),
], ids=["float16", "block-24", "float8"])
def test_a_dtype_or_block_size_is_met_or_refused(small_models: ModuleType, setting: dict[str, Any], match: str | None) -> None:
    if match is not None:
        with pytest.raises(ConfigError, match=match):
            small_models.random_llm("full", "reference", **setting)
        return
    with small_models.random_llm("full", "reference", **setting) as llm:
        assert llm.loaded.model.dtype == setting["dtype"]
        assert llm.generate([3])[0].finished


# One device's part


TWO = [Mesh.of(trace(Llama(CONFIG, dtype="float32", block_tokens=16)).specs, 2, rank) for rank in range(2)]


def localized(model: Llama, mesh: Mesh) -> dict[Spec, Any]:
    return {spec: local_spec(spec, mesh) for spec in trace(model).specs}


def test_two_devices_get_half_of_every_sharded_axis() -> None:
    model = llama()
    local = localized(model, TWO[0])
    assert local == localized(model, TWO[1]), "every device computes the same specs"
    attention, qkv, out = local[model.attention[0]], local[model.qkv[0]], local[model.out[0]]
    assert isinstance(attention, Attention) and isinstance(qkv, Linear)
    assert (attention.heads, attention.kv_heads, attention.key_dim) == (Dim(2, "heads"), Dim(1, "kv_heads"), 8)
    assert (qkv.input, [dim.size for dim in qkv.outputs]) == (Dim(32, "embed"), [16, 8, 8])
    assert (out.input, out.outputs) == (Dim(16, "heads"), (Dim(32, "embed"),))
    assert [dim.size for dim in local[model.mlps[0].gate_up].linear.outputs] == [24, 24]
    assert local[model.mlps[0].down].input == Dim(24, "mlp")
    assert local[model.lm_head].outputs == (Dim(48, "vocab"),)
    embedding, fused = local[model.embedding], local[model.rope_write[0]]
    assert isinstance(embedding, Embedding) and (embedding.vocab.size, embedding.size) == (96, 16), "columns, so that no token is missing"
    assert isinstance(fused, QkvRopeWrite)
    assert (fused.query.heads.size, fused.key.heads.size, fused.write.kv_heads.size) == (2, 1, 1)
    assert local[model.norm] == model.norm, "what is not sharded stays as it is"


def test_results_are_added_up_where_an_input_is_divided_and_gathered_where_an_output_must_be_whole() -> None:
    model = llama()
    mlp = model.mlps[0]
    specs = {"qkv": model.qkv[0], "out": model.out[0], "gate_up": mlp.gate_up, "down": mlp.down}
    specs |= {"head": model.lm_head, "embed": model.embedding}
    assert {name: joining(spec, local_spec(spec, TWO[0])) for name, spec in specs.items()} == {
        "qkv": None, "out": "sum", "gate_up": None, "down": "sum", "head": "gather", "embed": "gather"}


def test_one_device_keeps_the_very_specs() -> None:
    assert all(local is spec for spec, local in localized(llama(), Mesh.single()).items())


def test_experts_are_divided_within_and_chosen_by_all() -> None:
    mesh = Mesh({"mlp": 2}, 1, 2)
    router = Router(experts=Dim(4, "experts"), top_k=2)
    moe = Moe(experts=Dim(4, "experts"), embed=8, mlp=Dim(4, "mlp"), top_k=2, activation="silu", dtype="float32")
    local = local_spec(moe, mesh)
    assert local_spec(router, mesh) == router
    assert (local.experts.size, local.mlp.size, joining(moe, local)) == (4, 2, "sum")


def test_the_parts_of_a_tensor_make_the_whole(small_models: ModuleType) -> None:
    model = llama(tie_word_embeddings=False, attention_bias=True)
    source = small_models.RandomSource({**CONFIG, "tie_word_embeddings": False, "attention_bias": True})
    source.check(model.weights)
    sharded = 0
    for name, tensor in model.weights.tensors().items():
        whole = source.tensor(name)
        parts = [local_tensor(whole, tensor, mesh) for mesh in TWO]
        cut = [d for d, axis in enumerate(tensor.axes) if TWO[0].ways.get(axis or "", 1) > 1]
        sharded += len(cut)
        assert all(part.base is not None for part in parts), "a view, not a copy"
        assert np.array_equal(np.concatenate(parts, axis=cut[0]) if cut else parts[1], whole)
    assert sharded == 2 * (7 + 3) + 2, "projections, their biases, embedding and head"


def test_the_partial_sums_of_two_devices_add_up(small_models: ModuleType) -> None:
    model = llama()
    source = small_models.RandomSource(CONFIG)
    source.check(model.weights)
    [tensor] = model.weights.layers[0]["down"].tensors
    x = np.random.default_rng(0).normal(size=(5, 48)).astype(np.float32)
    weight, down = source.tensor(tensor.name), model.mlps[0].down
    parts = [
        local_spec(down, mesh).reference(x[:, 24 * mesh.rank : 24 * (mesh.rank + 1)], (local_tensor(weight, tensor, mesh),), None)
        for mesh in TWO
    ]
    assert np.allclose(sum(parts), model.mlps[0].down.reference(x, (weight,), None))


def test_a_resolution_is_made_of_local_specs() -> None:
    asked: list[Spec] = []

    def remember(spec: Spec) -> None:
        asked.append(spec)

    resolution = resolve(trace(llama()), [kernel("attention", "curious", remember), *reference_kernels()], mesh=TWO[1])
    [choice] = [choice for choice in resolution if choice.spec.op == "attention"]
    assert choice.spec.heads.size == 4 and choice.local.heads.size == 2
    assert asked == [choice.local], "a kernel is asked about what it will be given"
