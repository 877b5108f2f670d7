"""The contract: discovery, what a platform declares, and its kernels' names, answers and refusals."""
from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import FrozenInstanceError, fields
from importlib import metadata
from itertools import product

from ...core.resolve import BoundOps, Choice, Resolution, resolve
from ...core.trace import Trace
from ...errors import ConfigError, InferplaneError, ResolutionError, SpecError
from ...ops import DEFAULTS, DTYPES, BatchShape, Scheme, Spec
from ...ops.quantize import CODES
from ...platforms import registry
from ...platforms.contract import CONTRACT, Availability, Buckets, Capabilities, Options
from ..address import Address
from ..case import Failed, Family, Params, Run
from ..examples import ACTIVATED, FORMS, PLAIN, dtype_of, quantized, specs
from ..rig import Rig
from ..xfail import excuses

NAME = re.compile(r"[a-z][a-z0-9_]*")
KERNEL_NAME = re.compile(r"[A-Za-z0-9_.+-]+")
FRAMEWORKS = ("torch", "jax", "triton", "torch_xla", "tensorflow")
GRADES = ("device", "compiled", "interpreted", "emulated")

Check = Callable[[Params, Address, Rig], None]


def expect(true: object, text: str) -> None:
    if not true:
        raise Failed(text)


def checked(check: Check) -> Run:
    """The run of a family whose cases concern no kernel by name."""
    def run(params: Params, address: Address, rig: Rig) -> tuple[str, ...]:
        check(params, address, rig)
        return ()

    return run


def _readable(what: str, text: object, least: int = 8) -> None:
    """A sentence for a person: long enough, with words, on lines that a terminal shows."""
    good = isinstance(text, str) and len(text.strip()) >= least and " " in text.strip() and text.isprintable()
    expect(good, f"{what} is {text!r}, and must be a sentence that a person can read")


# What is declared


def _discovery(params: Params, address: Address, rig: Rig) -> None:
    name = rig.platform.name
    rows = [row for row in registry.listing() if row.name == name]
    expect(
        len(rows) == 1,
        f"{name} stands {len(rows)} times in `inferplane platforms`; register it once, in the entry points of {registry.PLATFORMS}",
    )
    [row] = rows
    if rig.platform.capabilities.grade == "device":
        expect(row.usable, f"{name} runs here, and its probe says that it cannot: {row.reason}")
    expect(row.distribution not in ("", "unknown"), f"{name} belongs to no distribution; install its package with pip")
    _readable("the reason of the probe", row.reason)


def _version(params: Params, address: Address, rig: Rig) -> None:
    said = type(rig.platform).contract
    expect(
        isinstance(said, tuple) and len(said) == 2 and all(type(one) is int for one in said),
        f"contract is {said!r}, and must be two integers",
    )
    expect(said[0] == CONTRACT[0], f"contract is {said}, and this is {CONTRACT}: their first numbers must agree")


def _name(params: Params, address: Address, rig: Rig) -> None:
    name = rig.platform.name
    expect(
        NAME.fullmatch(name) and name != registry.AUTO,
        f"the name {name!r} must be lower-case letters, digits and underscores, and not 'auto'",
    )
    expect(type(rig.platform.preference) is int, f"preference is {rig.platform.preference!r}, and must be an integer")


def _probe(params: Params, address: Address, rig: Rig) -> None:
    first, second = (type(rig.platform).probe(Options()) for _ in range(2))
    expect(isinstance(first, Availability), f"probe gave {first!r}, and must give an Availability")
    expect(first == second, f"two probes in a row differ: {first}, {second}")
    _readable("the reason of the probe", first.reason)


LAZY = """
import sys
from importlib.metadata import entry_points
from inferplane.platforms.contract import Options
[entry] = entry_points(group="inferplane.platforms", name={name!r})
entry.load().probe(Options())
print(*(name for name in {frameworks!r} if name in sys.modules))
"""


