"""What quantizing costs: perplexity and logits of a model, scheme by scheme, against its own weights in float32.

Perplexity is that of the tokens that the embedded model was made to give, on texts of its own domain that were kept from its training.
Every scheme runs on the same untied model: linears and head in codes, the embedding in floats.
"""
from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..core.checkpoint import Checkpoint
from ..core.hub import locate
from ..core.loader import LoadOptions, Progress, Source, load
from ..core.quantization import PRESETS, asked_scheme
from ..core.score import logits
from ..core.tokenizer import Tokenizer
from ..model_zoo.base import Precision
from ..model_zoo.tiny import text
from ..ops import Quantized, Scheme, WeightTable
from ..ops.quantize import CODES, SCALES, quantize
from ..platforms import registry
from ..platforms.contract import Platform
from .machine import describe_machine, describe_versions, today
from .shapes import RandomWeights

Array = np.ndarray[Any, Any]
Coder = Callable[[Array], Any]
FORMAT = 1
SEED = 30_000
TEXTS, TEXT_TOKENS = 150, 200
LAYERS, VOCABULARY, PROMPT_TOKENS = 2, 4096, 64
"""How a shape is cut, so that NumPy can compute it."""
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


class Variant(NamedTuple):
    """A row of the table. scheme None: floats after `code`."""

    name: str
    scheme: Scheme | None
    code: Coder


class Sample(NamedTuple):
    """tokens [n]; asked [n] whether a token is one that the model was made to give."""

    tokens: list[int]
    asked: list[bool]


class Recoded:
    """A source of the same weights after a variant's coder."""

    def __init__(self, source: Source, variant: Variant) -> None:
        self.source, self.variant, self.fingerprint = source, variant, f"{source.fingerprint} {variant.name}"
        self.tied = bool(source.config.get("tie_word_embeddings"))
        self.config = {**source.config, "tie_word_embeddings": False}
        scheme = variant.scheme
        self.precision = Precision(lambda module: scheme) if scheme else source.precision

    def check(self, weights: WeightTable) -> None:
        """The names are those of the source, but for a head that was tied."""

    def tensor(self, name: str) -> Any:
        value = self.source.tensor(EMBEDDING if name == HEAD and self.tied else name)
        return self.variant.code(np.asarray(value, np.float32)) if name == HEAD or name.endswith("_proj.weight") else value


def variants(asked: Sequence[str] = ()) -> list[Variant]:
    """The presets, their neighbours, peers' rules, and what was asked for. Raises `ConfigError` for an unknown scheme."""
    q8_0, q4_0 = Scheme.parse("int8:g32:float16:a8g32"), Scheme.parse("int4:g32:float16:a8g32")
    plain = {"int8 (preset)": "int8", "int4 (preset)": "int4", "OpenVINO int8": "int8:float16:a8g32"}
    ours = {f"{name}, {asked_scheme(said)}": asked_scheme(said) for name, said in plain.items()}
    ours |= {str(scheme): scheme for scheme in map(asked_scheme, (*OTHERS, *asked)) if scheme not in PRESETS.values()}
    return [
        Variant("float32", None, lambda w: w), Variant("bfloat16", None, lambda w: w.astype(SCALES["bfloat16"]).astype(np.float32)),
        *(Variant(name, scheme, lambda w, scheme=scheme: quantize(w, scheme)) for name, scheme in ours.items()),  # type: ignore[misc]
        Variant(f"Q8_0, {q8_0}", q8_0, lambda w: ggml(w, 8)), Variant(f"Q4_0, {q4_0}", q4_0, lambda w: ggml(w, 4)),
    ]


OTHERS = ("int8:a8", "int4:g32:float16", "int4:g64:float16:a8g64", "int4:g128:zeros:float16")


def ggml(weight: Array, bits: int) -> Quantized:
    """The rounding of ggml's Q8_0 and Q4_0 (quantize_row_q8_0_ref, quantize_row_q4_0_ref) in groups of 32."""
    tiles = weight.reshape(len(weight), -1, 32)
    first = np.take_along_axis(tiles, np.abs(tiles).argmax(-1)[..., None], -1)
    scales = np.abs(first) / np.float32(127) if bits == 8 else first / np.float32(-8)
    inverse = np.divide(1, scales, out=np.zeros_like(scales), where=scales != 0)
    codes = np.floor(np.abs(tiles * inverse) + 0.5) * np.sign(tiles * inverse) if bits == 8 else np.trunc(tiles * inverse + 8.5) - 8
    low, high = CODES["int8" if bits == 8 else "int4"]
    return Quantized(np.clip(codes, low, high).astype(np.int8).reshape(weight.shape), scales[..., 0].astype(np.float16))


