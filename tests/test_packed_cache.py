"""Packed weights on disk: what a second start maps is what the first one packed, and nothing wrong with the file stops a start."""
from __future__ import annotations

import errno
import json
import logging
import subprocess
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import pytest
from inferplane.conformance.models import greedy
from inferplane.core import packed_cache
from inferplane.core.config import EngineConfig
from inferplane.core.loader import Loaded, LoadOptions, load
from inferplane.core.packed_cache import PackedCache
from inferplane.core.start import load_options
from inferplane.ops import Kernel, KernelPack, always
from inferplane.ops.quantize import Quantized
from inferplane.platforms import registry
from inferplane.platforms.contract import Options
from inferplane.platforms.families.numpy import reference_kernels
from inferplane.platforms.reference import Reference


class Handle(NamedTuple):
    """A kernel's own kind of handle."""

    codes: Any
    more: Any


RNG = np.random.default_rng(0)
HANDLES: dict[str, Any] = {
    "array": RNG.standard_normal((3, 5)).astype(np.float32),
    "bfloat16": RNG.standard_normal((7, 2)).astype(ml_dtypes.bfloat16),
    "empty": np.zeros((0, 4), np.int8),
    "large": RNG.integers(0, 255, (3, 70_001), dtype=np.uint8),
    "tuple": (np.arange(4, dtype=np.int32), None, 3, 0.5, "text", True),
    "list": [np.arange(3, dtype=np.int8), [None, None]],
    "named": Handle(np.arange(9, dtype=np.uint8), [np.float32([1, 2]), None]),
    "quantized": Quantized(np.ones((2, 4), np.int8), np.ones((2, 1), np.float32)),
}


def same(a: Any, b: Any) -> bool:
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, (tuple, list)):
        return type(a) is type(b) and len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return type(a) is type(b) and bool(a == b)


def written(folder: Path, load: tuple[str, ...] = ("build 1",)) -> Path:
    cache = PackedCache(folder, "model", load)
    for name, handle in HANDLES.items():
        cache.put(name, handle)
    cache.finish()
    return cache.path


@pytest.mark.parametrize("name", HANDLES)
def test_a_handle_comes_back_as_it_was(tmp_path: Path, name: str) -> None:
    written(tmp_path)
    assert same(PackedCache(tmp_path, "model", ["build 1"]).get(name), HANDLES[name])


def test_mapped_arrays_are_aligned_and_read_only(tmp_path: Path) -> None:
    written(tmp_path)
    array = PackedCache(tmp_path, "model", ["build 1"]).get("large")
    assert array.ctypes.data % 4096 == 0
    assert not array.flags.writeable


def test_a_file_of_another_build_is_written_anew(tmp_path: Path) -> None:
    path = written(tmp_path)
    cache = PackedCache(tmp_path, "model", ["build 2"])
    assert not cache.ready
    cache.put("array", HANDLES["array"])
    cache.finish()
    assert list(tmp_path.iterdir()) == [path]
    assert PackedCache(tmp_path, "model", ["build 2"]).ready
    assert not PackedCache(tmp_path, "model", ["build 1"]).ready


