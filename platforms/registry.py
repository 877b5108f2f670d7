"""Which platforms and kernel packs are installed, and the one that a name means. Nothing is kept between calls."""
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from importlib import metadata
from pathlib import Path
from typing import Any

from stevedore.driver import DriverManager

from ..errors import (
    ConfigError,
    InferplaneError,
    PlatformError,
    PlatformLoadError,
    PlatformNotFound,
    PlatformUnavailable,
)
from ..ops import KernelPack
from .contract import CONTRACT, Availability, Options, Platform

PLATFORMS = "inferplane.platforms"
KERNELS = "inferplane.kernels"
AUTO = "auto"


@dataclass(frozen=True)
class Registered:
    """One platform as its entry point and its probe describe it. `contract` and `preference` need a class that loads."""

    name: str
    distribution: str
    usable: bool
    reason: str
    remedy: str = ""
    contract: tuple[int, int] | None = None
    preference: int | None = None
    parallel: str = ""
    """What several of its devices work together with; empty: a model runs on one."""
    targets: tuple[str, ...] = ()
    """Chips that it compiles for without one at hand."""


@dataclass(frozen=True)
class Found:
    """What discovery answers: a class that was loaded and probed, and its options. It travels to worker processes."""

    platform: type[Platform]
    options: Options

    def open(self, rank: int = 0) -> Platform:
        """rank: which process of a model on several devices it is for."""
        return _open(self.platform, replace(self.options, rank=rank))


@dataclass(frozen=True)
class FoundPack:
    """A kernel pack's entry point, for worker processes: they do not search again."""

    name: str
    value: str

    def load(self, platform: str) -> KernelPack:
        entry = metadata.EntryPoint(self.name, self.value, KERNELS)
        return _checked_pack(entry.load(), entry, platform)


def named(text: str, *, threads: int | None = None, cache: Path | None = None) -> Platform:
    """The platform that `text` names, ready for use: "cpu", "cuda:1", "cuda:interpreted" or "auto".

    Raises PlatformNotFound, PlatformUnavailable or PlatformLoadError, each with the reason and the remedy.
    """
    return find(text, threads=threads, cache=cache).open()


def find(text: str, *, threads: int | None = None, cache: Path | None = None) -> Found:
    """What `named` opens. cache: a folder for compiled programs; each platform has one of its own there."""
    name, _, rest = text.strip().partition(":")
    options = _options(text, rest, threads)
    if name == AUTO:
        if rest:
            raise ConfigError(f"platform {text!r}: {AUTO!r} takes no options, found {rest!r}. Name the platform they are for.")
        return _first_usable(options, cache)
    platform = _load(name)
    availability = _probe(platform, options)
    if not availability.usable:
        raise PlatformUnavailable(f"platform {name!r} cannot run here: {_said(availability)}")
    return _found(platform, options, cache)


def _found(platform: type[Platform], options: Options, cache: Path | None) -> Found:
    return Found(platform, replace(options, cache=cache and cache / platform.name))


def loaded(text: str) -> type[Platform]:
    """The class that `text` names, whether or not it can run here; options after the colon are left to others."""
    return _load(text.strip().partition(":")[0])


def names() -> list[str]:
    """Every registered platform; none is loaded."""
    return sorted({entry.name for entry in _entries(PLATFORMS)})


def listing() -> list[Registered]:
    """Every registered platform, usable or not, in the order in which `auto` looks. All of them are loaded."""
    found = [_registered(name) for name in names()]
    return sorted(found, key=lambda one: (one.preference is None, -(one.preference or 0), one.name))


def kernel_packs(platform: str) -> list[KernelPack]:
    """The installed packs for one platform, by name. Packs of other platforms are not even loaded.

    An entry point is named `<platform>.<anything>`; it is a KernelPack, or a callable that returns one.
    Raises PlatformLoadError for a pack that cannot be used: a kernel that somebody installed is never dropped silently.
    """
    return [_pack(entry, platform) for entry in _pack_entries(platform)]


def find_packs(platform: str) -> tuple[FoundPack, ...]:
    """What `kernel_packs` loads."""
    return tuple(FoundPack(entry.name, entry.value) for entry in _pack_entries(platform))


def _pack_entries(platform: str) -> list[metadata.EntryPoint]:
    found = []
    for entry in sorted(_entries(KERNELS), key=lambda entry: entry.name):
        target, dot, _ = entry.name.partition(".")
        if not dot:
            raise PlatformLoadError(f"kernel pack {_origin(entry)}: entry points of {KERNELS} are named <platform>.<anything>, "
                                    f"for instance 'cpu.{entry.name}'. Rename it in that package, or uninstall it.")
        if target == platform:
            found.append(entry)
    return found


class Driver(DriverManager[Any]):
    """Reads entry points afresh: stevedore's cache on disk misses what was reinstalled within two minutes."""

    def list_entry_points(self) -> list[metadata.EntryPoint]:
        return list(_entries(self.namespace))


def _entries(group: str) -> Iterator[metadata.EntryPoint]:
    seen = set()
    for entry in metadata.entry_points(group=group):
        if (entry.name, entry.value) not in seen:
            seen.add((entry.name, entry.value))
            yield entry


def _driver(group: str, what: str, entry: metadata.EntryPoint) -> Any:
    """The object that one entry point names, and no other."""
    try:
        return Driver(group, entry.name).driver
    except InferplaneError:
        raise
    except (Exception, SystemExit) as error:
        raise PlatformLoadError(f"{what} {_origin(entry)} failed while loading: {type(error).__name__}: {error}. "
                                "Repair or uninstall that package.") from error


