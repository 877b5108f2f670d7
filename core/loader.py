"""From a checkpoint to something that can run: model, trace, resolution, and weights prepared by the kernels that were chosen."""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from ..errors import ConfigError
from ..model_zoo.base import Model, Precision
from ..ops import DTYPES, BatchShape, KernelPack, Quantized, StateGroup, Tensor, Uncoded, Weight, WeightTable
from ..ops.quantize import quantize, restored
from ..platforms.contract import Collectives, Platform, World
from .graph import Graph, Weights
from .localize import Mesh, local_codes, local_groups, local_tensor, once, require_alike, shares_scales
from .models import model_class
from .packed_cache import PackedCache
from .quantization import choose_precision
from .resolve import Choice, Resolution, resolve
from .trace import Use, trace

Progress = Callable[[str, int, int], None]
"""progress(what, done, total)"""


class Source(Protocol):
    """Where weights come from: a checkpoint, or random numbers in its shape."""

    @property
    def config(self) -> Mapping[str, Any]: ...

    @property
    def fingerprint(self) -> str: ...

    def check(self, weights: WeightTable) -> None:
        """Raise `CheckpointError` unless every tensor of the table is there in its shape."""

    @property
    def precision(self) -> Precision:
        """How its linears are quantized already."""

    def tensor(self, name: str) -> np.ndarray[Any, Any] | Quantized:
        """A view where the format allows one."""


@runtime_checkable
class Mapped(Protocol):
    """A source whose tensors are views of files: packed ones need not stay in memory a second time."""

    def release(self, name: str) -> None:
        """The tensor's pages may go; a view of it stays sound."""


@dataclass(frozen=True)
class LoadOptions:
    """What a person may decide about a load."""

    dtype: str = "auto"
    quantization: str | None = None
    """A preset or a scheme; None: as the checkpoint is stored."""
    max_model_len: int | None = None
    block_tokens: int | None = None
    kv_dtype: str | None = None
    """Of the KV's codes, as in `WriteKV`; None: as the checkpoint says."""
    kernels: Mapping[str, str] | None = None
    """op -> kernel name: met, or an error."""
    deterministic: bool = False
    packed_cache: Path | None = None
    """A folder that keeps what kernels packed for the next start."""


@dataclass(frozen=True)
class Loaded:
    """A model on a platform, ready to step."""

    model: Model
    platform: Platform
    resolution: Resolution
    weights: Weights
    fingerprint: str
    max_model_len: int
    placed_twice: tuple[str, ...] = ()
    """Checkpoint tensors that stand in memory in more than one layout."""
    collectives: Collectives | None = None
    """Of the devices that share the model; None: it is on one."""

    @cached_property
    def graph(self) -> Graph:
        return Graph(self.model, self.resolution.bind(self.collectives))

    def compiled(self, shape: BatchShape) -> Any:
        """A step of serving as `Platform.submit` takes it."""
        make = self.platform.record if self._replayable else self.platform.compile
        return make(self.graph.step, shape)

    @cached_property
    def _replayable(self) -> bool:
        return self.resolution.replayable

    @cached_property
    def states(self) -> Sequence[StateGroup]:
        """The model's, in this device's sizes."""
        return local_groups(self.model.states, self.resolution.mesh)


def plan_model(
    source: Source, platform: Platform, options: LoadOptions, packs: Sequence[KernelPack] = (), world: World | None = None
) -> tuple[Model, Resolution]:
    """The model and its resolution, before any weight is read. world: the devices that share it; None: one."""
    world = world or World()
    dtype = choose_dtype(options.dtype, source.config, platform)
    block_tokens = _choose_block_tokens(options.block_tokens, platform)
    family = model_class(str(source.config.get("model_type", "")))
    precision = choose_precision(options.quantization, source.precision, options.kv_dtype)
    model = family(
        source.config, dtype=dtype, block_tokens=block_tokens, max_model_len=options.max_model_len, precision=precision
    )
    if options.max_model_len is not None and options.max_model_len > model.context_tokens:
        asked, most = options.max_model_len, model.context_tokens
        raise ConfigError(f"max_model_len {asked} was asked for, and this model was made for {most} tokens; lower it")
    kernels = [kernel for pack in packs for kernel in pack.kernels] + list(platform.kernels())
    traced = trace(model)
    mesh = Mesh.of(traced.specs, world.size, world.rank)
    for rank in world.ranks[1:]:
        require_alike(traced.specs, mesh, replace(mesh, rank=rank))
    return model, resolve(traced, kernels, explicit=options.kernels, deterministic=options.deterministic, mesh=mesh)


