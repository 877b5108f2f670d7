"""cuda and rocm without a GPU: what their probes say, their launch table, the interpreter, and the same tokens as the reference."""
from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import ml_dtypes
import numpy as np
import pytest

torch = pytest.importorskip("torch")
triton = pytest.importorskip("triton")

from inferplane import LLM, SamplingParams, errors  # noqa: E402
from inferplane.platforms import registry  # noqa: E402
from inferplane.platforms.contract import Options  # noqa: E402
from inferplane.platforms.cuda import Cuda  # noqa: E402
from inferplane.platforms.families.triton import interpreted, launches, platform, rows_kernel, target  # noqa: E402
from inferplane.platforms.families.triton.device import on_chip  # noqa: E402
from inferplane.platforms.families.triton.launches import Launch, launch_of  # noqa: E402
from inferplane.platforms.rocm import Rocm  # noqa: E402

PROMPTS = ["The capital of France is", "Repeat after me: blue, green,"]
DRAWN = [SamplingParams(max_tokens=6, temperature=0.9, top_k=20, top_p=0.9, seed=3), SamplingParams(max_tokens=6, min_p=0.05, seed=4)]


def tokens(name: str, params: Any) -> list[Any]:
    llm = LLM("tiny", platform=name, dtype="float32")
    return [output.outputs[0].token_ids for output in llm.generate(PROMPTS, params)]


@pytest.mark.slow
def test_the_embedded_model_draws_the_references_tokens() -> None:
    assert tokens("cuda:interpreted", DRAWN) == tokens("reference", DRAWN)


def test_an_interpreted_platform_says_so_in_its_grade() -> None:
    opened = registry.named("rocm:interpreted")
    try:
        assert opened.capabilities.grade == "interpreted"
        assert opened.capabilities.devices == ("cpu",)
        assert opened.capabilities.buckets is None
    finally:
        opened.close()


@pytest.mark.parametrize("name", ["allow_bf16_reduced_precision_reduction", "allow_fp16_reduced_precision_reduction"])
def test_on_a_chip_the_vendors_library_keeps_its_partial_sums_in_float32(name: str) -> None:
    matmul = torch.backends.cuda.matmul
    setattr(matmul, name, True)
    on_chip(torch.device("cuda", 0))
    assert getattr(matmul, name) is False


class TestTheProbe:
    @pytest.mark.parametrize("platform_class", [Cuda, Rocm], ids=["cuda", "rocm"])
    def test_without_a_gpu_it_tells_what_was_looked_for_and_of_the_interpreter(self, platform_class: Any, monkeypatch: Any) -> None:
        monkeypatch.setattr(platform, "glob", lambda pattern: [])
        found = platform_class.probe(Options())
        assert not found.usable
        assert platform_class.nodes[0] in found.reason
        assert f"{platform_class.name}:interpreted" in found.remedy

    def test_without_triton_it_says_what_to_install(self, monkeypatch: Any) -> None:
        monkeypatch.setattr(platform, "glob", lambda pattern: ["/dev/nvidia0"])
        monkeypatch.setattr(platform, "find_spec", lambda name: None)
        assert Cuda.probe(Options()).reason == "found NVIDIA GPU (/dev/nvidia0), Python lacks torch and triton"
        assert "pip install 'inferplane[cuda]'" in Cuda.probe(Options()).remedy
        assert not Cuda.probe(Options("interpreted")).usable

    @pytest.mark.parametrize(("line", "usable"), [("cuda: Optional[str] = '13.0'", True), ("cuda: Optional[str] = None", False)],
                             ids=["with", "without"])
    def test_it_reads_what_torch_was_built_for(self, line: str, usable: bool, monkeypatch: Any, tmp_path: Path) -> None:
        (tmp_path / "version.py").write_text(f"{line}\nhip: Optional[str] = None\n")
        monkeypatch.setattr(platform, "glob", lambda pattern: ["/dev/nvidia0"])
        monkeypatch.setattr(platform, "find_spec", lambda name: type("Spec", (), {"origin": str(tmp_path / "__init__.py")}))
        assert Cuda.probe(Options()).usable is usable

    @pytest.mark.parametrize("options", [Options("fast"), Options("interpreted", None, {"sm": "90"})], ids=["word", "pair"])
    def test_options_that_mean_nothing_raise(self, options: Options) -> None:
        with pytest.raises(errors.ConfigError, match="number of a device or 'interpreted'"):
            Cuda(options)


