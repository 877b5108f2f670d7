"""The contract between the core and an accelerator: what a platform declares, and the dozen things it does."""
from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np

from ..errors import ConfigError, PlatformUnavailable
from ..ops import BatchShape, Kernel, Packed, Spec, StateGroup

CONTRACT = (1, 3)
"""major: refuses to load on a mismatch. minor: optional members were added (1.3: `record`), or fields that kernels must look at (1.2:
`Sampling.mask`)."""

HostArrays = Mapping[str, np.ndarray[Any, Any]]
"""Canonical blocks: for each array of a group `[layers, kv_heads, tokens, dim]`."""


@dataclass(frozen=True)
class Availability:
    """Whether a platform can run here: `reason` says what was found, `remedy` what to install or do."""

    usable: bool
    reason: str
    remedy: str = ""


@dataclass(frozen=True)
class Buckets:
    """The sizes that a platform with static shapes pads to, ascending. Past the last one, its multiples."""

    tokens: tuple[int, ...]
    rows: tuple[int, ...]
    samples: tuple[int, ...]
    blocks: tuple[int, ...]
    edits: tuple[int, ...] = (0, 64, 1024)

    def pad(self, shape: BatchShape) -> BatchShape:
        return BatchShape(
            tokens=_next(self.tokens, shape.tokens),
            rows=_next(self.rows, shape.rows),
            samples=_next(self.samples, shape.samples),
            blocks=tuple(_next(self.blocks, width) for width in shape.blocks),
            longest_query=1 if shape.longest_query == 1 else _next(self.tokens, shape.longest_query),
            edits=_next(self.edits, shape.edits),
            mask_words=shape.mask_words, logprobs=shape.logprobs,
        )


