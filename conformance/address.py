"""A case's address: `attention.decode:dtype=bfloat16;heads=32/8;d=128`. It names the case, and it is its seed."""
from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np

from ..errors import ConfigError

FAMILY = re.compile(r"[a-z0-9_]+(\.[a-z0-9_]+)*")
WILDCARDS = "*?"
PAIR = re.compile(r"[a-z0-9_]+=[A-Za-z0-9_./+-]+")


@dataclass(frozen=True)
class Address:
    """A family and its parameters, in the family's own order."""

    family: str
    params: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        pairs = ";".join(f"{name}={value}" for name, value in self.params)
        return f"{self.family}:{pairs}" if pairs else self.family

    @classmethod
    def parse(cls, text: str) -> Address:
        family, _, rest = text.strip().partition(":")
        pairs = rest.split(";") if rest else []
        if not FAMILY.fullmatch(family) or not all(PAIR.fullmatch(pair) for pair in pairs):
            raise ConfigError(f"{text!r} is no case address; one looks like linear.plain:dtype=float32;m=17;k=64")
        params = tuple((name, value) for name, _, value in (pair.partition("=") for pair in pairs))
        if len(dict(params)) != len(params):
            raise ConfigError(f"{text!r} says a parameter twice; a case has each of them once")
        return cls(family, params)

    @property
    def values(self) -> Mapping[str, str]:
        return dict(self.params)

    @property
    def seed(self) -> int:
        """64 bits of the SHA-256 of the address: a failure replays from its name alone."""
        return int.from_bytes(hashlib.sha256(str(self).encode()).digest()[:8], "little")

    def random(self) -> np.random.Generator:
        """Fresh numbers, the same each time."""
        return np.random.Generator(np.random.Philox(self.seed))

    def matches(self, query: str) -> bool:
        """A prefix of the address, or a pattern with * and ? over all of it."""
        text = str(self)
        return fnmatchcase(text, query) if any(sign in query for sign in WILDCARDS) else text.startswith(query)
