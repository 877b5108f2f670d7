"""Cases of the contract, of graphs and of the engine: they pass where all is well, and fail for what they are there to find."""
from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from inferplane.conformance import freeze
from inferplane.conformance.case import GOOD, Outcome, Verdict
from inferplane.conformance.cases import FAMILIES, find
from inferplane.conformance.rig import Rig
from inferplane.conformance.select import MUSTPASS, profile, profiles
from inferplane.core.scheduler.scheduler import Scheduler
from inferplane.ops import Kernel
from inferplane.platforms import registry
from inferplane.platforms.contract import Availability, Capabilities, Memory, Options, Platform
from inferplane.platforms.reference import Reference

MINE = [family for family in FAMILIES.values() if family.level in (0, 3, 4)]


@pytest.fixture(scope="module", params=["reference", "cpu"])
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    made = Rig(registry.named(request.param))
    yield made
    made.platform.close()


@pytest.mark.parametrize("family", MINE, ids=lambda family: family.name)
def test_cases_of_each_family_pass(rig: Rig, family: Any) -> None:
    cases = sorted(family.cases(), key=lambda case: case.address.seed)
    found = {case.id: case.run(rig) for case in cases[: 30 if family.level == 0 else 3]}
    assert not {case: outcome for case, outcome in found.items() if outcome.verdict not in GOOD}
    if family.feature == "parallel":
        assert {outcome.detail for outcome in found.values()} == {f"platform {rig.platform.name} computes a model on one device"}
    elif family.name != "engine.deterministic" or rig.platform.name == "cpu":
        assert any(outcome.verdict is Verdict.PASS for outcome in found.values())


def test_with_batch_invariant_kernels_bits_are_compared(rig: Rig) -> None:
    """On `cpu` every kernel of a model declares it, so that the engine's cases compare bits there."""
    outcome = find("engine.deterministic:model=full;dtype=bfloat16;how=chunked").run(rig)
    assert outcome.verdict is (Verdict.PASS if rig.platform.name == "cpu" else Verdict.UNSUPPORTED), outcome.detail


def outcome(platform: type[Platform], case: str, kernels: Sequence[Kernel] = ()) -> Outcome:
    made = Rig(platform(Options()))
    made.kernels[:0] = kernels
    try:
        return find(case).run(made)
    finally:
        made.platform.close()


class Broken(Reference):
    """The reference, for tests to break in one place."""


def but(**members: Any) -> type[Platform]:
    return type("Broken", (Broken,), members)


def kernel(where: str, /, **changes: Any) -> Callable[[Any], Sequence[Kernel]]:
    """kernels() with one kernel changed."""
    def kernels(self: Any) -> Sequence[Kernel]:
        return [replace(one, **changes) if one.op == where else one for one in Reference.kernels(self)]

    return kernels


def without(op: str) -> Callable[[Any], Sequence[Kernel]]:
    return lambda self: [one for one in Reference.kernels(self) if one.op != op]


def raises(spec: Any) -> None:
    raise KeyError("size")


class Forgetful(list[int]):
    """Answers something else each time."""

    def __call__(self, spec: Any) -> str | None:
        self.append(1)
        return None if len(self) % 2 else "not today, perhaps tomorrow"


BROKEN: dict[str, tuple[type[Platform], str, str]] = {
    "version": (but(contract=(99, 0)), "contract.version", "their first numbers must agree"),
    "name": (but(name="A B"), "contract.name", "must be lower-case letters"),
    "discovery": (but(name="nobody"), "contract.discovery", "stands 0 times"),
    "probe": (but(probe=classmethod(lambda cls, options: Availability(True, "ok"))), "contract.probe", "a sentence that a person can read"),
    "capabilities": (but(capabilities=Capabilities(dtypes=("float32", "float33"))), "contract.capabilities", "float33"),
    "options": (but(__init__=lambda self, options: Reference.__init__(self, Options())), "contract.unknown_option", "in silence"),
    "unknown-op": (but(kernels=kernel("add", op="ad")), "contract.kernels", "op 'ad', which does not exist"),
    "names": (but(kernels=lambda self: 2 * list(Reference.kernels(self))), "contract.kernel_names", "could not choose between them"),
    "flags": (but(kernels=kernel("add", batch_invariant="yes")), "contract.batch_invariant", "must be True or False"),
    "required": (but(kernels=without("rope")), "contract.required:op=rope", "no kernel at all"),
    "raising-supports": (but(kernels=kernel("linear", supports=raises)), "contract.supports:op=linear", "supports() raised KeyError"),
    "fickle-supports": (but(kernels=kernel("linear", supports=Forgetful())), "contract.supports:op=linear", "asked twice"),
    "curt-refusal": (but(kernels=kernel("linear", supports=lambda spec: "no")), "contract.supports:op=linear", "a person can read"),
    "vague-refusal": (
        but(kernels=kernel("linear", supports=lambda spec: None if spec.dtype == "float16" else "something is wrong here")),
        "contract.refusals:op=linear", "names no dtype"),
    "put": (but(put=lambda self, host: np.zeros_like(host)), "contract.put_fetch:dtype=float64", "or with other bits"),
    "memory": (but(memory=lambda self: Memory(total=1, free=2)), "contract.memory", "at most the total"),
    "close": (but(close=lambda self: self.__dict__.pop("_steps").shutdown()), "contract.close", "close() raised KeyError"),
}


