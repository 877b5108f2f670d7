"""Settings: flat names, checked values, one TOML file, and who wins."""
from __future__ import annotations

from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from typing import Any

import pytest
from inferplane.core.config import EngineConfig, read_file
from inferplane.core.env import Environment
from inferplane.errors import ConfigError

NOWHERE = Environment.read({})


def test_flat_names_reach_the_part_that_owns_them() -> None:
    config = EngineConfig.from_kwargs(
        model="some/model", dtype="bfloat16", block_size=32, max_num_seqs=8, scheduling_policy="fair", platform="cpu:threads=2",
        kernels={"attention": "reference"}, seed=7,
    )
    assert (config.model.model, config.model.dtype) == ("some/model", "bfloat16")
    assert config.cache.block_size == 32
    assert (config.scheduling.max_num_seqs, config.scheduling.scheduling_policy) == (8, "fair")
    assert (config.execution.platform, dict(config.execution.kernels)) == ("cpu:threads=2", {"attention": "reference"})


def test_none_means_not_given() -> None:
    assert EngineConfig.from_kwargs(model=None, dtype=None, platform=None) == EngineConfig()


def test_an_unknown_name_raises_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"'max_num_seq' is unknown\. Did you mean 'max_num_seqs'\?"):
        EngineConfig.from_kwargs(max_num_seq=4)


@pytest.mark.parametrize(("name", "value"), [
    pytest.param("dtype", "bfloat17", id="dtype"),
    pytest.param("model", "", id="empty-model"),
    pytest.param("max_model_len", 0, id="zero-length"),
    pytest.param("max_num_seqs", True, id="bool-for-a-number"),
    pytest.param("max_num_seqs", "8", id="text-for-a-number"),
    pytest.param("block_size", 16.0, id="float-for-a-number"),
    pytest.param("kv_cache_memory_gb", -1, id="negative-memory"),
    pytest.param("kv_cache_memory_fraction", 1.5, id="more-than-all"),
    pytest.param("kv_cache_memory_fraction", float("nan"), id="nan"),
    pytest.param("kv_cache_dtype", "int9", id="kv-dtype"),
    pytest.param("enable_prefix_caching", "no", id="text-for-a-flag"),
    pytest.param("deterministic", 1, id="number-for-a-flag"),
    pytest.param("seed", -1, id="negative-seed"),
    pytest.param("kernels", "attention", id="text-for-kernels"),
    pytest.param("kernels", {"attention": ""}, id="nameless-kernel"),
    pytest.param("kernels", {"atention": "reference"}, id="unknown-op"),
])
def test_a_value_that_cannot_be_meant_raises_and_names_the_setting(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=name):
        EngineConfig.from_kwargs(**{name: value})


def test_nothing_can_be_changed_afterwards() -> None:
    given = {"attention": "reference"}
    config = EngineConfig.from_kwargs(kernels=given)
    given["linear"] = "other"
    assert dict(config.execution.kernels) == {"attention": "reference"}
    with pytest.raises(FrozenInstanceError):
        config.model.dtype = "float32"  # type: ignore[misc]
    with pytest.raises(TypeError):
        config.execution.kernels["linear"] = "other"  # type: ignore[index]


def test_the_scheduler_gets_its_own_config_and_its_own_defaults() -> None:
    scheduler = EngineConfig.from_kwargs(max_num_seqs=4, enable_prefix_caching=False, scheduling_policy="fair").scheduler(512)
    assert (scheduler.max_model_len, scheduler.max_num_seqs, scheduler.policy) == (512, 4, "fair")
    assert not scheduler.enable_prefix_caching


def written(folder: Path, text: str) -> Path:
    file = folder / "inferplane.toml"
    file.write_text(text, encoding="utf-8")
    return file


def test_a_file_holds_the_same_names_in_tables(tmp_path: Path) -> None:
    file = written(tmp_path, '[model]\nmodel = "m"\n[scheduling]\nmax_num_seqs = 3\n[execution]\nthreads = 2\n'
                             '[execution.kernels]\nattention = "reference"\n')
    assert read_file(file) == {"model": "m", "max_num_seqs": 3, "threads": 2, "kernels": {"attention": "reference"}}


def test_arguments_go_before_variables_and_variables_before_the_file(tmp_path: Path) -> None:
    file = written(tmp_path, '[model]\nmodel = "file"\ndtype = "float32"\n[execution]\nplatform = "file"\n')
    environment = replace(NOWHERE, config=file)
    assert EngineConfig.resolve({}, environment).execution.platform == "file"
    environment = replace(environment, platform="variable")
    config = EngineConfig.resolve({"model": "argument", "platform": None}, environment)
    assert (config.model.model, config.model.dtype, config.execution.platform) == ("argument", "float32", "variable")
    assert EngineConfig.resolve({"platform": "argument"}, environment).execution.platform == "argument"


@pytest.mark.parametrize(("text", "said"), [
    pytest.param("[modell]\n", r"table 'modell' is unknown.*Did you mean 'model'", id="unknown-table"),
    pytest.param("[model]\nmodl = 'x'\n", r"key 'modl' of \[model\] is unknown. Did you mean 'model'", id="unknown-key"),
    pytest.param("threads = 2\n", r"'threads' is unknown at the top. It belongs into the table \[execution\]", id="outside"),
    pytest.param("model = 'x'\n", r"'model' must be a table", id="key-for-a-table"),
    pytest.param("[model\n", r"is not TOML", id="broken-toml"),
])
def test_a_file_that_cannot_be_meant_raises_and_says_where(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        read_file(written(tmp_path, text))


def test_a_missing_file_raises(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        read_file(tmp_path / "none.toml")
