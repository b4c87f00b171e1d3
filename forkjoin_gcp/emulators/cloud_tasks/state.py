"""All queues of the emulator: creating, finding, listing and deleting them. Pure, as `queues`."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable

from . import refusals
from .pacing import RateLimits, RetryPolicy
from .queues import Queue

Clock = Callable[[], float]
"""Seconds since the epoch."""


class CloudTasksState:
    """The queues, by full name (projects/P/locations/L/queues/Q).

    `tombstone_age` and `queue_tombstone_age` (seconds) are how long the name of a task, and that
    of a deleted queue, stays taken. With `auto_create` a queue that is named but missing comes
    to be with the default settings; the real service refuses.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        tombstone_age: float = 86_400.0,
        queue_tombstone_age: float = 259_200.0,
        auto_create: bool = False,
    ) -> None:
        self.clock = clock
        self.queues: dict[str, Queue] = {}
        self._tombstone_age = tombstone_age
        self._queue_tombstone_age = queue_tombstone_age
        self._auto_create = auto_create
        self._deleted: dict[str, float] = {}

    def create_queue(self, name: str, limits: RateLimits, retry: RetryPolicy) -> Queue:
        """Raises Refusal: ALREADY_EXISTS, or FAILED_PRECONDITION soon after a deletion."""
        if name in self.queues:
            raise refusals.queue_exists()
        now = self.clock()
        if self._deleted.get(name, 0.0) > now:
            raise refusals.queue_existed_recently()
        self._deleted.pop(name, None)
        queue = Queue(name, limits, retry, now=now, tombstone_age=self._tombstone_age)
        self.queues[name] = queue
        return queue

    def queue(self, name: str) -> Queue:
        """Raises Refusal NOT_FOUND."""
        queue = self.queues.get(name)
        if queue is None:
            if self._auto_create:
                return self.create_queue(name, RateLimits(), RetryPolicy())
            raise refusals.queue_missing()
        return queue

    def delete_queue(self, name: str) -> Queue:
        """Forgets a queue and its tasks; what is in flight runs on, its outcome is not used.
        Raises Refusal NOT_FOUND."""
        queue = self.queues.pop(name, None)
        if queue is None:
            raise refusals.not_found()
        queue.clear()
        self._deleted[name] = self.clock() + self._queue_tombstone_age
        return queue


def page(keys: Iterable[str], size: int, after: str) -> tuple[list[str], str]:
    """Up to `size` of the keys that come after `after`, in order, and the last one if there are
    more (else ""). The key itself is the page token, so pages survive inserts and deletes."""
    found = heapq.nsmallest(size + 1, (key for key in keys if key > after))
    more = len(found) > size
    found = found[:size]
    return found, found[-1] if more else ""
