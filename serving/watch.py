"""The watch over the engine: a server whose engine stopped, or hangs in a step, says so and ends."""
from __future__ import annotations

import asyncio
import logging

from ..errors import EngineError
from .errors import Refused
from .service import Service

LOG = logging.getLogger("inferplane.serving")
INTERVAL_SECONDS = 1.0


async def until_broken(service: Service) -> str:
    """Why the engine can serve no more. Asked between two steps, it answers; a step that is too long counts as hung."""
    engine, limit = service.engine.engine, service.config.step_timeout_seconds
    while True:
        await asyncio.sleep(INTERVAL_SECONDS)
        try:
            await asyncio.to_thread(engine.stats, limit)
        except EngineError as error:
            return str(error) if engine.closed else f"a step of the engine took longer than {limit:g} s"


def fail_all(service: Service, why: str) -> None:
    """Requests that run get a clear error, and new ones a clear refusal."""
    LOG.critical("the engine serves no more: %s", why)
    service.gate.close(Refused(503, f"the engine serves no more: {why}", code="engine_stopped"))
    service.gate.clear(Refused(500, f"the engine serves no more: {why}", code="engine_stopped"))
