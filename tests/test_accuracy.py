"""The accuracy report tells schemes apart, follows peers' rules, and asks only about tokens that a model was made to give."""
from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from inferplane.bench import accuracy
from inferplane.bench.report import show
from inferplane.core.hub import locate
from inferplane.core.tokenizer import Tokenizer
from inferplane.errors import ConfigError
from inferplane.ops import Scheme
from inferplane.ops.quantize import dequantized
from rich.console import Console


@pytest.fixture(scope="module")
def record() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(accuracy, "TEXTS", 5)
        patch.setattr(accuracy, "TEXT_TOKENS", 60)
        patch.setattr(accuracy, "OTHERS", ("int4:g128",))
        yield accuracy.run_accuracy("reference")


def test_fewer_bits_cost_more(record: Any) -> None:
    found = {one["name"].split(",")[0]: one for one in record["results"]}
    order = ["float32", "Q8_0", "int4 (preset)", "int4:g128"]
    errors = [found[name]["logit_error"] for name in order]
    assert errors == sorted(errors) and errors[0] == 0 and errors[1] < 0.03 < errors[2]
    assert found["float32"]["perplexity"] < 1.5 and found["float32"]["same_choice"] == 1 and found["float32"]["divergence"] == 0
    assert found["int4 (preset)"]["logit_error"] < found["Q4_0"]["logit_error"]


def test_the_table_has_a_row_for_each_scheme(record: Any) -> None:
    said = io.StringIO()
    show(record, Console(file=said, width=160))
    assert all(one["name"] in said.getvalue() for one in record["results"])


def test_only_what_a_model_was_made_to_give_is_asked_for() -> None:
    tokenizer = Tokenizer.load(locate())
    made = accuracy.samples(tokenizer)
    assert made == accuracy.samples(tokenizer) and len(made) == accuracy.TEXTS
    assert all(0 < sum(sample.asked) < len(sample.asked) == len(sample.tokens) for sample in made)
    said = tokenizer.decode([token for token, asked in zip(made[1].tokens, made[1].asked, strict=True) if asked])
    assert said.lstrip("-").isdigit(), "the second is a sum"


def test_peers_rules_are_theirs() -> None:
    row = np.zeros((1, 32), np.float32)
    row[0, :5] = [-8.0, 7.9, 0.5, -0.5, 3.25]
    made = accuracy.ggml(row, 4)
    assert made.codes[0, :5].tolist() == [-8, 7, 1, 0, 3] and made.scales.tolist() == [[1.0]]
    assert accuracy.ggml(row * 127 / 8, 8).codes[0, :5].tolist() == [-127, 125, 8, -8, 52]
    assert not dequantized(accuracy.ggml(np.zeros((2, 64), np.float32), 4), Scheme("int4", group=32)).any()


def test_an_unknown_scheme_is_refused_before_anything_is_computed() -> None:
    with pytest.raises(ConfigError, match="int5"):
        accuracy.run_accuracy("reference", schemes=["int5"])
