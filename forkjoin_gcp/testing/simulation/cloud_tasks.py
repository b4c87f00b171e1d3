"""A simulated Cloud Tasks: named tasks, tombstones, retries; duplicates, delays and loss."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from random import Random

from forkjoin_gcp.errors import SchedulerUnavailable
from forkjoin_gcp.ports import TaskRequest
from forkjoin_gcp.testing.simulation.loop import SimulatedLoop
from forkjoin_gcp.testing.simulation.network import Link, Network, Trace

MIN_BACKOFF, MAX_BACKOFF = 0.5, 4.0
"""Seconds before the first retry of a task, and at most."""

DONE, BUSY, FAILED = 200, 409, 503
"""The join endpoint's answers."""


@dataclass
class TaskFaults:
    """What goes wrong at Cloud Tasks itself. Probabilities are of a dispatch, or a task.

    ``tombstone`` is how many seconds a name is kept after its task is done. ``max_tries`` is the
    queue's limit of attempts, after which a task is dropped; 0 is none.
    """

    duplicates: float = 0.0
    delays: float = 0.0
    lost_tasks: float = 0.0
    tombstone: float = 3600.0
    max_tries: int = 0

    def heal(self) -> None:
        """From here on nothing goes wrong."""
        self.duplicates = self.delays = self.lost_tasks = 0.0
        self.max_tries = 0


class SimulatedCloudTasks:
    """The service. ``deliver`` makes one HTTP request of a task, and returns its status."""

    def __init__(
        self,
        loop: SimulatedLoop,
        random: Random,
        trace: Trace,
        clock: Callable[[], float],
        faults: TaskFaults,
    ) -> None:
        self._loop = loop
        self._random = random
        self._trace = trace
        self._clock = clock
        self.faults = faults
        self.deliver: Callable[[TaskRequest, int], Awaitable[int]]
        self.waiting: dict[tuple[str, str], TaskRequest] = {}
        self.created: list[TaskRequest] = []
        self._ended: dict[tuple[str, str], float] = {}
        self._running = 0

    @property
    def is_idle(self) -> bool:
        """Whether no task waits, and no request is being made."""
        return not self.waiting and not self._running

    def create(self, task: TaskRequest) -> bool:
        """Take a task; False where one of its name exists, or did lately."""
        name = (task.queue, task.task_id)
        if name in self.waiting:
            return False
        ended = self._ended.get(name)
        if ended is not None and self._loop.time() < ended + self.faults.tombstone:
            return False
        self.created.append(task)
        if self._random.random() < self.faults.lost_tasks:
            self._trace("tasks", "loses", task.task_id)
            self._ended[name] = self._loop.time()
            return True
        self.waiting[name] = task
        wait = max(0.0, (task.at or 0.0) - self._clock())
        self._loop.outside_later(wait + self._delay(), self._dispatch, task, 0)
        return True

    def _delay(self) -> float:
        delay = self._random.uniform(0.001, 0.02)
        if self._random.random() < self.faults.delays:
            delay += self._random.uniform(0.0, 10.0)
        return delay

    def _dispatch(self, task: TaskRequest, tried: int) -> None:
        if (task.queue, task.task_id) not in self.waiting:
            return
        self._loop.spawn(self._loop.outside, self._try(task, tried))
        if self._random.random() < self.faults.duplicates:
            # At the same time, or when the first has long been answered.
            wait = self._random.uniform(0.0, self._random.choice((0.0, 3.0, 15.0)))
            self._trace("tasks", "duplicates", task.task_id)
            self._running += 1
            self._loop.outside_later(wait + self._delay(), self._duplicate, task, tried)

    def _duplicate(self, task: TaskRequest, tried: int) -> None:
        self._running -= 1
        self._loop.spawn(self._loop.outside, self._request(task, tried))

    async def _request(self, task: TaskRequest, tried: int) -> int:
        self._running += 1
        try:
            return await self.deliver(task, tried)
        finally:
            self._running -= 1

    async def _try(self, task: TaskRequest, tried: int) -> None:
        status = await self._request(task, tried)
        name = (task.queue, task.task_id)
        if name not in self.waiting:
            return
        exhausted = self.faults.max_tries and tried + 1 >= self.faults.max_tries
        if status == DONE or exhausted:
            if status != DONE:
                self._trace("tasks", "gives up", task.task_id)
            del self.waiting[name]
            self._ended[name] = self._loop.time()
            return
        backoff = min(MAX_BACKOFF, MIN_BACKOFF * 2.0 ** min(tried, 10))
        self._loop.outside_later(backoff + self._delay(), self._dispatch, task, tried + 1)


TRIES = 3
TRY_SECONDS = 3.0
"""As the scheduler on Cloud Tasks has them."""


class SimulatedScheduler:
    """TaskScheduler over a simulated network. ``name`` may change what a task is called."""

    def __init__(
        self,
        service: SimulatedCloudTasks,
        network: Network,
        link: Link,
    ) -> None:
        self._service = service
        self._network = network
        self._link = link

    async def create(self, task: TaskRequest) -> bool:
        for left in reversed(range(TRIES)):
            try:
                done: bool = await self._network.call(
                    self._link,
                    f"create {task.task_id}",
                    lambda: self._service.create(task),
                    TRY_SECONDS,
                )
            except OSError as error:
                if not left:
                    raise SchedulerUnavailable(f"Cloud Tasks: {error}") from error
            else:
                return done
        raise AssertionError("unreachable")

    async def close(self) -> None:
        return
