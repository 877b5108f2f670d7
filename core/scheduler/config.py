"""The scheduler's settings."""
from __future__ import annotations

from dataclasses import dataclass

from ...errors import ConfigError


@dataclass(frozen=True)
class SchedulerConfig:
    """Chunked prefill is always on: a step computes up to `max_num_batched_tokens`, decodes first.

    max_model_len: tokens of prompt and answer together. long_prefill_tokens: the most that one prompt gets of a step,
    None: what is left. policy: fcfs, priority, fair, or a plugin of the entry-point group `inferplane.policies`.
    """

    max_model_len: int
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 2048
    enable_prefix_caching: bool = True
    policy: str = "fcfs"
    long_prefill_tokens: int | None = None

    def __post_init__(self) -> None:
        for name in ("max_model_len", "max_num_seqs", "max_num_batched_tokens", "long_prefill_tokens"):
            value = getattr(self, name)
            if value is None and name == "long_prefill_tokens":
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(f"{name} must be an integer of at least 1; found {value!r}. Leave it out for the default.")
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ConfigError(
                f"max_num_batched_tokens is {self.max_num_batched_tokens}, fewer than max_num_seqs, {self.max_num_seqs}, "
                "so that not every running sequence could decode in a step. Raise the one or lower the other.")
