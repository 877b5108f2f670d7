"""libtpu's compiler, aimed at a slice of TPUs that need not be there: `v5e:2x4`."""
from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import jax
from jax.experimental import topologies

from ...errors import ConfigError, PlatformUnavailable
from ...ops import Kernel
from ..contract import Chip, KernelCode, Options, Platform, StepCode
from ..families.jax.ahead import Ahead
from . import Tpu
from .chips import CHIPS, TARGETS

BUSY = ("lockfile", "already in use")
"""What libtpu says where another process has it: one at a time may."""


class TpuCompiler:
    """A `StepCompiler`."""

    def __init__(self, target: str) -> None:
        name, _, slice_ = target.partition(":")
        if name not in CHIPS or not slice_:
            raise ConfigError(f"target {target!r} is unknown; known: {', '.join(TARGETS)}, and other slices of {', '.join(CHIPS)}")
        self.chip: Chip = CHIPS[name]
        self._ahead = AheadTpu(Options(extra={"target": target}))
        self.platform: Platform = self._ahead
        self.kernels: Sequence[Kernel] = self._ahead.kernels()

    def made(self) -> Sequence[KernelCode]:
        made, self._ahead.codes = self._ahead.codes, []
        return made

    def steps(self) -> Sequence[StepCode]:
        made, self._ahead.compiled = self._ahead.compiled, []
        return made


class AheadTpu(Ahead, Tpu):
    """Devices of a topology; kernels are those of the chip, not of an interpreter."""

    @cached_property
    def topology(self) -> Sequence[Any]:
        target = self.options.extra["target"]
        try:
            return tuple(topologies.get_topology_desc(target, platform="tpu").devices)
        except Exception as error:
            text = str(error)
            if any(word in text.lower() for word in BUSY):
                told = "libtpu serves one process at a time, and another one has it"
                raise PlatformUnavailable(f"{told}: {text}. Wait until that one has ended.") from error
            raise ConfigError(f"target {target!r}: libtpu knows no such slice: {text}. Known: {', '.join(TARGETS)}.") from error

    def find_device(self, options: Options) -> jax.Device:
        self.options = options
        if options.rank >= len(self.topology):
            raise ConfigError(f"target {options.extra['target']} has {len(self.topology)} chips, and device {options.rank} was asked for. "
                              "Use a smaller tensor_parallel, or a larger slice.")
        return self.topology[options.rank]