class TestTheLaunchTable:
    ENTRIES: ClassVar = {"k": [
        {"target": "any", "key": {"size": 64}, "meta": {"BLOCK": 1}},
        {"target": "any", "meta": {"BLOCK": 2}},
        {"target": "nvidia", "key": {"kind": "wide"}, "meta": {"BLOCK": 3}, "options": {"num_warps": 8}},
        {"target": "sm_90", "key": {"size": 16}, "meta": {"BLOCK": 4}},
        {"target": "interpreted", "key": {"size": 8}, "meta": {"BLOCK": 5}},
    ]}

    @pytest.fixture(autouse=True)
    def table(self, monkeypatch: Any) -> Iterator[None]:
        monkeypatch.setattr(launches, "table", lambda: self.ENTRIES)
        launches._found.cache_clear()
        yield
        launches._found.cache_clear()

    @pytest.mark.parametrize(("arch", "key", "block"), [
        pytest.param("sm_90", {"size": 16, "kind": "wide"}, 4, id="its arch before its vendor"),
        pytest.param("sm_90", {"size": 17, "kind": "wide"}, 3, id="its vendor before any"),
        pytest.param("sm_80", {"size": 16}, 1, id="of any chip the first that fits"),
        pytest.param("gfx942", {"size": 65, "kind": "wide"}, 2, id="not another vendor's"),
    ])
    def test_the_nearest_entry_that_fits_is_taken(self, arch: str, key: dict[str, Any], block: int) -> None:
        assert launch_of(target.TARGETS[arch], "k", **key).meta == {"BLOCK": block}

    def test_the_interpreter_takes_its_own_first(self) -> None:
        assert launch_of(target.interpreted("nvidia"), "k", size=8).meta == {"BLOCK": 5}
        assert launch_of(target.interpreted("nvidia"), "k", size=9).meta == {"BLOCK": 4}

    def test_where_nothing_fits_the_error_names_kernel_and_key(self) -> None:
        with pytest.raises(errors.PlatformLoadError, match="'other' on sm_80 with {'size': 3}"):
            launch_of(target.TARGETS["sm_80"], "other", size=3)


def test_the_real_table_names_known_targets_only() -> None:
    known = {*target.TARGETS, "nvidia", "amd", "any", "interpreted"}
    assert {entry["target"] for entries in launches.table().values() for entry in entries} <= known


class TestTheInterpreter:
    def test_a_kernel_can_be_interpreted_and_compiled_in_one_process(self) -> None:
        from inferplane.ops import RmsNorm
        from inferplane.platforms.families.triton.compiled import Compiler
        from inferplane.platforms.families.triton.rows import rms_norm

        def compiles() -> bool:
            compiler = Compiler(target.TARGETS["gfx942"])
            x = torch.zeros(3, 20, device="meta")
            rms_norm(compiler.device, RmsNorm(size=20, epsilon=1e-6, dtype="float32"), x, (x[0],))
            return all(one.fits for one in compiler.made) and len(compiler.made) == 1

        assert compiles()
        x, out = torch.randn(3, 20), torch.empty(3, 20)
        arguments = (out, x, torch.ones(20), 3, 20, 1, 20, 0, 1e-6)
        interpreted.start(rows_kernel.rms_norm, (1,), arguments, {"ROWS": 4, "BLOCK": 32}, Launch({}, {}))
        assert torch.allclose(out, torch.nn.functional.rms_norm(x, (20,), eps=1e-6), atol=1e-6)
        triton.knobs.compilation.always_compile = True
        try:
            assert compiles()
        finally:
            triton.knobs.compilation.always_compile = False

    @pytest.mark.parametrize(("name", "dtype"), [("bf16", ml_dtypes.bfloat16), ("fp16", np.float16), ("fp8e4nv", ml_dtypes.float8_e4m3fn)],
                             ids=["bf16", "fp16", "e4m3"])
    def test_conversions_go_to_the_nearest_and_ties_to_even(self, name: str, dtype: Any) -> None:
        near = np.array([1.0, 1.0 + 2.0**-8, 1.0 + 3 * 2.0**-8, -3.14159, 1e-3, 0.0, 447.9], np.float32)
        source, aim = (type("Type", (), {"name": one}) for one in ("fp32", name))
        made = interpreted.converted(near.view(np.uint32), source, aim, None).view(dtype)
        assert np.array_equal(made, near.astype(dtype))

    def test_nan_of_amds_float8_stays_nan(self) -> None:
        source, aim = (type("Type", (), {"name": one}) for one in ("fp8e4b8", "fp32"))
        assert np.isnan(interpreted.converted(np.array([0x80], np.uint8), source, aim, None).view(np.float32)).all()
