"""Which kernel does what: each spec of a trace meets the platform's kernels, and every choice keeps its reasons."""
from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from ..errors import ResolutionError, suggest
from ..ops import DEFAULTS, Kernel, Spec
from ..platforms.contract import Collectives
from .localize import Joining, Mesh, joining, local_spec
from .trace import Trace

COMPOSED = "composed"
"""The name by which an optional op's default composition is chosen and shown."""


@dataclass(frozen=True)
class Choice:
    """One spec's row of the table."""

    spec: Spec
    """In global sizes, as the model says it."""
    local: Spec
    """In this device's sizes, as the kernel gets it."""
    kernel: Kernel | None
    """None: composed of other ops."""
    passed: tuple[tuple[str, str], ...]
    """Kernels that come first in the order of preference, and why each was not taken."""
    calls: int
    joining: Joining | None = None
    """How the results of several devices become those of the spec."""

    @property
    def name(self) -> str:
        return self.kernel.name if self.kernel else COMPOSED


@dataclass(frozen=True)
class Resolution:
    """The table. Iterates over its rows in the order in which a step first meets them."""

    choices: Mapping[Spec, Choice]
    mesh: Mesh = field(default_factory=Mesh.single)

    def __iter__(self) -> Iterator[Choice]:
        return iter(self.choices.values())

    def __getitem__(self, spec: Spec) -> Choice:
        return self.choices[spec]

    def rows(self) -> list[dict[str, Any]]:
        """The table as plain data, for people and pages. Specs are in one device's sizes."""
        return [
            {
                "op": one.spec.op, "spec": str(one.local), "kernel": one.name, "calls": one.calls, "passed": dict(one.passed),
                "devices": "" if one.joining is None else f"{one.joining} over {self.mesh.size}",
            } for one in self
        ]

    def bind(self, collectives: Collectives | None = None) -> BoundOps:
        """collectives: where the mesh has several devices."""
        return BoundOps(self, collectives)

    @property
    def batch_invariant(self) -> bool:
        """Every kernel declares that a row's bits do not depend on its neighbours."""
        return all(choice.kernel is None or choice.kernel.batch_invariant for choice in self)

    @property
    def replayable(self) -> bool:
        """Every kernel declares that a step may be recorded, and no step waits for other devices."""
        return all(choice.kernel is None or (choice.kernel.replayable and choice.joining is None) for choice in self)


class BoundOps:
    """The facade `ops` of a running model: each op is a bound lookup in the table."""

    def __init__(self, resolution: Resolution, collectives: Collectives | None = None) -> None:
        self._table: dict[Spec, Callable[..., Any]] = {}
        for choice in resolution:
            if choice.kernel is None:
                self._table[choice.spec] = partial(DEFAULTS[choice.spec.op].run, self, choice.spec)
                continue
            reason = choice.kernel.supports(choice.local)
            if reason is not None:
                raise ResolutionError(f"{choice.kernel.name} cannot be bound to {choice.spec.op} ({choice.spec}): it says {reason}")
            self._table[choice.spec] = _joined(choice, partial(choice.kernel.run, choice.local), collectives)
        for op in Spec.families:
            setattr(self, op, self._call)

    def _call(self, spec: Spec, *arrays: Any) -> Any:
        return self._table[spec](*arrays)


def _joined(choice: Choice, run: Callable[..., Any], collectives: Collectives | None) -> Callable[..., Any]:
    """The kernel's run, with what the other devices computed added up, or put behind each other."""
    if choice.joining is None:
        return run
    assert collectives is not None, "a model on several devices is bound with their collectives"
    if choice.joining == "gather":
        return lambda *arrays: collectives.all_gather(run(*arrays))
    dtype = getattr(choice.spec, "out_dtype", None) or choice.spec.dtype  # type: ignore[attr-defined]

    def summed(*arrays: Any) -> Any:
        made = run(*arrays)
        return tuple(collectives.all_reduce(one, dtype) for one in made) if isinstance(made, tuple) else collectives.all_reduce(made, dtype)

    return summed


def resolve(
    trace: Trace,
    kernels: Sequence[Kernel],
    *,
    explicit: Mapping[str, str] | None = None,
    deterministic: bool = False,
    mesh: Mesh | None = None,
) -> Resolution:
    """Choose a kernel for each spec.

    kernels: in order of preference. explicit: op -> kernel name, or "composed"; met or raised, never replaced.
    deterministic: only batch-invariant kernels. Raises `ResolutionError` with each kernel's reason.
    """
    resolver = _Resolver(kernels, explicit or {}, deterministic, mesh := mesh or Mesh.single())
    for spec, calls in trace.specs.items():
        resolver.add(spec, calls)
    return Resolution(resolver.choices, mesh)


class _Resolver:
    def __init__(self, kernels: Sequence[Kernel], explicit: Mapping[str, str], deterministic: bool, mesh: Mesh) -> None:
        self.explicit, self.deterministic, self.mesh = explicit, deterministic, mesh
        self.choices: dict[Spec, Choice] = {}
        self.by_op: dict[str, list[Kernel]] = {}
        for kernel in kernels:
            self.by_op.setdefault(kernel.op, []).append(kernel)
        for op, name in explicit.items():
            self._check_name(op, name)

    def _check_name(self, op: str, name: str) -> None:
        if op not in Spec.families:
            raise ResolutionError(f"a kernel was chosen for op {op!r}, which does not exist. {suggest(op, Spec.families)}")
        known = [kernel.name for kernel in self.by_op.get(op, ())] + [COMPOSED] * (op in DEFAULTS)
        if name not in known:
            raise ResolutionError(f"kernel {name!r} was chosen for {op}, and this platform has none of that name. {suggest(name, known)}")

    def add(self, spec: Spec, calls: int) -> None:
        if spec in self.choices:
            return
        local = local_spec(spec, self.mesh)
        kernel, passed = self._choose(spec, local)
        self.choices[spec] = Choice(spec, local, kernel, tuple(passed), calls, joining(spec, local))
        if kernel is None:
            for part in DEFAULTS[spec.op].requires(spec):
                self.add(part, calls)

    def _choose(self, spec: Spec, local: Spec) -> tuple[Kernel | None, list[tuple[str, str]]]:
        passed: list[tuple[str, str]] = []
        asked = self.explicit.get(spec.op)
        for kernel in self.by_op.get(spec.op, ()):
            reason = self._against(kernel, local, asked)
            if reason is None:
                return kernel, passed
            passed.append((kernel.name, reason))
        if spec.op in DEFAULTS and asked in (None, COMPOSED):
            return None, passed
        told = "".join(f"\n  {name}: {reason}" for name, reason in passed) or "\n  the platform has no kernel for this op"
        remedy = f"choose another kernel than {asked!r}" if asked else "choose another dtype or platform"
        raise ResolutionError(f"no kernel can do {spec.op} ({spec}):{told}\nRemedy: {remedy}.")

    def _against(self, kernel: Kernel, local: Spec, asked: str | None) -> str | None:
        if asked is not None and kernel.name != asked:
            return f"{asked} was asked for"
        if self.deterministic and not kernel.batch_invariant:
            return "not batch-invariant, and deterministic mode admits no other"
        return kernel.supports(local)