def _load(name: str) -> type[Platform]:
    entries = [entry for entry in _entries(PLATFORMS) if entry.name == name]
    if not entries:
        known = [*names(), AUTO]
        nearest = max(known, key=lambda one: SequenceMatcher(None, name, one).ratio())
        raise PlatformNotFound(f"platform {name!r} is not installed. The nearest name is {nearest!r}. Known: {', '.join(known)}.")
    if len(entries) > 1:
        origins = " and ".join(_origin(entry) for entry in entries)
        raise PlatformLoadError(f"platform {name!r} is registered twice: {origins}. Uninstall one of the packages.")
    [entry] = entries
    platform = _driver(PLATFORMS, "platform", entry)
    if not (isinstance(platform, type) and issubclass(platform, Platform)):
        raise PlatformLoadError(f"platform {_origin(entry)} is {platform!r}, and must be a subclass of contract.Platform.")
    match getattr(platform, "contract", None):
        case (int(major), int(minor)) if major != CONTRACT[0]:
            raise PlatformLoadError(f"platform {_origin(entry)} speaks contract {major}.{minor}, and this inferplane "
                                    f"{CONTRACT[0]}.{CONTRACT[1]}. Install releases of the two whose first numbers agree.")
        case (int(), int()):
            pass
        case other:
            raise PlatformLoadError(f"platform {_origin(entry)} declares contract {other!r}, and must declare two integers, "
                                    f"for instance {CONTRACT}.")
    if (own := getattr(platform, "name", None)) != name:
        raise PlatformLoadError(f"platform {_origin(entry)} calls itself {own!r}. "
                                "Its entry point and its class must agree on the name.")
    return platform


def _probe(platform: type[Platform], options: Options) -> Availability:
    try:
        return platform.probe(options)
    except InferplaneError:
        raise
    except Exception as error:
        raise PlatformLoadError(f"platform {platform.name!r}: its probe failed: {type(error).__name__}: {error}. "
                                "Report it to whoever made the plugin.") from error


def _open(platform: type[Platform], options: Options) -> Platform:
    try:
        return platform(options)
    except InferplaneError:
        raise
    except Exception as error:
        raise PlatformLoadError(f"platform {platform.name!r} failed while starting: {type(error).__name__}: {error}. "
                                "Report it to whoever made the plugin.") from error


def _first_usable(options: Options, cache: Path | None) -> Found:
    passed_over = []
    for one in listing():
        if one.preference is not None and one.preference < 0:
            continue
        if one.usable:
            return _found(_load(one.name), options, cache)
        passed_over.append(f"\n  {one.name}: {_said(one)}")
    raise PlatformUnavailable(f"no platform can run here, asked for 'auto':{''.join(passed_over) or ' none is installed'}")


def _registered(name: str) -> Registered:
    distribution = ", ".join(sorted({_distribution(entry) for entry in _entries(PLATFORMS) if entry.name == name}))
    try:
        platform = _load(name)
    except PlatformError as error:
        return Registered(name, distribution, False, str(error))
    try:
        found = _probe(platform, Options())
    except InferplaneError as error:
        found = Availability(False, str(error))
    about = (platform.contract, platform.preference, platform.parallel, platform.targets)
    return Registered(name, distribution, found.usable, found.reason, found.remedy, *about)


def _pack(entry: metadata.EntryPoint, platform: str) -> KernelPack:
    return _checked_pack(_driver(KERNELS, "kernel pack", entry), entry, platform)


def _checked_pack(found: Any, entry: metadata.EntryPoint, platform: str) -> KernelPack:
    if not isinstance(found, KernelPack) and callable(found):
        try:
            found = found()
        except Exception as error:
            raise PlatformLoadError(f"kernel pack {_origin(entry)} failed: {type(error).__name__}: {error}. "
                                    "Repair or uninstall that package.") from error
    if not isinstance(found, KernelPack):
        raise PlatformLoadError(f"kernel pack {_origin(entry)} gave {found!r}, and must give an ops.KernelPack.")
    if found.platform != platform:
        raise PlatformLoadError(f"kernel pack {_origin(entry)} is for platform {found.platform!r}. "
                                "Its entry point must begin with that name.")
    return found


def _options(text: str, rest: str, threads: int | None) -> Options:
    """`cuda:1` -> text "1"; `cpu:threads=4,isa=avx2` -> threads 4, extra {"isa": "avx2"}."""
    parts = [part.strip() for part in rest.split(",")] if rest else []
    pairs = [part.partition("=") for part in parts if "=" in part]
    extra = {key.strip(): value.strip() for key, _, value in pairs}
    if any(not part for part in parts) or len(extra) != len(pairs) or "" in extra:
        raise ConfigError(f"platform {text!r}: options after the colon are words or key=value, each once, with commas between. "
                          "Write for instance 'cuda:1' or 'cpu:threads=4'.")
    count = extra.pop("threads", None)
    if count is not None:
        if not count.isdecimal() or int(count) < 1:
            raise ConfigError(f"platform {text!r}: threads must be an integer of at least 1, found {count!r}.")
        if threads is not None and threads != int(count):
            raise ConfigError(f"platform {text!r} says threads={count}, and the setting `threads` says {threads}. Give one.")
        threads = int(count)
    return Options(",".join(part for part in parts if "=" not in part), threads, extra)


def _said(found: Availability | Registered) -> str:
    return f"{found.reason.rstrip('.')}. {found.remedy}".strip()


def _distribution(entry: metadata.EntryPoint) -> str:
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist else "unknown"


def _origin(entry: metadata.EntryPoint) -> str:
    return f"{entry.name!r} ({entry.value}, of {_distribution(entry)})"
