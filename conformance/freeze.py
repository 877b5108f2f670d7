"""The frozen profiles: what a platform must pass to be called able to do something. `python -m inferplane.conformance.freeze`."""
from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from .case import Case
from .cases import FAMILIES, spread
from .select import MUSTPASS

ALL = 10**9
Values = Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class Part:
    """The first `most` cases of each family, in the order of their seeds, that have these values (a name: any of several)."""

    families: tuple[str, ...]
    most: int = ALL
    values: Values | None = None

    def cases(self) -> Iterator[Case]:
        for name in self.families:
            kept = [case for case in spread(FAMILIES[name]) if self.has(case)]
            yield from kept[: self.most]

    def has(self, case: Case) -> bool:
        given = case.address.values
        return all(given.get(name, values[0]) in values for name, values in (self.values or {}).items())


def _families(*prefixes: str, but: Callable[[str], bool] = lambda name: False) -> tuple[str, ...]:
    return tuple(name for name in FAMILIES if name.startswith(prefixes) and not but(name))


ATTENTION = tuple(f"attention.{kind}" for kind in ("prefill", "decode", "mixed", "chunked"))
WINDOWS = ("none", "1", "2", "15", "16", "17", "64")
FEATURES = tuple(f"{name}.features" for name in ATTENTION)
ENGINE = _families("engine.", but=lambda name: name == "engine.deterministic")
LAYERED = tuple(name for name in ENGINE if "model" in FAMILIES[name].axes)
USUAL: Values = {
    "dtype": ("float32", "int32"), "block": ("16", "32", "64", "128"), "dim": ("32", "64", "80", "96", "128"), "turned": ("1",),
    "interleaved": ("no",), "offset": ("0",), "kind": ("silu",), "window": ("none",),
    "model": ("full", "llama", "llama-bias", "qwen2", "qwen3"),
}
"""What a plain llama or qwen needs: no more dtypes, block sizes, head sizes or activations than that."""


COMPUTED = ("float32", "bfloat16")


def _formed(form: str) -> tuple[str, ...]:
    """The families of another form of attention."""
    return tuple(name for name in FAMILIES if name.startswith("attention.") and name.endswith(f".{form}"))


def _core(dtype: str) -> tuple[Part, ...]:
    """Ops and graphs of one dtype."""
    values = {**USUAL, "dtype": (dtype,)}
    return (
        Part(("linear.plain",), 120, values), Part(ATTENTION, 50, values), Part(("rope.plain", "norm.rms", "kv.write"), 60, values),
        Part(("norm.add_rms", "activation.gated"), 50, values), Part(("lookup.embedding", "kv.blocks"), 40, values),
        Part(("lookup.take_rows", "activation.plain", "elementwise.add", "elementwise.multiply"), 30, values),
        Part(("graph.logits", "graph.rope"), 60, values),
    )


def _quantized(weight: str, schemes: tuple[str, ...], activations: tuple[str, ...], graphs: tuple[str, ...]) -> tuple[Part, ...]:
    """Linears whose codes are of one dtype, with what checkpoints of that kind have, and whole models under such schemes."""
    values = {"dtype": ("float32", "bfloat16"), "scheme": schemes, "activation": ("none", *activations)}
    return (
        Part(("contract.schemes",)), Part((f"linear.{weight}",), 150, values),
        Part(("graph.quantized",), 40, {"dtype": ("float32", "bfloat16"), "scheme": graphs}),
    )


PROFILES: dict[str, tuple[Part, ...]] = {
    "core": (
        *_core("float32"), Part(_families("contract.", but=lambda name: name == "contract.schemes"), values=USUAL),
        Part(("sample.draw",), 120), Part(("lookup.derive",), 30),
        Part(("graph.greedy", *ENGINE), values=USUAL),
    ),
    "bfloat16": _core("bfloat16"),
    "float16": _core("float16"),
    "sliding": (
        Part(FEATURES, 60, {**USUAL, "window": WINDOWS[1:], "softcap": ("none",), "sinks": ("no",)}),
        Part(("graph.logits", "graph.greedy"), 60, {**USUAL, "window": ("5", "16", "33"), "model": ("qwen2", "qwen3", "mistral")}),
        Part(LAYERED, values={**USUAL, "model": ("sliding", "full-and-sliding")}),
    ),
    "sinks": (Part(FEATURES, 60, {**USUAL, "window": WINDOWS, "sinks": ("yes",), "softcap": ("none",)}), Part(("graph.gpt_oss",))),
    "latent": (
        Part(_formed("latent"), 60, {"dtype": COMPUTED, "kv": ("none",)}), Part(_formed("wide"), 20, {"dtype": COMPUTED}),
        Part(("kv.write.latent",), 30, {"dtype": COMPUTED, "kv": ("none",)}), Part(("linear.heads",), 60, {"dtype": COMPUTED}),
        Part(("lookup.split", "lookup.concat"), 20, {"dtype": COMPUTED}), Part(("graph.latent",), values={"dtype": COMPUTED}),
    ),
    "kv_int8": (
        Part(_formed("kv"), 60, {**USUAL, "dtype": COMPUTED, "kv": ("int8",), "window": WINDOWS}),
        Part(("kv.write.codes",), 60, {**USUAL, "dtype": COMPUTED, "kv": ("int8",)}),
        Part(("kv.blocks.codes",), 30, {**USUAL, "kv": ("int8",)}),
    ),
    "experts": (
        Part(("experts.router", "experts.moe", "experts.router.biased", "experts.moe.biased"), 120, {"dtype": ("float32",)}),
        Part(("graph.experts",)),
    ),
    "int8": _quantized(
        "int8", ("int8", "int8.g64.float16", "int8.g128.bfloat16"), ("a8", "a8g32", "a8g128"), ("int8.g64", "int8.a8", "int8.a8g128")),
    "int4": _quantized(
        "int4", ("int4.g32.float16", "int4.g64.zeros.bfloat16", "int4.g128", "int4.g128.zeros.float16"), ("a8", "a8g32", "a8g128"),
        ("int4.g32.float16", "int4.g32.float16.a8g32")),
    "fp8": _quantized(
        "fp8", ("float8_e4m3fn", "float8_e4m3fn.rall", "float8_e4m3fn.g128.r128"), ("af8", "af8g128"),
        ("float8_e4m3fn.g128.r128", "float8_e4m3fn.g128.r128.af8g128")),
    "perf": (Part(_families("roofline.")),),
    "deterministic": (Part(("engine.deterministic",), values={"dtype": ("float32", "bfloat16")}),),
}
"""What stands in each list. A released list is never changed: what is new goes into the next version's."""


def addresses(profile: str) -> list[str]:
    """Sorted, each once."""
    return sorted({case.id for part in PROFILES[profile] for case in part.cases()})


def main() -> None:
    MUSTPASS.mkdir(parents=True, exist_ok=True)
    for profile in PROFILES:
        listed = addresses(profile)
        (MUSTPASS / f"{profile}.txt").write_text("".join(f"{address}\n" for address in listed), encoding="utf-8")
        print(f"{profile}: {len(listed)} cases")


if __name__ == "__main__":
    main()
