"""A process that joins, on a virtual event loop: it can die, and another takes its place."""

from __future__ import annotations

import asyncio

from forkjoin_gcp.errors import StoreUnavailable
from forkjoin_gcp.joining.isolation import ProcessGate
from forkjoin_gcp.joining.reader import Reader
from forkjoin_gcp.joining.worker import Worker
from forkjoin_gcp.tasks import RootTask, parse_task
from tests.unit.rig import Rig


class Process:
    """Delivers tasks to the worker and reader of one process."""

    def __init__(self, rig: Rig) -> None:
        self._rig = rig
        self.deaths = 0
        self._start()

    def _start(self) -> None:
        rig = self._rig
        self._running: set[asyncio.Task[None]] = set()
        self.gate = ProcessGate()
        self.worker = Worker(
            rig.config, rig.ports, rig.counters, rig.codec, rig.runner, gate=self.gate
        )
        self._reader = Reader(rig.config, rig.ports, rig.counters, self.worker)

    def die(self, silent: float = 0.0) -> None:
        """End all that runs, with no time for a last word, and start afresh.

        Who waits for an answer is told after ``silent`` seconds: a process that hangs whole, its
        renewals too, keeps its connections until Cloud Tasks gives them up.
        """
        self.deaths += 1
        self._silent = silent
        for task in self._running:
            task.cancel()
        self._start()

    async def deliver(self, body: bytes, tried: int = 0) -> None:
        """Raises StoreUnavailable where the process dies of it, as Cloud Tasks sees a connection
        that breaks off."""
        running = asyncio.ensure_future(self._join(body))
        self._running.add(running)
        await asyncio.wait([running])
        self._running.discard(running)
        if running.cancelled():
            await asyncio.sleep(self._silent)
            raise StoreUnavailable("the connection broke off")
        running.result()

    async def _join(self, body: bytes) -> None:
        task = parse_task(body)
        if isinstance(task, RootTask):
            await self._reader.run(task)
        else:
            await self.worker.run(task, self._rig.loop.time())
