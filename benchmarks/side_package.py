"""The callers of this package, in a process of their own."""

from __future__ import annotations

import asyncio
import time
from collections import Counter

from redis.asyncio import Redis

from benchmarks.figures import Sample
from benchmarks.loads import Stopwatch, run_alone, run_paced, run_tasks, run_threads
from benchmarks.setting import Setting, Work, make_items
from forkjoin_gcp import ForkJoinQueue, QueueConfig
from forkjoin_gcp.config import Settings
from forkjoin_gcp.gcp.memorystore import MemorystoreIndex
from forkjoin_gcp.names import Lane

WARM_UP = 20


class SidePackage:
    """Queues by name, each warmed up by a few items."""

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._items = make_items(10_000)
        self._queues: dict[str, ForkJoinQueue[Work]] = {}

    def open(self, name: str, settings: Settings, target: str | None) -> None:
        """Without a target its tasks lead nowhere: then let ``batch_period`` be long."""
        services = self._setting.services(target)
        self._queues[name] = ForkJoinQueue(name, payload=Work, services=services, **settings)

    def warm_up(self, name: str) -> None:
        run_alone(self._queues[name].enqueue, self._items, WARM_UP, 0)

    def threads(self, name: str, callers: int, seconds: float) -> Sample:
        queue, watch = self._queues[name], Stopwatch()
        before = Counter(queue.counters)
        latencies = run_threads(queue.enqueue, self._items, callers, seconds, watch)
        return watch.sample(latencies, len(latencies), dict(queue.counters - before))

    def tasks(self, name: str, callers: int, seconds: float) -> Sample:
        queue = self._queues[name]
        before, watch = Counter(queue.counters), Stopwatch()
        latencies = asyncio.run(run_tasks(queue.aenqueue, self._items, callers, seconds))
        return watch.sample(latencies, len(latencies), dict(queue.counters - before))

    def paced(self, name: str, per_second: float, seconds: float) -> Sample:
        queue = self._queues[name]
        before, watch = Counter(queue.counters), Stopwatch()
        latencies = asyncio.run(run_paced(queue.aenqueue, self._items, per_second, seconds))
        return watch.sample(latencies, len(latencies), dict(queue.counters - before))

    def many(self, name: str, calls: int, count: int) -> Sample:
        """``calls`` calls of enqueue_many, one after the other, of ``count`` items each."""
        queue = self._queues[name]
        items = (self._items * (count // len(self._items) + 1))[:count]
        before, watch = Counter(queue.counters), Stopwatch()
        latencies = []
        for _ in range(calls):
            began = time.perf_counter()
            queue.enqueue_many(items)
            latencies.append(time.perf_counter() - began)
        return watch.sample(latencies, calls * count, dict(queue.counters - before))

    def alone(self, name: str, count: int, pause: float) -> list[float]:
        return run_alone(self._queues[name].enqueue, self._items, count, pause)

    def release_once(self, name: str, url: str, wait: float) -> float:
        """Hold a batch's last writer back until its reader waits for it, and ``wait`` s more.

        Returns the time at which the hold was about to be given back (time.monotonic).
        """
        return asyncio.run(self._release_once(self._queues[name], url, wait))

    async def _release_once(self, queue: ForkJoinQueue[Work], url: str, wait: float) -> float:
        # The writer that is late to release is one of our own making: it holds a position that
        # stays empty, which is harmless. The batch's item comes through the front door.
        lane = Lane(queue.name, queue.config.version)
        async with Redis.from_url(self._setting.valkey_url) as client:
            index = MemorystoreIndex(client, QueueConfig(queue.name), Counter())
            held = await index.reserve(lane, 1)
            await queue.aenqueue({"url": url, "body": self._items[0]["body"]})
            # Another process seals the index: there is no event to wait for.
            while not await client.hexists(lane.key, f"x:{held.index}"):  # noqa: ASYNC110
                await asyncio.sleep(0.002)
            await asyncio.sleep(wait)
            released_at = time.monotonic()
            await index.release(lane, held.index, scheduled=True)
        return released_at

    def shut(self, name: str) -> None:
        self._queues.pop(name).close()

    def close(self) -> None:
        for name in list(self._queues):
            self.shut(name)
