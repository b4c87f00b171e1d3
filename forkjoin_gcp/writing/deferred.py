"""Root tasks that Cloud Tasks did not take: asked for again, until it does.

The next writer of such a batch asks, too. This is for the batch that nobody comes after. What is
still owed when the process ends is found by the sweeper.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging

from forkjoin_gcp.errors import SchedulerRefused, ServiceError
from forkjoin_gcp.ports import Counters, TaskRequest, TaskScheduler

logger = logging.getLogger(__name__)

MIN_WAIT_SECONDS = 1.0
"""How long after the first refusal all are asked for again; the wait doubles with each try."""

MAX_WAIT_SECONDS = 30.0
"""The longest wait between two tries."""

MAX_DEFERRED = 10_000
"""Root tasks that are kept, about 1 KB each. What comes on top is left to the sweeper."""

LAST_TRY_SECONDS = 0.5
"""How long a closing writer tries."""


class Deferred:
    """The root tasks that one writer owes. Belongs to one event loop."""

    def __init__(self, scheduler: TaskScheduler, counters: Counters) -> None:
        self._scheduler = scheduler
        self._counters = counters
        self._owed: dict[str, TaskRequest] = {}
        self._trying: asyncio.Task[None] | None = None

    def add(self, request: TaskRequest) -> None:
        """Ask for this one again, later."""
        if len(self._owed) < MAX_DEFERRED:
            self._owed[request.task_id] = request
        if self._trying is None:
            self._trying = asyncio.get_running_loop().create_task(self._try_again())

    async def close(self) -> None:
        """End with a last try of all that is owed."""
        trying, self._trying = self._trying, None
        if trying is None:
            return
        trying.cancel()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LAST_TRY_SECONDS):
                await self._ask_for_all()

    async def _try_again(self) -> None:
        wait = MIN_WAIT_SECONDS
        while self._owed:
            await asyncio.sleep(wait)
            wait = min(2 * wait, MAX_WAIT_SECONDS)
            await self._ask_for_all()
        self._trying = None

    async def _ask_for_all(self) -> None:
        refusing: set[str] = set()
        for task_id, request in list(self._owed.items()):
            if request.queue in refusing:
                continue
            try:
                # One that another writer created meanwhile is as good.
                await self._scheduler.create(request)
            except SchedulerRefused:
                refusing.add(request.queue)  # another shard's may take its own
                continue
            except ServiceError:
                return
            except Exception:
                logger.exception("unexpected error while scheduling %s", task_id)
                return
            del self._owed[task_id]
            self._counters["deferred_scheduled"] += 1
            logger.info("deferred root task %s was taken", task_id)