def _next(sizes: tuple[int, ...], size: int) -> int:
    return next((bucket for bucket in sizes if bucket >= size), -(-size // sizes[-1]) * sizes[-1])


@dataclass(frozen=True)
class Capabilities:
    """What a platform supports, as data: the core obeys it and never branches on a name."""

    dtypes: tuple[str, ...]
    """What a model may compute in, the preferred one first."""
    block_tokens: tuple[int, ...] = (16, 32, 64, 128, 256, 8, 1)
    """Sizes of a KV block, the preferred one first."""
    schemes: tuple[str, ...] = ()
    """Schemes of weights that kernels take, as text (`ops.Scheme`): at least one for each dtype of codes that is taken at all."""
    buckets: Buckets | None = None
    """None: shapes may differ from step to step."""
    static_shapes: bool = False
    """No other shape than the buckets' is taken: whoever compiles a step has padded it."""
    devices: tuple[str, ...] = ("cpu",)
    grade: str = "device"
    """What a run here proves: device, or interpreted."""
    warm_up: bool = False
    """Whether a shape takes so long to compile that likely ones are compiled before the first request."""


@dataclass(frozen=True)
class Memory:
    """Bytes of the device's memory: in all, and free for KV blocks."""

    total: int
    free: int


class State(Protocol):
    """Everything a step mutates. Opaque to the core."""

    last_token: Any
    """[slots + 1] int32, on the device: each slot's last sampled token. May be replaced as a whole."""

    def __getitem__(self, layer: int) -> Any:
        """The cell of one layer, for the graph to hand to its ops. Kernels read `cell.group`."""


class Pending(Protocol):
    """A submitted step."""

    def result(self) -> Any:
        """Wait, and give what the step returned, as host arrays in the same structure."""


@dataclass(frozen=True)
class World:
    """The devices that compute one model together, one process each; `rank` is ours.

    meeting: a folder that is empty at first, private, and the same for all: where the processes find each other.
    timeout_seconds: how long one waits for another before that is an error.
    one_process: all devices are this process's; `rank` is 0, and there is nobody to meet.
    """

    rank: int = 0
    size: int = 1
    meeting: Path = Path()
    timeout_seconds: float = 600.0
    one_process: bool = False

    @property
    def ranks(self) -> range:
        """Those whose devices this process holds."""
        return range(self.size) if self.one_process else range(self.rank, self.rank + 1)


class Collectives(Protocol):
    """Arrays across the devices of a `World`. Each is called by all of them, in the same order, inside steps.

    Results are the same bits on every device, in every run, and a row's do not depend on its neighbours.
    """

    def all_reduce(self, array: Any, dtype: str) -> Any:
        """The sum over the devices in the array's shape, added up at least in float32 and rounded once, to `dtype`."""

    def all_gather(self, array: Any) -> Any:
        """[..., n] of each device -> [..., size * n], in the order of ranks."""

    def abort(self) -> None:
        """From any thread: what waits for another device ends with an error."""

    def close(self) -> None:
        """After the last step."""


@dataclass(frozen=True)
class KernelCode:
    """One kernel as it was compiled for a chip, in one configuration. Registers and spills are those of one thread."""

    kernel: str
    target: str
    arguments: str
    """Types of its arguments and values of its constants, tile sizes among them."""
    options: str
    """Warps, stages, and what else its compiler was told."""
    registers: int = 0
    shared_bytes: int = 0
    """On-chip memory that one program takes."""
    spilled_bytes: int = 0
    reason: str = ""
    """Why it cannot serve there, in words for a person: the compiler's own, a tile over the chip's budget, a spill. Empty: it can."""

    @property
    def fits(self) -> bool:
        return not self.reason


class Compiler(Protocol):
    """A platform's compiler aimed at a chip that need not be there."""

    platform: Platform
    """Takes and gives arrays that have a shape and no numbers. What a step would start is compiled; nothing is started, and what is
    fetched is zeros."""
    kernels: Sequence[Kernel]
    """Those of the platform's kernels whose code is compiled here. The others start what a library brings, which proves nothing."""

    def made(self) -> Sequence[KernelCode]:
        """What the platform would have started since the last call, in order; each combination is compiled once."""


@dataclass(frozen=True)
class Chip:
    """What its maker publishes about one device."""

    name: str
    memory_bytes: int
    read_bytes_per_second: float
    flops: Mapping[str, float]
    """dtype -> multiplications and additions in a second."""
    source: str


@dataclass(frozen=True)
class StepCode:
    """One step as it was compiled whole for a chip. Bytes are one device's, as its compiler lays arrays out."""

    shape: BatchShape
    seconds: float
    """That compiling took."""
    argument_bytes: int = 0
    """Weights, state and batch."""
    temporary_bytes: int = 0
    result_bytes: int = 0
    """Of results that do not lie where an argument lay."""
    code_bytes: int = 0
    flops: float = 0.0
    """As the compiler counts: a loop's body once, and nothing within a kernel that it cannot see into."""
    reason: str = ""
    """Why there is no program: the compiler's own words. Empty: there is one."""

    @property
    def memory_bytes(self) -> int:
        return self.argument_bytes + self.temporary_bytes + self.result_bytes + self.code_bytes


@runtime_checkable
class StepCompiler(Compiler, Protocol):
    """A compiler of whole steps. `platform.collectives` says how many of the target's devices share the model."""

    chip: Chip

    def steps(self) -> Sequence[StepCode]:
        """What was submitted since the last call, in order."""


Step = Callable[[Any, Any, Any, Any], Any]
"""step(weights, state, batch, sampling) -> arrays. Traceable: nothing in it reads the host."""


@dataclass(frozen=True)
class Options:
    """What stands after the colon of a platform's name: `cuda:1` -> device 1, `cuda:interpreted` -> mode interpreted.

    rank: which process of a model on several devices this is; it takes the device so many places behind the one that is named.
    cache: a folder where compiled programs may be kept for the next start; None: nowhere.
    """

    text: str = ""
    threads: int | None = None
    extra: Mapping[str, str] = field(default_factory=dict)
    rank: int = 0
    cache: Path | None = None


class Platform(ABC):
    """One accelerator. Constructed only after its `probe` said that it is usable."""

    name: ClassVar[str]
    contract: ClassVar[tuple[int, int]]
    preference: ClassVar[int] = 50
    """`auto` takes the highest that is usable; `cpu` is 0; below 0: only when it is asked for."""
    parallel: ClassVar[str] = ""
    """What several devices exchange arrays with, and where that was run; empty: there is no `collectives`."""
    one_process: ClassVar[bool] = False
    """Whether one process holds all devices of a model. After `collectives` every array is then as many parts as there are devices:
    steps see a device's own, `join` makes one, `allocate` is told a part's sizes, and blocks hold all heads of device 0, then of 1, ..."""
    targets: ClassVar[tuple[str, ...]] = ()
    """Chips that code is compiled for without one at hand, by the names of their compiler; empty: there is no `compiler`."""
    capabilities: Capabilities

    def __init__(self, options: Options) -> None:
        """Raises `ConfigError` for options that mean nothing here."""

    @classmethod
    @abstractmethod
    def probe(cls, options: Options) -> Availability:
        """Cheap; imports no framework."""

    @classmethod
    def compiler(cls, target: str) -> Compiler:
        """One of `targets`, on any machine, whatever `probe` says. Optional.

        Raises `ConfigError` for a target that is none of them, `PlatformUnavailable` where the compiler is not installed.
        """
        raise ConfigError(f"platform {cls.name!r} compiles for no chip that is not there; asked for {target!r}")

    @abstractmethod
    def kernels(self) -> Sequence[Kernel]:
        """In order of preference."""

    @abstractmethod
    def put(self, host: np.ndarray[Any, Any]) -> Any:
        """Host to device."""

    @abstractmethod
    def fetch(self, array: Any) -> np.ndarray[Any, Any]:
        """Device to host; waits."""

    @abstractmethod
    def allocate(self, groups: Sequence[StateGroup], blocks: Sequence[int], slots: int) -> Any:
        """A zeroed `State`: for each group so many blocks (block 0 is null), and slots 1 .. `slots` (slot 0 is null)."""

    @abstractmethod
    def compile(self, step: Step, shape: BatchShape) -> Any:
        """The step for one shape: as it is, captured, or compiled."""

    def record(self, step: Step, shape: BatchShape) -> Any:
        """Instead of `compile`, where every kernel of the step is `replayable`. Optional."""
        return self.compile(step, shape)

    @abstractmethod
    def submit(self, compiled: Any, weights: Any, state: Any, packed: Packed) -> Pending:
        """Start a compiled step; steps run in the order of submission. Returns without waiting for it."""

    @abstractmethod
    def read_blocks(self, state: Any, group: int, blocks: Sequence[int]) -> HostArrays:
        """Blocks of one group in canonical form, after the steps submitted so far."""

    @abstractmethod
    def write_blocks(self, state: Any, group: int, blocks: Sequence[int], arrays: HostArrays) -> None:
        """The reverse, before any step submitted later."""

    @abstractmethod
    def copy_blocks(self, state: Any, group: int, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Copy whole blocks within one group."""

    @abstractmethod
    def memory(self) -> Memory: ...

    def measure_limits(self) -> Mapping[str, float]:
        """What the device can do, measured now: read_bytes_per_second, as usual; float32_flops, int8_ops, ..., at best. Optional."""
        return {}

    def tune_kernels(
        self, work: Sequence[tuple[Spec, int]], output: Path | None, tell: Callable[[str], None],
    ) -> tuple[Sequence[Mapping[str, Any]], Path]:
        """Measure launch configurations for specs, each with a number of tokens, and write the best: (entries, the file). Optional.

        tell(line): once for each spec. Raises `ConfigError` where there is nothing to tune, or no device to measure on.
        """
        raise ConfigError(f"platform {self.name} looks up no launch configurations, so there is nothing to tune; use cuda or rocm")

    def collectives(self, world: World) -> Collectives:
        """Meet the other devices of a model; waits for them. Optional: `parallel` says whether it is there."""
        raise PlatformUnavailable(f"platform {self.name!r} computes a model on one device. Leave tensor_parallel out.")

    def join(self, parts: Iterable[Any]) -> Any:
        """One weight from the handles of each device, in the order of ranks, taken one at a time. For `one_process`."""
        [part] = parts
        return part

    def close(self) -> None:
        """Release threads and device memory. Optional."""
