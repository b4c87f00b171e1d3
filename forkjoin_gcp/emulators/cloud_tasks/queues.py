"""The state of one queue: its tasks, the names it remembers, and what is due.

Pure: no I/O, no event loop, no clock of its own. Every method is given the time (seconds since
the epoch), so a test can run a day in a millisecond. Nothing here awaits, so a look-up and the
insertion that follows it are one step: that is what makes the dedupe of names atomic.
"""

from __future__ import annotations

import enum
import heapq
from collections.abc import Iterator
from dataclasses import dataclass, field

from . import refusals
from .journal import Journal
from .pacing import RateLimits, RetryPolicy, TokenBucket
from .targets import HttpRequest, HttpTarget

MAX_TASK_AGE = 31 * 86_400.0
"""Seconds after which a task is dropped, whether it was ever dispatched or not."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an attempt ended: a status of the target, or the reason why there was none."""

    status: int | None
    error: str = ""
    deadline_exceeded: bool = False
    retry_after: float = 0.0
    """Seconds the target asked to be left alone (its Retry-After header)."""

    @property
    def succeeded(self) -> bool:
        """Whether the target answered 2xx, which ends the task."""
        return self.status is not None and 200 <= self.status <= 299


@dataclass(slots=True)
class Attempt:
    """One dispatch: when it was meant to be, when it went out, how it ended."""

    schedule_time: float
    dispatch_time: float
    response_time: float | None = None
    outcome: Outcome | None = None


@dataclass(slots=True, eq=False)
class Task:
    """A task that is still in its queue. Times in seconds since the epoch."""

    name: str
    task_id: str
    request: HttpRequest
    create_time: float
    schedule_time: float
    dispatch_deadline: float = 600.0
    retry: RetryPolicy | None = None
    """Set when the task overrides its queue's retry settings."""
    dispatch_count: int = 0
    response_count: int = 0
    execution_count: int = 0
    """Responses other than 5xx: what X-CloudTasks-TaskExecutionCount counts."""
    failures: int = 0
    previous_status: int | None = None
    """What the target last answered; None if nothing."""
    first_dispatch: float | None = None
    last_attempt: Attempt | None = None
    ticket: int = -1
    """The heap entry that stands for this task; -1 while it waits for an answer."""

    @property
    def queue_name(self) -> str:
        """The full name of its queue."""
        return self.name[: -len(self.task_id) - len("/tasks/")]


class Verdict(enum.Enum):
    """What became of a task after an attempt."""

    COMPLETED = "completed"
    RETRIED = "retried"
    EXHAUSTED = "exhausted"
    GONE = "gone"
    """Deleted, by a client or by another run of it, while it was in flight."""


@dataclass(frozen=True, slots=True)
class QueueSettings:
    """What CreateQueue and UpdateQueue set."""

    limits: RateLimits = field(default_factory=RateLimits)
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    http_target: HttpTarget | None = None
    logging_ratio: float = 0.0
    """StackdriverLoggingConfig.sampling_ratio: kept and shown, as nothing is logged there."""


