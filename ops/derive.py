"""derive: what the host could not know when it planned the step, filled in on the device."""
from __future__ import annotations

from typing import Any

import numpy as np

from .spec import Spec, spec
from .tolerance import EXACT


@spec
class Derive(Spec):
    """`ops.derive(spec, batch, state) -> batch`: a token with source s >= 0 becomes `state.last_token[s]`."""

    op = "derive"
    tolerance = EXACT

    def infer(self, batch: Any, state: Any) -> Any:
        return batch

    def reference(self, batch: Any, state: Any) -> Any:
        source = np.asarray(batch.source)
        return batch._replace(tokens=np.where(source < 0, batch.tokens, state.last_token[np.maximum(source, 0)]))