def damage(path: Path, kind: str) -> None:
    data = bytearray(path.read_bytes())
    if kind == "empty":
        data = bytearray()
    elif kind == "cut":
        data = data[: len(data) // 2]
    elif kind == "longer":
        data += b"more"
    elif kind == "magic":
        data[0] ^= 1
    elif kind == "index":
        data[-60] ^= 1
    elif kind == "zeroed":
        data[4096 : len(data) // 2] = bytes(len(data) // 2 - 4096)
    elif kind == "text":
        data = bytearray(b"not at all" * 100)
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("kind", ["empty", "cut", "longer", "magic", "index", "zeroed", "text"])
def test_a_damaged_file_is_told_and_written_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str) -> None:
    damage(written(tmp_path), kind)
    with caplog.at_level(logging.WARNING):
        assert not PackedCache(tmp_path, "model", ["build 1"]).ready
    assert "packed again" in caplog.text
    written(tmp_path)
    assert PackedCache(tmp_path, "model", ["build 1"]).ready


def test_a_file_names_no_code_to_run() -> None:
    tree = {"kind": f"subprocess:{subprocess.Popen.__name__}", "items": [{"value": "true"}]}
    with pytest.raises(ValueError, match="no NamedTuple"):
        packed_cache._decode(tree, np.empty(0, np.uint8))


def test_a_full_disk_is_a_warning_and_leaves_nothing_behind(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    cache = PackedCache(tmp_path, "model", ["build 1"])
    cache.put("array", HANDLES["array"])
    monkeypatch.setattr(packed_cache._Writer, "_write", full)
    with caplog.at_level(logging.WARNING):
        cache.put("large", HANDLES["large"])
    cache.put("tuple", HANDLES["tuple"])
    cache.finish()
    assert "No space left on device" in caplog.text
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("in the way")
    with caplog.at_level(logging.WARNING):
        cache = PackedCache(tmp_path / "file", "model", [])
    cache.put("array", HANDLES["array"])
    cache.finish()
    assert "INFERPLANE_CACHE" in caplog.text


def test_a_load_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    cache = PackedCache(tmp_path, "model", [])
    cache.put("array", HANDLES["array"])
    cache.abandon()
    assert list(tmp_path.iterdir()) == []


def test_a_handle_that_is_no_host_array_is_left_out(tmp_path: Path) -> None:
    cache = PackedCache(tmp_path, "model", [])
    cache.put("program", (np.ones(3), object()))
    cache.put("array", HANDLES["array"])
    cache.finish()
    again = PackedCache(tmp_path, "model", [])
    assert again.get("program") is None
    assert again.get("array") is not None


# A whole load


@pytest.fixture
def platform() -> Any:
    made = Reference(Options(()))
    yield made
    made.close()


class Counted:
    """A pack whose linear counts how often it packs."""

    def __init__(self, layout: str = "layout 1") -> None:
        self.prepared = 0
        plain = next(kernel for kernel in reference_kernels() if kernel.op == "linear")

        def prepare(spec: Any, parts: Any) -> Any:
            self.prepared += 1
            return plain.prepare(spec, parts)  # type: ignore[misc]

        self.pack = KernelPack("reference", [Kernel("linear", "counted", always, plain.run, prepare, layout=layout)])


def arrays_of(loaded: Loaded) -> list[bytes]:
    return [array.tobytes() for layer in (loaded.weights.top, *loaded.weights.layers) for handle in layer.values() for array in handle]


def loaded(models: ModuleType, platform: Any, folder: Path | None, layout: str = "layout 1", dtype: str = "auto") -> tuple[Loaded, int]:
    counted = Counted(layout)
    options = LoadOptions(dtype=dtype, packed_cache=folder)
    return load(models.RandomSource(models.MODELS["full"]), platform, options, [counted.pack]), counted.prepared


def test_a_second_load_packs_nothing_and_has_the_same_weights(tmp_path: Path, platform: Any, small_models: ModuleType) -> None:
    plain, count = loaded(small_models, platform, None)
    first, packed_first = loaded(small_models, platform, tmp_path)
    second, packed_second = loaded(small_models, platform, tmp_path)
    assert (packed_first, packed_second) == (count, 0)
    assert arrays_of(plain) == arrays_of(first) == arrays_of(second)
    assert second.placed_twice == plain.placed_twice


def test_another_layout_replaces_the_file_and_another_dtype_has_its_own(tmp_path: Path, platform: Any, small_models: ModuleType) -> None:
    _, count = loaded(small_models, platform, tmp_path)
    assert loaded(small_models, platform, tmp_path, layout="layout 2")[1] == count
    assert len(list(tmp_path.iterdir())) == 1
    assert loaded(small_models, platform, tmp_path, dtype="float64")[1] == count
    assert len(list(tmp_path.iterdir())) == 2
    assert loaded(small_models, platform, tmp_path, layout="layout 2")[1] == 0


def test_a_kernel_that_names_no_layout_keeps_nothing(tmp_path: Path, platform: Any, small_models: ModuleType) -> None:
    _, count = loaded(small_models, platform, tmp_path, layout="")
    assert loaded(small_models, platform, tmp_path, layout="")[1] == count


def test_the_setting_keeps_files_below_the_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INFERPLANE_CACHE", str(tmp_path))
    assert load_options(EngineConfig.from_kwargs()).packed_cache is None
    assert load_options(EngineConfig.from_kwargs(packed_cache=True)).packed_cache == tmp_path / "packed"


@pytest.mark.parametrize("quantization", [None, "int8", "int4"], ids=["plain", "int8", "int4"])
def test_the_cpu_platform_computes_the_same_from_mapped_weights(tmp_path: Path, small_models: ModuleType, quantization: str | None) -> None:
    pytest.importorskip("inferplane.platforms.cpu._native", reason="the C++ kernels were not built")
    cpu = registry.named("cpu")
    try:
        options = LoadOptions(dtype="float32", quantization=quantization, packed_cache=tmp_path)
        first, second = (load(small_models.RandomSource(small_models.MODELS["full"]), cpu, options) for _ in range(2))
        assert [one.weights.layers[0]["qkv"].panels.flags.writeable for one in (first, second)] == [True, False]
        assert greedy(first, [3, 1, 4], 12).tolist() == greedy(second, [3, 1, 4], 12).tolist()
    finally:
        cpu.close()


def test_the_index_is_plain_json(tmp_path: Path) -> None:
    data = written(tmp_path).read_bytes()
    length = int.from_bytes(data[-packed_cache.FOOTER_BYTES :][:8], "little")
    index = json.loads(data[len(data) - packed_cache.FOOTER_BYTES - length : len(data) - packed_cache.FOOTER_BYTES])
    assert set(index["weights"]) == set(HANDLES)