def load(
    source: Source,
    platform: Platform,
    options: LoadOptions | None = None,
    packs: Sequence[KernelPack] = (),
    progress: Progress | None = None,
    world: World | None = None,
    collectives: Collectives | None = None,
) -> Loaded:
    """Trace, resolve, check the checkpoint against the model, then read and prepare one weight after the other.

    world, collectives: of the devices that share the model. Each reads its own part of the weights.
    """
    options = options or LoadOptions()
    model, resolution = plan_model(source, platform, options, packs, world)
    source.check(model.weights)
    uses = trace(model, composed=lambda spec: resolution[spec].kernel is None).uses
    packed = _packed_cache(options.packed_cache, source, platform, resolution, uses) if options.packed_cache else None
    preparer = _Preparer(source, platform, resolution, packed, (world or World()).ranks)
    handles: dict[str, Any] = {}
    try:
        for done, use in enumerate(uses):
            handles[use.path] = preparer.handle(use)
            if progress:
                progress("loading weights", done + 1, len(uses))
    except BaseException:
        if packed:
            packed.abandon()
        raise
    if packed:
        packed.finish()
    table = model.weights
    weights = Weights(
        {name: handles[name] for name in table.top},
        tuple({name: handles[f"layers.{i}.{name}"] for name in layer} for i, layer in enumerate(table.layers)),
    )
    length = options.max_model_len or model.context_tokens
    return Loaded(model, platform, resolution, weights, source.fingerprint, length, preparer.placed_twice(), collectives)


class _Preparer:
    """Weights by the layout that their kernels want; a weight whose uses agree is placed once. ranks: whose parts are ours to make."""

    def __init__(
        self, source: Source, platform: Platform, resolution: Resolution, packed: PackedCache | None, ranks: Sequence[int] = (0,)
    ) -> None:
        self.source, self.platform, self.resolution, self.packed = source, platform, resolution, packed
        self.mesh, self.ranks = resolution.mesh, ranks
        self.made: dict[tuple[Any, ...], Any] = {}

    def handle(self, use: Use) -> Any:
        choice, weight = self.resolution[use.spec], use.weight
        assert choice.kernel is not None, "uses are traced through compositions"
        names = tuple(part.name for part in weight.parts)
        layout: Any = (choice.kernel.name, choice.local) if choice.kernel.prepare else getattr(use.spec, "dtype", None)
        key = (names, layout, tuple(part.axes for part in weight.parts) if self.mesh.ways else None)
        if key not in self.made:
            self.made[key] = self._prepare(choice, weight)
            for part in weight.parts:
                self._release(part)
        return self.made[key]

    def _release(self, part: Tensor) -> None:
        if isinstance(source := self.source, Mapped):
            for stored in part.stored:
                source.release(stored.name)

    def _prepare(self, choice: Choice, weight: Weight) -> Any:
        name = _packed_name(choice, weight.parts)
        if self.packed is None or name is None:
            return self._parts(choice, weight)
        handle = self.packed.get(name)
        if handle is None:
            handle = self._parts(choice, weight)
            self.packed.put(name, handle)
        return handle

    def _parts(self, choice: Choice, weight: Weight) -> Any:
        """This device's, or those of all devices that this process holds, as one."""
        if len(self.ranks) == 1:
            return self._read(choice, weight)
        return self.platform.join(self._of(rank)._read(choice, weight) for rank in self.ranks)

    def _of(self, rank: int) -> _Preparer:
        resolution = replace(self.resolution, mesh=replace(self.mesh, rank=rank))
        return _Preparer(self.source, self.platform, resolution, None)

    def _read(self, choice: Choice, weight: Weight) -> Any:
        read = cache(self.source.tensor)
        ready = [self._part(part, choice, read) for part in weight.tensors]
        biases = [self._part(part, choice, read) for part in weight.biases]
        if choice.joining == "sum":
            biases = [once(part, tensor, self.mesh) for part, tensor in zip(biases, weight.biases, strict=True)]
        if choice.kernel and choice.kernel.prepare:
            return choice.kernel.prepare(choice.local, ready + biases)
        return tuple(self.platform.put(array) for array in ready + biases)

    def _part(self, part: Tensor, choice: Choice, read: Callable[[str], Any]) -> Any:
        """This device's, put together where the checkpoint keeps it in pieces, cut out where it keeps more in one."""
        if part.view is not None:
            [stored] = part.stored
            return self._piece(part.view.of(self._restored(read(stored.name), stored.name, _dtype(choice))), part, choice)
        pieces = [self._piece(read(stored.name), stored, choice) for stored in part.stored]
        return np.stack(pieces) if part.stacked else pieces[0]

    def _piece(self, whole: Any, tensor: Tensor, choice: Choice) -> Any:
        """As the kernel takes it: in its dtype, or, of a quantized linear, as codes; biases and embeddings stay floats."""
        scheme, mesh = getattr(choice.spec, "scheme", None), self.mesh
        if scheme is None or len(tensor.shape) != 2:
            dtype = _dtype(choice)
            return local_tensor(self._restored(whole, tensor.name, dtype), tensor, mesh).astype(dtype, copy=False)
        if isinstance(whole, Quantized):
            return local_codes(whole, scheme, tensor, mesh)
        if mesh.ways and shares_scales(scheme, tensor, mesh):
            return local_codes(quantize(whole, scheme), scheme, tensor, mesh)
        ours = local_tensor(whole, tensor, mesh)
        sliced = choice.kernel is not None and choice.kernel.takes_slices
        return Uncoded(ours, scheme, lambda: self._release(tensor)) if sliced else quantize(ours, scheme)

    def _restored(self, weight: Any, name: str, dtype: Any) -> Any:
        """In floats."""
        if not isinstance(weight, Quantized):
            return weight
        scheme = self.source.precision.scheme(name.removesuffix(".weight"))
        assert scheme is not None, "a source that gives codes says their scheme"
        return restored(weight, scheme, dtype)

    def placed_twice(self) -> tuple[str, ...]:
        seen: dict[str, int] = {}
        for names, *_ in self.made:
            for name in names:
                seen[name] = seen.get(name, 0) + 1
        return tuple(name for name, count in seen.items() if count > 1)


