"""xpu without an Intel GPU: tokens equal the reference's, what is missing stands in the table, and IPEX's answers."""
from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from inferplane import LLM, SamplingParams, errors  # noqa: E402
from inferplane.ops import AddRmsNorm, Attention, Dim, GatedActivation, RmsNorm, Rope, WriteKV  # noqa: E402
from inferplane.platforms.contract import Options  # noqa: E402
from inferplane.platforms.families.triton.launches import table  # noqa: E402
from inferplane.platforms.xpu import Xpu, ipex, platform, triton  # noqa: E402

PROMPTS = ["The capital of France is", "Repeat after me: blue, green,"]
GREEDY = SamplingParams(max_tokens=10, temperature=0.0)
DRAWN = [SamplingParams(max_tokens=6, temperature=0.9, top_k=20, top_p=0.9, seed=3), SamplingParams(max_tokens=6, min_p=0.05, seed=4)]
HEADS: dict[str, Any] = {"heads": Dim(4), "kv_heads": Dim(2), "key_dim": 16, "value_dim": 16, "scale": 0.25, "dtype": "float32"}
CELL: dict[str, Any] = {"kv_heads": Dim(2), "key_dim": 16, "value_dim": 16, "dtype": "float32"}
PRODUCTS = {"linear", "quantized_linear", "experts"}
TURNS = tuple(1.0 / (place + 1) for place in range(8))


def tokens(name: str, params: Any) -> list[Any]:
    llm = LLM("tiny", platform=name, dtype="float32")
    return [output.outputs[0].token_ids for output in llm.generate(PROMPTS, params)]


@pytest.mark.parametrize("params", [GREEDY, DRAWN], ids=["greedy", "drawn"])
def test_the_embedded_model_gives_the_references_tokens(params: Any) -> None:
    assert tokens("xpu:emulated", params) == tokens("reference", params)


class TestTheTable:
    def test_what_is_not_installed_says_so(self, monkeypatch: Any) -> None:
        monkeypatch.setattr(ipex, "find_spec", lambda name: None)
        opened = Xpu(Options("emulated"))
        spec = RmsNorm(size=16, epsilon=1e-5, dtype="float32")
        answers = {kernel.name: kernel.supports(spec) for kernel in opened.kernels() if kernel.op == "rms_norm"}
        opened.close()
        assert answers == {
            "ipex.rms_norm": "intel_extension_for_pytorch is not installed",
            "triton.rms_norm": "Triton's backend for Intel needs the GPU",
            "torch.rms_norm": None,
        }

    def test_a_triton_without_intels_backend_says_so(self, monkeypatch: Any) -> None:
        monkeypatch.setattr(triton, "find_spec", lambda name: object() if name == "triton" else None)
        assert {kernel.supports(None) for kernel in triton.triton_kernels(torch.device("xpu", 0))} == {
            "the installed triton has no backend for Intel GPUs"}

    @pytest.mark.parametrize("kernel", sorted({*table()} - PRODUCTS))
    def test_every_triton_kernel_but_products_has_a_launch_for_a_vendor_that_the_table_does_not_name(self, kernel: str) -> None:
        assert any(entry["target"] == "any" for entry in table()[kernel])

    def test_an_emulated_platform_says_so_in_its_grade(self) -> None:
        opened = Xpu(Options("emulated"))
        opened.close()
        assert opened.capabilities.grade == "interpreted"
        assert opened.capabilities.devices == ("cpu",)


class TestIpex:
    """What its kernels answer where they are installed; `nox -s ipex` runs them."""

    ANSWERS = ipex.Ipex(torch.device("cpu"), installed=True)

    @pytest.mark.parametrize(("question", "spec", "reason"), [
        ("supports_norm", RmsNorm(size=16, epsilon=1e-5, dtype="bfloat16"), None),
        ("supports_norm", RmsNorm(size=16, epsilon=1e-5, dtype="float64"), "dtype float64"),
        ("supports_add_norm", AddRmsNorm(norm=RmsNorm(size=16, epsilon=1e-5, dtype="bfloat16")), "rounds the sum"),
        ("supports_gated", GatedActivation(kind="silu", dtype="float32"), "under torch.compile"),
        ("supports_gated", GatedActivation(kind="gelu", dtype="float32"), "knows silu alone"),
        ("supports_rope", Rope(heads=Dim(2), head_dim=16, frequencies=TURNS, dtype="float32"), None),
        ("supports_rope", Rope(heads=Dim(2), head_dim=20, frequencies=TURNS, dtype="float32"), "16 of 20 dims"),
        ("supports_write", WriteKV(**CELL), None),
        ("supports_write", WriteKV(**CELL, kv_dtype="int8"), "a cell of codes"),
        ("supports_write", WriteKV(**{**CELL, "value_dim": 8}), "keys of 16 and values of 8"),
        ("supports_attention", Attention(**HEADS), None),
        ("supports_attention", Attention(**HEADS, sinks=True), "sinks"),
    ])
    def test_it_takes_what_its_functions_can_and_says_why_not_otherwise(self, question: str, spec: Any, reason: str | None) -> None:
        answer = getattr(self.ANSWERS, question)(spec)
        assert answer is None if reason is None else reason in answer


class TestTheProbe:
    def test_without_a_gpu_it_tells_what_was_looked_for_and_of_the_emulation(self, monkeypatch: Any) -> None:
        monkeypatch.setattr(platform, "glob", lambda pattern: [])
        found = Xpu.probe(Options())
        assert not found.usable
        assert "/sys/bus/pci/drivers/xe/0*" in found.reason
        assert "xpu:emulated" in found.remedy

    def test_a_gpu_needs_a_torch_that_is_built_for_it(self, monkeypatch: Any, tmp_path: Any) -> None:
        (tmp_path / "lib").mkdir()
        monkeypatch.setattr(platform, "glob", lambda pattern: ["/sys/bus/pci/drivers/xe/0000:03:00.0"])
        monkeypatch.setattr(platform, "find_spec", lambda name: type("Spec", (), {"origin": str(tmp_path / "__init__.py")}))
        assert "torch is not built for Intel GPUs" in Xpu.probe(Options()).reason
        (tmp_path / "lib" / "libtorch_xpu.so").touch()
        assert Xpu.probe(Options()).usable

    def test_without_torch_it_says_what_to_install(self, monkeypatch: Any) -> None:
        monkeypatch.setattr(platform, "find_spec", lambda name: None)
        assert Xpu.probe(Options("emulated")).reason == "Python lacks torch"

    @pytest.mark.parametrize("options", [Options("fast"), Options("emulated", None, {"tile": "1"})], ids=["word", "pair"])
    def test_options_that_mean_nothing_raise(self, options: Options) -> None:
        with pytest.raises(errors.ConfigError, match="number of a device or 'emulated'"):
            Xpu(options)