def _lazy_probe(params: Params, address: Address, rig: Rig) -> None:
    """In a fresh process: loading the class and probing imports no framework, so that listing platforms is quick for everyone."""
    if not any(entry.name == rig.platform.name for entry in metadata.entry_points(group=registry.PLATFORMS)):
        raise Failed(f"{rig.platform.name} has no entry point in {registry.PLATFORMS}")
    script = LAZY.format(name=rig.platform.name, frameworks=FRAMEWORKS)
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=100, check=False)
    expect(run.returncode == 0, f"a probe in a fresh process failed: {run.stderr.strip()[-500:]}")
    expect(not run.stdout.strip(), f"the probe imports {run.stdout.strip()}; import frameworks in __init__ or later")


def _capabilities(params: Params, address: Address, rig: Rig) -> None:
    said = rig.platform.capabilities
    expect(isinstance(said, Capabilities), f"capabilities are {said!r}")
    for what in ("dtypes", "block_tokens", "devices"):
        values = getattr(said, what)
        once = isinstance(values, tuple) and values and len(set(values)) == len(values)
        expect(once, f"capabilities.{what} is {values!r}, and must be a tuple of at least one, each once")
    unknown = sorted(set(said.dtypes) - set(DTYPES))
    expect(not unknown, f"capabilities.dtypes names {', '.join(unknown)}; known: {', '.join(DTYPES)}")
    expect(all(type(size) is int and size > 0 for size in said.block_tokens), f"block sizes {said.block_tokens} must be integers above 0")
    for text in said.schemes:
        try:
            Scheme.parse(text)
        except SpecError as error:
            raise Failed(f"capabilities.schemes names {text!r}, which is no scheme: {error}") from None
    expect(said.grade in GRADES, f"grade {said.grade!r}; known: {', '.join(GRADES)}")


def _frozen(params: Params, address: Address, rig: Rig) -> None:
    """Capabilities are data that nobody changes, equal in every instance."""
    said = rig.platform.capabilities
    try:
        said.grade = "changed"  # type: ignore[misc]
    except FrozenInstanceError:
        pass
    else:
        raise Failed("capabilities can be changed; use the frozen dataclass of the contract")
    other = rig.reopen()
    try:
        expect(other.capabilities == said, "two instances of the platform declare different capabilities")
    finally:
        other.close()


def _buckets(params: Params, address: Address, rig: Rig) -> None:
    buckets = rig.platform.capabilities.buckets
    if buckets is None:
        return
    for field in fields(Buckets):
        sizes = getattr(buckets, field.name)
        expect(sizes and list(sizes) == sorted(set(sizes)) and sizes[-1] > 0, f"buckets.{field.name} is {sizes}; sizes must ascend")
    for size in (1, 7, 1000):
        shape = BatchShape(size, size, size, (size, size), size, edits=size)
        padded = buckets.pad(shape)
        expect(
            padded.tokens >= size and padded.rows >= size and min(padded.blocks) >= size and buckets.pad(padded) == padded,
            f"{shape} is padded to {padded}",
        )


def _known_failures(params: Params, address: Address, rig: Rig) -> None:
    try:
        excuses(type(rig.platform))
    except ConfigError as error:
        raise Failed(str(error)) from None


def _unknown_option(params: Params, address: Address, rig: Rig) -> None:
    """What an option means nothing for is refused by name, never ignored."""
    word = "nonsense_option"
    for options in (Options(text=word), Options(extra={word: "1"})):
        try:
            opened = type(rig.platform)(options)
        except ConfigError as error:
            expect(word in str(error), f"the refusal of option {word!r} does not name it: {error}")
            _readable("the refusal of an unknown option", str(error))
        else:
            opened.close()
            raise Failed(
                f"{rig.platform.name} takes the option {word!r} ({options}) in silence; raise ConfigError for options that mean nothing",
            )


