"""Several devices on the bench: a thread and a platform for each rank of a world, or one platform that holds them all."""
from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

from ..errors import ConfigError, PlatformError
from ..platforms.contract import Collectives, Platform, World
from .case import Unsupported
from .rig import Rig

PATIENCE_SECONDS = 60.0
T = TypeVar("T")


def together(rig: Rig, devices: int, work: Callable[[Platform, World, Collectives], T]) -> list[T]:
    """What `work` gives on each device, in the order of ranks; once, where one process holds all of them.

    Raises the first error of any, `Unsupported` for the platform's no.
    """
    if not rig.platform.parallel:
        raise Unsupported(f"platform {rig.platform.name} computes a model on one device")
    if rig.platform.one_process:
        return [_in_one(rig, devices, work)]
    platforms: list[Platform] = []
    try:
        try:
            platforms += [rig.device(rank) for rank in range(devices)]
        except (ConfigError, PlatformError) as reason:
            raise Unsupported(f"{len(platforms)} of {devices} devices: {reason}") from None
        with TemporaryDirectory(prefix="inferplane-") as folder, ThreadPoolExecutor(devices) as pool:
            worlds = [World(rank, devices, Path(folder), PATIENCE_SECONDS) for rank in range(devices)]
            met = list(pool.map(lambda world: platforms[world.rank].collectives(world), worlds))

            def run(world: World) -> T:
                try:
                    return work(platforms[world.rank], world, met[world.rank])
                except BaseException:
                    for one in met:
                        with suppress(Exception):
                            one.abort()
                    raise

            try:
                return [done.result() for done in [pool.submit(run, world) for world in worlds]]
            finally:
                for one in met:
                    with suppress(Exception):
                        one.close()
    finally:
        for platform in platforms:
            platform.close()


def _in_one(rig: Rig, devices: int, work: Callable[[Platform, World, Collectives], T]) -> T:
    platform, world = rig.device(0), World(size=devices, one_process=True)
    try:
        try:
            collectives = platform.collectives(world)
        except (ConfigError, PlatformError) as reason:
            raise Unsupported(f"{devices} devices: {reason}") from None
        return work(platform, world, collectives)
    finally:
        platform.close()
