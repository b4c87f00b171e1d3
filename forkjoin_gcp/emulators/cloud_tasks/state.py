"""All queues of the emulator: creating, finding, listing and deleting them. Pure, as `queues`."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable

from . import refusals
from .journal import Journal
from .queues import Queue, QueueSettings

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
        self.journal = Journal()
        self._tombstone_age = self._present_tombstone_age = tombstone_age
        self._queue_tombstone_age = queue_tombstone_age
        self._auto_create = auto_create
        self._deleted: dict[str, float] = {}

    def keep_in(self, journal: Journal) -> None:
        """Tells that journal of every change from now on."""
        self.journal = journal
        for queue in self.queues.values():
            queue.journal = journal

    def create_queue(self, name: str, settings: QueueSettings) -> Queue:
        """Raises Refusal: ALREADY_EXISTS, or FAILED_PRECONDITION soon after a deletion."""
        if name in self.queues:
            raise refusals.queue_exists()
        if self._deleted.get(name, 0.0) > self.clock():
            raise refusals.queue_existed_recently()
        self._deleted.pop(name, None)
        queue = self.restore_queue(name, settings)
        self.journal.queue_changed(queue)
        return queue

    def restore_queue(self, name: str, settings: QueueSettings) -> Queue:
        """Puts back a queue that a journal kept, without its tasks."""
        queue = self.queues[name] = Queue(
            name,
            settings,
            now=self.clock(),
            tombstone_age=self._present_tombstone_age,
            journal=self.journal,
        )
        return queue

    def restore_deleted(self, name: str, taken_until: float) -> None:
        """Puts back the tombstone of a queue that a journal kept."""
        self._deleted[name] = taken_until

    def buried(self, limit: int) -> list[tuple[str, float]]:
        """The full names that are held by tasks that are gone, and since when: the last `limit`,
        newest first."""
        now = self.clock()
        each = [queue.buried(now) for queue in self.queues.values()]
        newest_first = heapq.merge(*each, key=lambda entry: entry[1], reverse=True)
        return list(itertools.islice(newest_first, limit))

    def forget_tombstones_after(self, seconds: float | None) -> None:
        """Frees the names of all tasks after at most `seconds`; None keeps them as they should."""
        limit = self._tombstone_age if seconds is None else min(seconds, self._tombstone_age)
        self._present_tombstone_age = limit
        for queue in self.queues.values():
            queue.tombstone_age = limit

    def queue(self, name: str) -> Queue:
        """Raises Refusal NOT_FOUND."""
        queue = self.queues.get(name)
        if queue is None:
            if self._auto_create:
                return self.create_queue(name, QueueSettings())
            raise refusals.queue_missing()
        return queue

    def delete_queue(self, name: str) -> Queue:
        """Forgets a queue and its tasks; what is in flight runs on, its outcome is not used.
        Raises Refusal NOT_FOUND."""
        queue = self.queues.pop(name, None)
        if queue is None:
            raise refusals.not_found()
        queue.clear()
        taken_until = self._deleted[name] = self.clock() + self._queue_tombstone_age
        self.journal.queue_deleted(name, taken_until)
        return queue