def _memory(params: Params, address: Address, rig: Rig) -> None:
    found = rig.platform.memory()
    expect(isinstance(found.total, int) and isinstance(found.free, int), f"{found}: bytes are integers")
    expect(0 < found.free <= found.total, f"{found}: free bytes must be above 0 and at most the total")


def _misuse(params: Params, address: Address, rig: Rig) -> None:
    """Errors of the platform's own are part of the one tree: probing and opening with options never raise anything else."""
    try:
        type(rig.platform).probe(Options(text="nonsense_option"))
    except InferplaneError:
        return
    except Exception as error:
        raise Failed(f"probe raised {type(error).__name__} for an unknown option: {error}. Raise ConfigError, or answer.") from None


# Kernels


def _kernels(params: Params, address: Address, rig: Rig) -> None:
    for kernel in rig.kernels:
        expect(
            kernel.op in Spec.families,
            f"{kernel.name} is for op {kernel.op!r}, which does not exist; known: {', '.join(sorted(Spec.families))}",
        )
        expect(
            KERNEL_NAME.fullmatch(kernel.name),
            f"a kernel for {kernel.op} is called {kernel.name!r}; use letters, digits, dots, + and -",
        )
        expect(callable(kernel.supports) and callable(kernel.run), f"{kernel.name}: supports and run must be callable")
        expect(kernel.prepare is None or callable(kernel.prepare), f"{kernel.name}: prepare must be callable or None")


def _kernel_names(params: Params, address: Address, rig: Rig) -> None:
    seen: set[tuple[str, str]] = set()
    for kernel in rig.kernels:
        expect(
            (kernel.op, kernel.name) not in seen,
            f"two kernels for {kernel.op} are called {kernel.name}; a user could not choose between them",
        )
        seen.add((kernel.op, kernel.name))


def _kernels_stable(params: Params, address: Address, rig: Rig) -> None:
    first, second = ([(kernel.op, kernel.name) for kernel in rig.platform.kernels()] for _ in range(2))
    expect(first == second, "kernels() gives other kernels, or another order, when it is asked again")


def _batch_invariant(params: Params, address: Address, rig: Rig) -> None:
    for kernel in rig.kernels:
        expect(
            type(kernel.batch_invariant) is bool,
            f"{kernel.name} for {kernel.op}: batch_invariant is {kernel.batch_invariant!r}, and must be True or False",
        )


def _required(params: Params, address: Address, rig: Rig) -> None:
    dtype = rig.platform.capabilities.dtypes[0]
    spec = PLAIN[params["op"]](dtype)
    reasons = [(kernel.name, kernel.supports(spec)) for kernel in rig.kernels if kernel.op == spec.op]
    said = "; ".join(f"{name}: {reason}" for name, reason in reasons) or "no kernel at all"
    expect(
        any(reason is None for _, reason in reasons),
        f"no kernel does a plain {spec.op} in {dtype}, the platform's first dtype ({said})",
    )


def _supports(params: Params, address: Address, rig: Rig) -> None:
    """`supports` is a pure question: it never raises, answers the same again, and a no is a reason."""
    for spec in specs(params["op"], rig.platform.capabilities.dtypes[0]):
        for kernel in (kernel for kernel in rig.kernels if kernel.op == spec.op):
            try:
                first, second = kernel.supports(spec), kernel.supports(spec)
            except Exception as error:
                raise Failed(
                    f"{kernel.name}: supports() raised {type(error).__name__}: {error} for {spec}; it must answer None or a reason",
                ) from None
            expect(first == second, f"{kernel.name}: asked twice about {spec}, supports() said {first!r} and {second!r}")
            if first is not None:
                _readable(f"{kernel.name}'s reason against {spec}", first)


