"""The watch over the engine: a server whose engine stopped, hangs in a step, or fails in each, says so and ends."""
from __future__ import annotations

import asyncio
import faulthandler
import logging

from ..errors import EngineError
from .errors import Refused
from .service import Service

LOG = logging.getLogger("inferplane.serving")
STDERR = 2
"""Its descriptor."""
INTERVAL_SECONDS = 1.0
MOST_FAILED_STEPS = 16
"""In a row. A device that ran out of memory serves the next request; one that is broken fails them all."""


async def until_broken(service: Service) -> str:
    """Why the engine can serve no more. Asked between two steps, it answers; a step that is too long counts as hung."""
    engine, limit = service.engine.engine, service.config.step_timeout_seconds
    while True:
        await asyncio.sleep(INTERVAL_SECONDS)
        try:
            stats = await asyncio.to_thread(engine.stats, limit)
        except EngineError as error:
            return str(error) if engine.closed else f"a step of the engine took longer than {limit:g} s"
        if stats.failed_in_a_row >= MOST_FAILED_STEPS:
            return f"the last {stats.failed_in_a_row} steps of the engine failed"


async def pulse(seconds: float) -> None:
    """While this runs, the process ends with exit code 1 once the event loop stood still for so long.

    A native call that never gives the interpreter back stops every thread of Python; a thread of C does not need it.
    """
    try:
        while True:
            faulthandler.dump_traceback_later(seconds, exit=True, file=STDERR)
            await asyncio.sleep(INTERVAL_SECONDS)
    finally:
        faulthandler.cancel_dump_traceback_later()


def fail_all(service: Service, why: str) -> None:
    """Requests that run get a clear error, and new ones a clear refusal."""
    LOG.critical("the engine serves no more: %s", why)
    service.gate.close(Refused(503, f"the engine serves no more: {why}", code="engine_stopped"))
    service.gate.clear(Refused(500, f"the engine serves no more: {why}", code="engine_stopped"))
