"""Salt: what besides its tokens decides what a block holds, or who may read it."""
from __future__ import annotations

import hashlib
from dataclasses import dataclass


@dataclass(frozen=True)
class Salt:
    """Requests share blocks only if their salts are equal.

    adapter: the name and version of the adapter that computes the keys and values.
    media: a digest of the images or sounds whose embeddings stand in the prompt.
    tenant: a secret of the caller's own, so that nobody learns by timing what others asked.
    """

    adapter: str = ""
    media: str = ""
    tenant: str = ""

    def encode(self) -> bytes:
        """Each part with its tag and its length, so that no two salts spell the same bytes."""
        parts = ((b"A", self.adapter), (b"M", self.media), (b"T", self.tenant))
        texts = ((tag, text.encode("utf-8", "surrogatepass")) for tag, text in parts)
        return b"".join(tag + len(text).to_bytes(8, "little") + text for tag, text in texts)

    def digest(self) -> str:
        """A name for the salt that does not give away the tenant's secret."""
        return hashlib.sha256(self.encode()).hexdigest()
