"""Discovery: what is installed is found, what is named is loaded alone, and what cannot be used says why and what to do."""
from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent
from typing import Any

import inferplane
import pytest
from inferplane import errors
from inferplane.platforms import registry
from inferplane.platforms.contract import CONTRACT, Options

PLUGINS = Path(__file__).parent / "plugins"
OURS = {"reference", "cpu", "cuda", "rocm", "tpu", "xpu", "gaudi"}
ABSENT = ["gaudi", "tpu", "xpu"]
"""What this machine has none of."""
TINY = Path(inferplane.__file__).parent / "model_zoo" / "tiny" / "checkpoint"

FOREIGN_PACK = "from inferplane.ops import KernelPack\nthing = KernelPack('cpu', [])"

Python = Callable[..., str]


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """plugin -> a folder into which pip installed it."""
    made: dict[str, Path] = {}

    def install(plugin: str) -> Path:
        if plugin not in made:
            folder = tmp_path_factory.mktemp(plugin)
            shutil.copytree(PLUGINS / plugin, folder / "source")
            pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
            subprocess.run([*pip, "--target", str(folder / "site"), str(folder / "source")], check=True, timeout=120)
            made[plugin] = folder / "site"
        return made[plugin]

    return install


@pytest.fixture
def python(tmp_path: Path, installed: Callable[[str], Path]) -> Python:
    """python(code, *plugins): what a fresh interpreter prints that sees those plugins."""

    def run(code: str, *plugins: str) -> str:
        paths = [str(installed(plugin)) for plugin in plugins]
        start = f"import sys; sys.path[:0] = {paths!r}\n"
        command = [sys.executable, "-c", start + dedent(code)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    return run


@pytest.fixture
def register(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """register(entry, source, group): a distribution that exists only while the test runs."""
    monkeypatch.syspath_prepend(tmp_path)
    count = iter(range(100))

    def add(entry: str, source: str, group: str = registry.PLATFORMS) -> None:
        module = f"outside_{tmp_path.name.replace('-', '_')}_{next(count)}"
        (tmp_path / f"{module}.py").write_text(dedent(source), encoding="utf-8")
        facts = tmp_path / f"{module}-1.0.dist-info"
        facts.mkdir()
        (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n", encoding="utf-8")
        (facts / "entry_points.txt").write_text(f"[{group}]\n{entry} = {module}:thing\n", encoding="utf-8")

    return add


def platform_source(name: str = "outside", contract: object = CONTRACT, preference: int = 50) -> str:
    return f"""
    from inferplane.platforms.contract import Availability, Capabilities
    from inferplane.platforms.families.numpy import HostPlatform, reference_kernels

    class thing(HostPlatform):
        name, contract, preference = {name!r}, {contract!r}, {preference}
        capabilities = Capabilities(dtypes=("float32",))

        def __init__(self, options):
            super().__init__(options)
            self.options = options

        @classmethod
        def probe(cls, options):
            return Availability(options.text != "away", "it is " + (options.text or "here"), "Wait.")

        def kernels(self):
            return reference_kernels()
    """


def test_all_platforms_of_this_package_are_registered() -> None:
    assert set(registry.names()) >= OURS


def test_a_named_platform_is_ready_for_use() -> None:
    platform = registry.named("reference")
    assert platform.name == "reference"
    platform.close()


@pytest.mark.parametrize(("asked", "nearest"), [
    pytest.param("nonsense", "", id="nonsense"),
    pytest.param("cuad", "cuda", id="swapped"),
    pytest.param("referense", "reference", id="misspelt"),
    pytest.param("Cpu", "cpu", id="capital"),
    pytest.param("", "", id="empty"),
])
def test_an_unknown_name_tells_the_known_ones_and_the_nearest(asked: str, nearest: str) -> None:
    with pytest.raises(errors.PlatformNotFound, match=f"The nearest name is '{nearest}.*Known: .*reference") as caught:
        registry.named(asked)
    assert all(name in str(caught.value) for name in OURS)


@pytest.mark.parametrize("name", ABSENT)
def test_a_platform_without_its_chip_says_what_is_missing_and_what_to_do(name: str) -> None:
    with pytest.raises(errors.PlatformUnavailable) as caught:
        registry.named(f"{name}:1")
    said = str(caught.value)
    assert "found (no /" in said
    assert "Use platform 'cpu'" in said


@pytest.mark.parametrize("text", ["outside:1,,2", "outside:a=1,a=2", "outside:=1"], ids=["gap", "twice", "keyless"])
def test_options_that_cannot_be_meant_raise(text: str, register: Callable[..., None]) -> None:
    register("outside", platform_source())
    with pytest.raises(errors.ConfigError, match="options after the colon"):
        registry.named(text)


@pytest.mark.parametrize(("text", "said", "threads", "extra"), [
    pytest.param("outside", "", None, {}, id="plain"),
    pytest.param("outside:1", "1", None, {}, id="device"),
    pytest.param("outside:interpreted", "interpreted", None, {}, id="mode"),
    pytest.param("outside:threads=3", "", 3, {}, id="threads"),
    pytest.param("outside:1, isa=avx2", "1", None, {"isa": "avx2"}, id="pair"),
])
def test_options_stand_after_the_colon(
    text: str, said: str, threads: int | None, extra: dict[str, str], register: Callable[..., None]
) -> None:
    register("outside", platform_source())
    platform: Any = registry.named(text)
    assert platform.options == Options(said, threads, extra)
    platform.close()


def test_threads_may_be_said_twice_only_if_they_agree(register: Callable[..., None]) -> None:
    register("outside", platform_source())
    registry.named("outside:threads=2", threads=2).close()
    with pytest.raises(errors.ConfigError, match="threads=2.*says 4"):
        registry.named("outside:threads=2", threads=4)
    with pytest.raises(errors.ConfigError, match="threads must be an integer"):
        registry.named("outside:threads=many")


def test_an_unusable_platform_gives_reason_and_remedy(register: Callable[..., None]) -> None:
    register("outside", platform_source())
    with pytest.raises(errors.PlatformUnavailable, match=r"'outside' cannot run here: it is away\. Wait\."):
        registry.named("outside:away")


@pytest.mark.parametrize(("source", "said"), [
    pytest.param("import no_such_module_anywhere", "ModuleNotFoundError.*no_such_module_anywhere", id="import"),
    pytest.param("raise SystemExit(3)", "SystemExit", id="exit"),
    pytest.param("assert False, 'broken'", "AssertionError: broken", id="assertion"),
    pytest.param("", "AttributeError", id="missing-attribute"),
    pytest.param("thing = 7", "is 7, and must be a subclass", id="no-platform"),
    pytest.param(platform_source(contract=(99, 0)), "speaks contract 99.0, and this inferplane", id="contract"),
    pytest.param(platform_source(contract="1.0"), "declares contract '1.0'", id="contract-form"),
    pytest.param(platform_source(name="other"), "calls itself 'other'", id="name"),
])
def test_a_plugin_that_cannot_be_loaded_keeps_its_reason(source: str, said: str, register: Callable[..., None]) -> None:
    register("outside", source)
    with pytest.raises(errors.PlatformLoadError, match=f"(?s)'outside' .*{said}"):
        registry.named("outside")
    [row] = [row for row in registry.listing() if row.name == "outside"]
    assert not row.usable
    assert row.distribution.startswith("outside_")
    assert "'outside'" in row.reason


@pytest.mark.parametrize(("source", "said"), [
    pytest.param(platform_source().replace("return Avail", "raise OSError('no bus') or Avail"),
                 "its probe failed: OSError: no bus", id="probe"),
    pytest.param(platform_source().replace("super().__init__", "self.missing"),
                 "failed while starting: AttributeError", id="start"),
    pytest.param(platform_source().replace("HostPlatform)", "Platform)").replace("import Avail", "import Platform, Avail"),
                 "failed while starting: TypeError: .*abstract", id="unfinished"),
])
def test_a_plugin_that_breaks_later_is_named_too(source: str, said: str, register: Callable[..., None]) -> None:
    register("outside", source)
    with pytest.raises(errors.PlatformLoadError, match=f"'outside'.*{said}"):
        registry.named("outside")


def test_a_higher_minor_of_the_contract_is_welcome(register: Callable[..., None]) -> None:
    register("outside", platform_source(contract=(CONTRACT[0], CONTRACT[1] + 5)))
    registry.named("outside").close()


def test_a_name_registered_twice_is_refused(register: Callable[..., None]) -> None:
    register("outside", platform_source())
    register("outside", platform_source())
    with pytest.raises(errors.PlatformLoadError, match="registered twice: .*Uninstall one"):
        registry.named("outside")


def test_auto_takes_the_most_preferred_that_is_usable_and_passes_broken_ones_over(register: Callable[..., None]) -> None:
    register("broken", "raise RuntimeError('no')")
    register("low", platform_source("low", preference=60))
    register("high", platform_source("high", preference=61))
    platform = registry.named("auto")
    assert platform.name == "high"
    platform.close()


def test_auto_never_takes_what_only_serves_when_asked(register: Callable[..., None]) -> None:
    register("shy", platform_source("shy", preference=-1))
    assert registry.named("auto").name not in ("shy", "reference")


def test_auto_takes_no_options() -> None:
    with pytest.raises(errors.ConfigError, match="takes no options"):
        registry.named("auto:1")


def test_the_listing_tells_every_platform() -> None:
    rows = {row.name: row for row in registry.listing()}
    assert set(rows) >= OURS
    assert rows["reference"].usable
    assert rows["reference"].contract == CONTRACT
    assert all(row.reason for row in rows.values())
    assert all(rows[name].remedy for name in ABSENT)


def test_naming_cpu_imports_no_tensor_framework(python: Python) -> None:
    assert python("""
        from inferplane.platforms import registry
        registry.named("cpu").close()
        print(sorted({"torch", "jax", "triton"} & set(sys.modules)))
    """) == "[]"


def test_importing_the_registry_resolves_nothing(python: Python) -> None:
    assert python("""
        import inferplane.platforms.registry
        print([name for name in sys.modules if name.startswith("inferplane.platforms.") and name.count(".") > 2])
    """) == "[]"


def test_a_third_partys_platform_needs_only_its_entry_point(python: Python) -> None:
    answer = json.loads(python("""
        import json
        from inferplane.platforms import registry
        platform = registry.named("acme:1")
        row = next(row for row in registry.listing() if row.name == "acme")
        print(json.dumps([platform.name, platform.options.text, row.distribution, row.usable, registry.named("auto").name]))
    """, "acme"))
    assert answer == ["acme", "1", "inferplane-acme 1.2.3", True, "acme"]


def test_a_third_partys_kernel_goes_before_the_platforms_own(python: Python) -> None:
    told = json.loads(python("""
        import json
        from inferplane.platforms import registry
        packs = registry.kernel_packs("reference")
        other = registry.kernel_packs("cpu")
        print(json.dumps([[kernel.name for pack in packs for kernel in pack.kernels], len(other)]))
    """, "swift"))
    assert told == [["swift.rms_norm"], 0]


def test_a_pack_of_another_platform_is_not_even_loaded(python: Python) -> None:
    assert python("""
        from inferplane.platforms import registry
        registry.kernel_packs("cpu")
        print("inferplane_swift" in sys.modules)
    """, "swift") == "False"


@pytest.mark.parametrize(("entry", "source", "said"), [
    pytest.param("reference.x", "raise RuntimeError('no')", "failed while loading: RuntimeError: no", id="load"),
    pytest.param("reference.x", "def thing(): raise RuntimeError('no')", "failed: RuntimeError: no", id="call"),
    pytest.param("reference.x", "thing = 7", "must give an ops.KernelPack", id="type"),
    pytest.param("reference.x", FOREIGN_PACK, "is for platform 'cpu'", id="platform"),
    pytest.param("fast", "thing = 7", "are named <platform>.<anything>", id="name"),
])
def test_a_pack_that_cannot_be_used_is_never_dropped_silently(
    entry: str, source: str, said: str, register: Callable[..., None]
) -> None:
    register(entry, source, registry.KERNELS)
    with pytest.raises(errors.PlatformLoadError, match=f"kernel pack '{entry}' .*{said}"):
        registry.kernel_packs("reference")


ANSWER = """
    import json
    from inferplane import LLM, SamplingParams
    with LLM({model!r}, platform={platform!r}, dtype="float32") as llm:
        [output] = llm.chat([{{"role": "user", "content": "hello"}}], SamplingParams(temperature=0, max_tokens=6))
        kernels = sorted({{choice.name for choice in llm.loaded.resolution if choice.spec.op == "rms_norm"}})
        print(json.dumps([output.outputs[0].token_ids, kernels, llm.loaded.model.model_type]))
"""


def test_outside_platform_kernel_and_model_answer_like_our_own(python: Python, tmp_path: Path) -> None:
    """The three packages at once, each against the embedded model on `reference`."""
    shutil.copytree(TINY, tmp_path / "parrot")
    config = json.loads((TINY / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "parrot" / "config.json").write_text(json.dumps({**config, "model_type": "parrot"}), encoding="utf-8")
    tokens, kernels, _ = json.loads(python(ANSWER.format(model="tiny", platform="reference")))
    assert kernels == ["numpy.reference"]
    assert json.loads(python(ANSWER.format(model="tiny", platform="acme"), "acme"))[0] == tokens
    assert json.loads(python(ANSWER.format(model="tiny", platform="reference"), "swift"))[:2] == [tokens, ["swift.rms_norm"]]
    outside = json.loads(python(ANSWER.format(model=str(tmp_path / "parrot"), platform="reference"), "parrot"))
    assert outside == [tokens, ["numpy.reference"], "parrot"]