class Queue:
    """One queue. `tombstone_age` is how long, in seconds, a used name stays taken."""

    def __init__(
        self,
        name: str,
        settings: QueueSettings,
        *,
        now: float,
        tombstone_age: float,
        journal: Journal,
    ) -> None:
        self.name = name
        self.queue_id = name.rpartition("/")[2]
        self.settings = settings
        self.tasks: dict[str, Task] = {}
        self.in_flight = 0
        self.paused = False
        self.purge_time: float | None = None
        """When it was last purged; None if never."""
        self.tombstone_age = tombstone_age
        self.journal = journal
        # When each was buried. Insertion order is expiry order, as all live equally long.
        self._tombstones: dict[str, float] = {}
        self._due: list[tuple[float, int, Task]] = []
        self._last_ticket = 0
        limits = settings.limits
        self._bucket = TokenBucket(limits.max_dispatches_per_second, limits.max_burst_size, now)

    @property
    def tombstones(self) -> int:
        """Names held by tasks that are gone (as of the last call that named a time)."""
        return len(self._tombstones)

    def buried(self, now: float) -> Iterator[tuple[str, float]]:
        """The full names that tombstones hold and when each task went, the last first."""
        self._expire_tombstones(now)
        newest_first = reversed(self._tombstones.items())
        return ((f"{self.name}/tasks/{task_id}", at) for task_id, at in newest_first)

    def configure(self, settings: QueueSettings, now: float) -> None:
        """Puts new settings in force for every dispatch and retry from now on."""
        self.settings = settings
        limits = settings.limits
        self._bucket.resize(limits.max_dispatches_per_second, limits.max_burst_size, now)
        self.journal.queue_changed(self)

    def pause(self) -> None:
        """Dispatches nothing from now on but what RunTask asks for; takes tasks in as before."""
        self.paused = True
        self.journal.queue_changed(self)

    def resume(self) -> None:
        """Dispatches again."""
        self.paused = False
        self.journal.queue_changed(self)

    def purge(self, now: float) -> int:
        """Deletes every task, in flight or not; their names stay taken. How many there were."""
        doomed = list(self.tasks.values())
        for task in doomed:
            self._bury(task, now)
        self._due.clear()
        self.purge_time = now
        self.journal.queue_changed(self)
        return len(doomed)

    def add(self, task: Task, now: float) -> None:
        """Takes a task in.

        Raises Refusal ALREADY_EXISTS while its name is held by a task or by a tombstone.
        """
        if task.task_id in self.tasks:
            raise refusals.task_exists()
        if self._is_tombstone(task.task_id, now):
            raise refusals.task_existed_recently()
        self.restore(task)
        self.journal.task_added(task)

    def restore(self, task: Task) -> None:
        """Puts back a task that a journal kept, to be dispatched when it is due."""
        self.tasks[task.task_id] = task
        self._push(task)

    def restore_tombstone(self, task_id: str, buried_at: float) -> None:
        """Puts back a tombstone that a journal kept. To be called in the order of burials."""
        self._tombstones[task_id] = buried_at

    def get(self, task_id: str, now: float) -> Task:
        """The task of that id. Raises Refusal NOT_FOUND, which tells a used name from an
        unknown one."""
        task = self.tasks.get(task_id)
        if task is None:
            if self._is_tombstone(task_id, now):
                raise refusals.task_gone()
            raise refusals.not_found()
        return task

    def delete(self, task_id: str, now: float) -> None:
        """Removes a task, in flight or not; its name stays taken. Raises as `get`."""
        self._bury(self.get(task_id, now), now)

    def clear(self) -> None:
        """Forgets every task without a tombstone, as when the queue itself goes."""
        self.tasks.clear()
        self._due.clear()

    def take_due(self, now: float) -> Task | None:
        """The next task that may be dispatched at `now`, counted as in flight; else None."""
        if self._held_back():
            return None
        head = self._head(now)
        if head is None or head[0] > now or not self._bucket.take(now):
            return None
        heapq.heappop(self._due)
        return self._dispatch(head[2], now)

    def take(self, task_id: str, now: float) -> Task:
        """Dispatches a task at once, whatever the limits, in a paused queue too, and even if it
        is in flight already (RunTask does). Raises as `get`."""
        task = self.get(task_id, now)
        task.schedule_time = now
        return self._dispatch(task, now)

    def finish(self, task: Task, attempt: Attempt, outcome: Outcome, now: float) -> Verdict:
        """Books the end of an attempt: the task goes, or is scheduled for its next one."""
        self.in_flight -= 1
        attempt.response_time = now
        attempt.outcome = outcome
        task.previous_status = outcome.status
        if outcome.status is not None:
            task.response_count += 1
            if not 500 <= outcome.status <= 599:
                task.execution_count += 1
        if self.tasks.get(task.task_id) is not task:
            return Verdict.GONE
        if outcome.succeeded:
            self._bury(task, now)
            return Verdict.COMPLETED
        task.failures += 1
        policy = task.retry or self.settings.retry
        first = attempt.dispatch_time if task.first_dispatch is None else task.first_dispatch
        if policy.exhausted(task.failures, now - first):
            self._bury(task, now)
            return Verdict.EXHAUSTED
        task.schedule_time = now + max(policy.backoff(task.failures), outcome.retry_after)
        self._push(task)
        self.journal.task_changed(task)
        return Verdict.RETRIED

    def wake_at(self, now: float) -> float | None:
        """When `take_due` is next worth calling: `now` or later. None: not before a task is
        added, finished or run, or the queue's settings change."""
        head = self._head(now)
        if head is None or self._held_back():
            return None
        return max(head[0], self._bucket.ready_at(now))

    def waiting(self) -> Iterator[Task]:
        """The tasks that are not in flight, in no particular order."""
        return (task for task in self.tasks.values() if task.ticket >= 0)

    def _held_back(self) -> bool:
        return self.paused or self.in_flight >= self.settings.limits.max_concurrent_dispatches

    def _dispatch(self, task: Task, now: float) -> Task:
        task.ticket = -1
        task.dispatch_count += 1
        if task.first_dispatch is None:
            task.first_dispatch = now
        task.last_attempt = Attempt(schedule_time=task.schedule_time, dispatch_time=now)
        self.in_flight += 1
        self.journal.task_changed(task)
        return task

    def _push(self, task: Task) -> None:
        self._last_ticket += 1
        task.ticket = self._last_ticket
        heapq.heappush(self._due, (task.schedule_time, task.ticket, task))

    def _head(self, now: float) -> tuple[float, int, Task] | None:
        """The earliest entry that still stands for its task; drops those that do not (deleted,
        or dispatched out of turn) and the tasks that have grown too old."""
        while self._due:
            entry = self._due[0]
            task = entry[2]
            if task.ticket == entry[1]:
                if now - task.create_time < MAX_TASK_AGE:
                    return entry
                self._bury(task, now)
            heapq.heappop(self._due)
        return None

    def _bury(self, task: Task, now: float) -> None:
        del self.tasks[task.task_id]
        task.ticket = -1
        self._tombstones[task.task_id] = now
        self.journal.task_buried(task, now)
        self._expire_tombstones(now)

    def _is_tombstone(self, task_id: str, now: float) -> bool:
        self._expire_tombstones(now)
        return task_id in self._tombstones

    def _expire_tombstones(self, now: float) -> None:
        while self._tombstones:
            oldest = next(iter(self._tombstones))
            if self._tombstones[oldest] + self.tombstone_age > now:
                return
            del self._tombstones[oldest]
            self.journal.name_freed(self.name, oldest)