def samples(tokenizer: Tokenizer) -> list[Sample]:
    """Texts of every skill of the embedded model, from a seed that its training never drew."""
    def count(words: str) -> int:
        return len(tokenizer.encode(words, add_special_tokens=False))

    rng = random.Random(SEED)
    makers = (
        lambda: text.recall(rng, tokens=TEXT_TOKENS, count_tokens=count), lambda: text.arithmetic(rng, held_out=True),
        lambda: text.copying(rng), lambda: text.tool_call(rng),
        lambda: text.recall_stream(rng, tokens=TEXT_TOKENS, count_tokens=count),
    )
    made = []
    for i in range(TEXTS):
        tokens: list[int] = []
        asked: list[bool] = []
        for span in makers[i % len(makers)]().spans():
            ids = tokenizer.encode(span.text, add_special_tokens=False)
            tokens += ids
            asked += [span.learned] * len(ids)
        made.append(Sample(tokens, asked))
    return made


def run_accuracy(
    platform: str, *, shape: str | None = None, schemes: Sequence[str] = (), seed: int = 0, progress: Progress | None = None,
) -> dict[str, Any]:
    """The record of `inferplane bench accuracy`: the embedded model, or a cut shape with random weights."""
    rows, opened = variants(schemes), registry.named(platform)
    try:
        source, texts = _random(shape, seed) if shape else _embedded()
        reference, results = None, []
        for done, variant in enumerate(rows, 1):
            found = _logits(Recoded(source, variant), opened, texts)
            reference = found if reference is None else reference
            results.append({"name": variant.name, "scheme": variant.scheme and str(variant.scheme), **_compared(found, reference, texts)})
            if progress:
                progress("accuracy", done, len(rows))
        return {
            "format": FORMAT, "kind": "accuracy", "date": today(), "machine": describe_machine(), "versions": describe_versions(),
            "platform": {"name": opened.name, "grade": opened.capabilities.grade, "devices": list(opened.capabilities.devices)},
            "of": f"{shape}, {LAYERS} layers, random weights" if shape else "tiny (embedded)",
            "tokens": sum(len(sample.tokens) for sample in texts), "asked": sum(sum(sample.asked[1:]) for sample in texts),
            "results": results,
        }
    finally:
        opened.close()


def _embedded() -> tuple[Source, list[Sample]]:
    folder = locate()
    return Checkpoint.open(folder), samples(Tokenizer.load(folder))


def _random(shape: str, seed: int) -> tuple[Source, list[Sample]]:
    whole = RandomWeights.named(shape, seed)
    config = {**whole.config, "num_hidden_layers": LAYERS, "vocab_size": min(VOCABULARY, whole.config["vocab_size"])}
    tokens = np.random.default_rng(seed).integers(0, config["vocab_size"], PROMPT_TOKENS).tolist()
    return RandomWeights(shape, config, seed), [Sample(tokens, [False] * PROMPT_TOKENS)]


def _logits(source: Source, platform: Platform, texts: Sequence[Sample]) -> list[Array]:
    loaded = load(source, platform, LoadOptions(dtype="float32"), registry.kernel_packs(platform.name))
    return [logits(loaded, sample.tokens) for sample in texts]


def _compared(found: Sequence[Array], reference: Sequence[Array], texts: Sequence[Sample]) -> Mapping[str, float | None]:
    """logit_error: RMS against that of the reference, each about its mean. divergence: Kullback-Leibler, in nats a token."""
    ours, theirs = (np.concatenate([one - one.mean(-1, keepdims=True) for one in many]).astype(np.float64) for many in (found, reference))
    log_ours, log_theirs = _log_softmax(ours), _log_softmax(theirs)
    places, nexts = _asked(texts)
    return {
        "perplexity": float(np.exp(-log_ours[places, nexts].mean())) if len(places) else None,
        "logit_error": float(np.sqrt(((ours - theirs) ** 2).mean() / (theirs**2).mean())),
        "divergence": float((np.exp(log_theirs) * (log_theirs - log_ours)).sum(-1).mean()),
        "same_choice": float((ours.argmax(-1) == theirs.argmax(-1)).mean()),
    }


def _asked(texts: Sequence[Sample]) -> tuple[Array, Array]:
    """Rows of the logits of all texts that are followed by a token that was asked for, and these tokens."""
    places, nexts, start = [], [], 0
    for sample in texts:
        for i in range(1, len(sample.tokens)):
            if sample.asked[i]:
                places.append(start + i - 1)
                nexts.append(sample.tokens[i])
        start += len(sample.tokens)
    return np.array(places, int), np.array(nexts, int)


def _log_softmax(values: Array) -> Array:
    values = values - values.max(-1, keepdims=True)
    return values - np.log(np.exp(values).sum(-1, keepdims=True))