def _refusals(params: Params, address: Address, rig: Rig) -> None:
    """A no cannot be bound, and a no to a dtype names one: the one asked for, or those it computes in.

    What is refused in every dtype (a package that is not installed) is refused for another reason."""
    for spec in specs(params["op"], rig.platform.capabilities.dtypes[0]):
        for kernel in (kernel for kernel in rig.kernels if kernel.op == spec.op):
            reason = kernel.supports(spec)
            if reason is None:
                continue
            plain = PLAIN[spec.op]
            if spec == plain(dtype_of(spec) or "") and any(kernel.supports(plain(dtype)) is None for dtype in DTYPES):
                expect(
                    any(dtype in reason for dtype in DTYPES),
                    f"{kernel.name} refuses a plain {spec.op} in {dtype_of(spec)}, and its reason names no dtype: {reason}",
                )
            try:
                BoundOps(Resolution({spec: Choice(spec, spec, kernel, (), 1)}))
            except ResolutionError as error:
                expect(
                    kernel.name in str(error) and reason in str(error),
                    f"the error for a kernel bound against its word leaves out who or why: {error}",
                )
            else:
                raise Failed(f"{kernel.name} says no to {spec} ({reason}) and can be bound to it")


def _schemes(params: Params, address: Address, rig: Rig) -> None:
    """Each scheme that is declared is taken by a kernel, and no kernel takes codes of a dtype that no declared one has."""
    dtype, said = rig.platform.capabilities.dtypes[0], rig.platform.capabilities.schemes
    kernels = [kernel for kernel in rig.kernels if kernel.op == "linear"]
    for text in said:
        spec = quantized(dtype, text)
        reasons = [(kernel.name, kernel.supports(spec)) for kernel in kernels]
        expect(
            any(reason is None for _, reason in reasons),
            f"capabilities.schemes names {text}, and no kernel takes it: {'; '.join(f'{name}: {reason}' for name, reason in reasons)}",
        )
    for form in product(set(CODES) - {Scheme.parse(text).weight for text in said}, FORMS, ACTIVATED):
        spec = quantized(dtype, "".join(form))
        taker = next((kernel for kernel in kernels if kernel.supports(spec) is None), None)
        if taker is not None:
            raise Failed(f"{taker.name} takes the scheme {spec.scheme}, and capabilities.schemes names none with codes of {form[0]}")


def _explicit(params: Params, address: Address, rig: Rig) -> None:
    """A kernel that does not exist is refused, with the nearest that does."""
    dtype = rig.platform.capabilities.dtypes[0]
    spec = PLAIN["linear"](dtype)
    [known, *_] = [kernel.name for kernel in rig.supporting(spec)]
    trace = Trace({spec: 1})
    try:
        resolve(trace, rig.kernels, explicit={"linear": f"{known}x"})
    except ResolutionError as error:
        expect(known in str(error), f"the refusal of an unknown kernel does not name the nearest: {error}")
    else:
        raise Failed("a kernel that does not exist was chosen explicitly, and something else ran")
    chosen = resolve(trace, rig.kernels, explicit={"linear": known})[spec]
    expect(chosen.name == known, f"{known} was chosen explicitly, and {chosen.name} was taken")


REQUIRED = tuple(op for op in PLAIN if op not in DEFAULTS)
FAMILIES = [Family(f"contract.{name}", 0, axes, checked(check), feature="contract") for name, check, axes in (
    ("discovery", _discovery, {}), ("version", _version, {}), ("name", _name, {}), ("probe", _probe, {}), ("lazy_probe", _lazy_probe, {}),
    ("capabilities", _capabilities, {}), ("frozen", _frozen, {}), ("buckets", _buckets, {}), ("known_failures", _known_failures, {}),
    ("unknown_option", _unknown_option, {}), ("error_tree", _misuse, {}), ("memory", _memory, {}),
    ("kernels", _kernels, {}), ("kernel_names", _kernel_names, {}), ("kernels_stable", _kernels_stable, {}),
    ("batch_invariant", _batch_invariant, {}),
    ("explicit_kernel", _explicit, {}), ("required", _required, {"op": REQUIRED}), ("supports", _supports, {"op": tuple(PLAIN)}),
    ("refusals", _refusals, {"op": tuple(PLAIN)}), ("schemes", _schemes, {}),
)]
