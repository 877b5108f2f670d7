"""API keys: who asks. Keys are kept and compared as digests, in a time that tells nothing."""
from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable

from .errors import Refused


class Keys:
    """The keys that open the server; without any it is open to all."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._digests = tuple(_digest(key) for key in dict.fromkeys(keys))

    def __len__(self) -> int:
        return len(self._digests)

    def owner(self, authorization: str | None) -> str:
        """A name for the key that came as `Bearer ...`, which does not give it away; "" where none is needed.

        Every known key is compared, in full, whichever fits. Raises `Refused`.
        """
        if not self._digests:
            return ""
        scheme, _, key = (authorization or "").partition(" ")
        given = _digest(key.strip())
        fits = [hmac.compare_digest(given, known) for known in self._digests]
        if scheme.lower() != "bearer" or True not in fits:
            said = "Incorrect API key provided" if authorization else "You didn't provide an API key"
            raise Refused(401, f"{said}. Send it as the header `Authorization: Bearer KEY`.", code="invalid_api_key",
                          headers={"www-authenticate": "Bearer"})
        return given.hex()[:16]


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
