"""The circuit breaker: who finds Memorystore away says so, and nobody else waits for it.

While it is open a probe in the background asks, further and further apart, whether Memorystore is
back. So no caller pays for finding out.
"""

from __future__ import annotations

import asyncio
import logging

from forkjoin_gcp.errors import IndexUnavailable
from forkjoin_gcp.names import Lane
from forkjoin_gcp.ports import Counters, WorkIndex

logger = logging.getLogger(__name__)

PROBE_MIN_SECONDS = 0.5
"""How long after it opened the breaker is tried first; the wait doubles with each try."""

PROBE_MAX_SECONDS = 5.0
"""The longest wait between two tries: how late the way back may be found."""

REMIND_SECONDS = 60.0
"""How often the log is told that Memorystore is still away: it may be the address that is wrong."""


class Breaker:
    """Whether Memorystore counts as away, for one queue's writer. Belongs to one event loop."""

    def __init__(self, index: WorkIndex, answer_seconds: float, counters: Counters) -> None:
        self._index = index
        self._answer_seconds = answer_seconds
        self._counters = counters
        self._probing: asyncio.Task[None] | None = None
        self._why = ""

    @property
    def is_open(self) -> bool:
        """Whether Memorystore counts as away."""
        return self._probing is not None

    @property
    def why(self) -> str:
        """What was found when it opened."""
        return self._why

    def open(self, lane: Lane, why: str) -> None:
        """Memorystore is away, as who asked for ``lane`` found: whether that answers is probed."""
        if self._probing is not None:
            return
        self._why = why
        self._counters["breaker_opened"] += 1
        facts = {"event": "memorystore_away", "queue": lane.queue}
        logger.warning(
            "%s: Memorystore counts as away: %s", lane.queue, why, extra={"forkjoin": facts}
        )
        self._probing = asyncio.get_running_loop().create_task(self._probe(lane))

    def close(self) -> None:
        """End the probe. Memorystore counts as there again."""
        probing, self._probing = self._probing, None
        if probing is not None:
            probing.cancel()

    async def _probe(self, lane: Lane) -> None:
        wait = PROBE_MIN_SECONDS
        loop = asyncio.get_running_loop()
        told = loop.time()
        while True:
            await asyncio.sleep(wait)
            if loop.time() - told > REMIND_SECONDS:
                told = loop.time()
                logger.warning("%s: Memorystore is still away: %s", lane.queue, self._why)
            try:
                async with asyncio.timeout(self._answer_seconds):
                    await self._index.ping(lane)
                break
            except (IndexUnavailable, TimeoutError):
                wait = min(2 * wait, PROBE_MAX_SECONDS)
            except Exception:
                # A probe that ended would leave the breaker open for ever.
                logger.exception("unexpected error while probing Memorystore")
                wait = PROBE_MAX_SECONDS
        self._probing = None
        facts = {"event": "memorystore_back", "queue": lane.queue}
        logger.warning("%s: Memorystore is back", lane.queue, extra={"forkjoin": facts})
