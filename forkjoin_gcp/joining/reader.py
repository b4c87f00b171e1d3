"""The reader, a batch's root task: seal → drain → fence → plan → schedule chunks, handle the first.

A writer that releases after the fence is told that it is late, so what the reader finds after its
fence is all that will ever be there. A clock batch has no fence but the time at which it is run.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any

from forkjoin_gcp.config import QueueConfig
from forkjoin_gcp.joining.worker import Worker
from forkjoin_gcp.names import Batch, plan_by_length, plan_by_listing, plan_by_packing
from forkjoin_gcp.ports import Counters, Extent, Ports
from forkjoin_gcp.tasks import ChunkTask, RootTask, request_for

CREATES_AT_ONCE = 100
"""Chunk tasks being created at the same time: all of a default batch of 10,000 items."""

LOOK_AGAIN_SECONDS = 1.0
"""The last writer's release wakes the reader. Should another delivery of the same root take that
wake-up, or Memorystore lose it, this is how late the reader finds out."""


class Reader:
    """Runs root tasks of one queue. Belongs to one event loop."""

    def __init__(
        self, config: QueueConfig, ports: Ports, counters: Counters, worker: Worker
    ) -> None:
        self._config = config
        self._ports = ports
        self._counters = counters
        self._worker = worker
        self._creates = asyncio.Semaphore(CREATES_AT_ONCE)

    async def run(self, task: RootTask) -> None:
        """Close the batch, see that all its chunks are scheduled, and handle the first.

        May be repeated at any time: chunks' names are the same, and what was handled is gone.
        Raises ServiceError where the machinery failed: the request is then to be made again.
        """
        self._counters["roots"] += 1
        began = asyncio.get_running_loop().time()
        if task.batch.lane.is_clock:
            await self._run_clock(task)
            return
        extent = await self._close(task.batch)
        # Where a second root runs or may run, beside this one or after it, each chunk goes by its
        # name, so that no two run the same one. Else the first chunk is handled here, a hop sooner.
        here = 0
        if extent is None or task.sweep:
            self._counters["plans_by_listing"] += 1
            listed = await self._ports.store.listing(task.batch)
            firsts = [one.first for one in listed if one.count]
            batch_size = extent.batch_size if extent else task.batch_size
            spans = plan_by_listing(firsts, batch_size or self._config.batch_size)
        else:
            spans = plan_by_length(extent.length, extent.batch_size)
            here = 1 if extent.length < self._config.max_batch_items else 0
        chunks = [ChunkTask(task.batch, *span, task.generation) for span in spans]
        await _all(
            [
                *(self._schedule(chunk) for chunk in chunks[here:]),
                *(self._worker.run(chunk, began) for chunk in chunks[:here]),
            ]
        )

    async def _run_clock(self, task: RootTask) -> None:
        """Schedule the chunks of a batch that nobody counted. Needs no Memorystore.

        Its writers' time is over when Cloud Tasks runs it. By this machine's clock, too: so a
        writer's clock may be off either, and a root that somebody ran too soon waits.
        """
        over = (task.batch.index + task.after_ms) / 1000
        early = over - self._ports.clock.now()
        if task.after_ms and early > 0:
            await asyncio.sleep(min(early, task.after_ms / 1000))
        listed = await self._ports.store.listing(task.batch)
        counts = [(one.first, one.count) for one in listed if one.count]
        spans = plan_by_packing(counts, task.batch_size or self._config.batch_size)
        chunks = [ChunkTask(task.batch, *span, task.generation) for span in spans]
        await _all(self._schedule(chunk) for chunk in chunks)

    async def _close(self, batch: Batch) -> Extent | None:
        """Let no more writers in, wait for those who are in, and end the wait."""
        index = self._ports.index
        loop = asyncio.get_running_loop()
        # A request that is cut off before the fence would wait as long when it is made again.
        patience = min(self._config.writer_timeout, self._config.dispatch_deadline / 2)
        give_up_at = loop.time() + patience
        writers = await index.seal(batch.lane, batch.index)
        while writers and loop.time() < give_up_at:
            left = give_up_at - loop.time()
            await index.wait_drained(batch.lane, batch.index, min(left, LOOK_AGAIN_SECONDS))
            writers = await index.seal(batch.lane, batch.index)
        if writers:
            self._counters["writers_given_up"] += writers
        return await index.fence(batch.lane, batch.index)

    async def _schedule(self, chunk: ChunkTask) -> None:
        async with self._creates:
            await self._ports.scheduler.create(request_for(chunk, self._config))


async def _all(work: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Do all of it, side by side; then raise what was raised first."""
    for result in await asyncio.gather(*work, return_exceptions=True):
        if isinstance(result, BaseException):
            raise result