@pytest.mark.parametrize(("platform", "case", "said"), BROKEN.values(), ids=BROKEN)
def test_a_broken_contract_is_told_in_words(platform: type[Platform], case: str, said: str) -> None:
    found = outcome(platform, case)
    assert found.verdict is Verdict.FAIL, found
    assert said in found.detail


def late(self: Any, compiled: Any, weights: Any, state: Any, packed: Any) -> Any:
    """Steps that see the state as it was before the one submitted last."""
    before = state.last_token.copy()

    def step(weights: Any, state: Any, batch: Any, sampling: Any) -> Any:
        state.last_token[:] = before
        return compiled(weights, state, batch, sampling)

    return Reference.submit(self, step, weights, state, packed)


@pytest.mark.parametrize("case", ["contract.submit_order:steps=9", "graph.greedy:model=llama;heads=4/4;window=none;prompt=16"])
def test_steps_that_miss_the_one_before_them_are_found(case: str) -> None:
    assert outcome(but(submit=late), case).verdict is Verdict.FAIL


def window_off_by_one(self: Any) -> Sequence[Kernel]:
    def run(spec: Any, *arrays: Any) -> Any:
        return right.run(replace(spec, window=spec.window + 1) if spec.window else spec, *arrays)

    [right] = [one for one in Reference.kernels(self) if one.op == "attention"]
    return [replace(one, run=run) if one is right or one.op == "attention" else one for one in Reference.kernels(self)]


def test_a_model_of_wrong_windows_is_found() -> None:
    case = "graph.logits:model=mistral;dtype=bfloat16;heads=4/2;dim=64;window=5;vocab=97;tied=no"
    assert outcome(Broken, case).verdict is Verdict.PASS
    found = outcome(but(kernels=window_off_by_one), case)
    assert found.verdict is Verdict.FAIL and "times that of a naive evaluation" in found.detail


def neighbourly(spec: Any, logits: Any, sampling: Any, batch: Any, state: Any) -> Any:
    """Every row is drawn with the first row's seed as soon as there are two."""
    return spec.reference(logits, sampling._replace(seed_low=np.resize(sampling.seed_low[:1], len(logits))), batch, state)


@pytest.mark.parametrize("case", ["engine.seeded:neighbours=drawn;way=drawn", "engine.batched:model=full;requests=2;way=drawn"])
def test_seeds_that_depend_on_neighbours_are_found(case: str) -> None:
    assert outcome(but(kernels=kernel("sample", run=neighbourly)), case).verdict is Verdict.FAIL


def test_a_promise_of_batch_invariance_is_held_to_the_bit() -> None:
    """One float32 rounding that depends on the number of rows."""
    def run(spec: Any, x: Any, weight: Any) -> Any:
        right = (spec.reference(x, weight)).astype(x.dtype)
        return right if len(x) == 1 else np.nextafter(right, np.float32(np.inf))

    def kernels(self: Any) -> Sequence[Kernel]:
        made = [replace(one, batch_invariant=True) for one in Reference.kernels(self)]
        return [replace(one, run=run) if one.op == "rms_norm" else one for one in made]

    found = outcome(but(kernels=kernels), "engine.chunked:model=full;budget=16;way=greedy")
    assert found.verdict is Verdict.FAIL and "every kernel declares batch_invariant" in found.detail


def test_blocks_that_leak_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A scheduler that forgets to give an aborted request's blocks back."""
    case = "engine.abort:model=full;after=3;caching=no"
    assert outcome(Broken, case).verdict is Verdict.PASS
    release = Scheduler._stop

    def stop(self: Any, sequence: Any) -> None:
        kept, self._memory.release = self._memory.release, lambda lease: None
        try:
            release(self, sequence)
        finally:
            self._memory.release = kept

    monkeypatch.setattr(Scheduler, "_stop", stop)
    found = outcome(Broken, case)
    assert found.verdict is Verdict.FAIL and "blocks are held" in found.detail


# Profiles


@pytest.mark.parametrize("name", sorted(freeze.PROFILES))
def test_frozen_profiles_stay_as_they_are(name: str) -> None:
    listed = profile(name)
    assert listed == sorted(set(listed)) and all(find(address).id == address for address in listed)
    assert listed == freeze.addresses(name), "a released list never changes; what is new belongs into the next version"


def test_every_profile_is_frozen() -> None:
    assert set(profiles()) == set(freeze.PROFILES) == {path.stem for path in MUSTPASS.iterdir()}
    assert 1000 <= len(profile("core-1.0")) <= 1500
    assert {find(address).level for address in profile("core")} == {0, 1, 2, 3, 4}
