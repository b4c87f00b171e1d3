"""The callers of the 2010 protocol, in a process of their own."""

from __future__ import annotations

import random
import time

from benchmarks.figures import Sample
from benchmarks.loads import Stopwatch, run_alone, run_threads
from benchmarks.protocol_2010 import Queue2010, Timing
from benchmarks.setting import Setting, make_items

WARM_UP = 20


class Side2010:
    """One open queue at a time, warmed up by a few items."""

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._items = make_items(10_000)
        self._queues: dict[str, Queue2010] = {}

    def open(self, name: str, batch_period: float, target: str | None) -> None:
        """Without a target its tasks lead nowhere: then let ``batch_period`` be long."""
        where = target or self._setting.join_url
        queue = Queue2010(name, self._setting, where, Timing(batch_period=batch_period))
        self._queues[name] = queue

    def warm_up(self, name: str) -> None:
        run_alone(self._queues[name].enqueue, self._items, WARM_UP, 0)

    def threads(self, name: str, callers: int, seconds: float) -> Sample:
        watch = Stopwatch()
        enqueue = self._queues[name].enqueue
        latencies = run_threads(enqueue, self._items, callers, seconds, watch)
        return watch.sample(latencies, len(latencies), _calls(len(latencies)))

    def alone(self, name: str, count: int, pause: float) -> list[float]:
        return run_alone(self._queues[name].enqueue, self._items, count, pause)

    def release_once(self, name: str, url: str, wait: float) -> float:
        """Hold a batch's last writer back until its reader waits for it, and ``wait`` s more.

        Returns the time at which the hold was about to be given back (time.monotonic).
        """
        queue = self._queues[name]
        index = queue.next_index()
        queue.put(index, {"url": url, "body": self._items[0]["body"]})
        queue.schedule(index)
        while not queue.is_closed(index):
            time.sleep(0.002)
        time.sleep(wait)
        released_at = time.monotonic()
        queue.release(index)
        return released_at

    def lay_out(self, name: str, count: int) -> None:
        """One batch of ``count`` items, whose root task is then scheduled."""
        queue = self._queues[name]
        index = queue.next_index()
        queue.put_many(index, [random.choice(self._items) for _ in range(count)])
        queue.add(index)

    def close(self) -> None:
        self._queues.clear()


def _calls(items: int) -> dict[str, int]:
    """By the protocol's text: get, increment and decrement, one document, one task."""
    return {
        "memorystore.round_trip": 3 * items,
        "firestore.commit": items,
        "firestore.documents_written": items,
        "cloud_tasks.create_task": items,
    }