def _dtype(choice: Choice) -> Any:
    return DTYPES[getattr(choice.spec, "dtype", "float32")]


def _packed_name(choice: Choice, parts: Sequence[Tensor]) -> str | None:
    """What a packed weight is called in a cache; None where its kernel keeps nothing."""
    kernel = choice.kernel
    if kernel is None or kernel.prepare is None or not kernel.layout:
        return None
    return " | ".join([kernel.name, kernel.layout, str(choice.local), *(part.name for part in parts)])


def _packed_cache(folder: Path, source: Source, platform: Platform, resolution: Resolution, uses: Sequence[Use]) -> PackedCache:
    """One file for a model on a platform with its kernels and specs, whatever their build."""
    specs = sorted({f"{choice.name} {choice.local}" for choice in resolution})
    mesh = resolution.mesh
    device = [f"{mesh.rank} of {mesh.size}"] if mesh.ways else []
    digest = sha256("\n".join([source.fingerprint, platform.name, *specs, *device]).encode()).hexdigest()[:32]
    names = sorted({name for use in uses if (name := _packed_name(resolution[use.spec], use.weight.parts))})
    return PackedCache(folder, digest, names)


def choose_dtype(asked: str, config: Mapping[str, Any], platform: Platform) -> str:
    """What was asked for, or an error; `auto`: the checkpoint's own where the platform can, else the platform's first."""
    known = platform.capabilities.dtypes
    if asked != "auto":
        if asked not in known:
            can = ", ".join(known)
            raise ConfigError(f"dtype {asked!r} was asked for, and {platform.name} computes in {can}; choose one of them or auto")
        return asked
    own = str(config.get("dtype") or config.get("torch_dtype") or "").removeprefix("torch.")
    return own if own in known else known[0]


def _choose_block_tokens(asked: int | None, platform: Platform) -> int:
    known = platform.capabilities.block_tokens
    if asked is not None and asked not in known:
        raise ConfigError(f"block_size {asked} was asked for, and {platform.name} takes {', '.join(map(str, known))}")
    return known[0] if asked is None else asked
