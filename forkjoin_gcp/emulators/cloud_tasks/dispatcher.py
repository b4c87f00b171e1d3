"""Sends due tasks to their targets. Driven by events: one timer a queue, no polling."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from types import TracebackType

from multidict import CIMultiDict

from .faults import Faults
from .ledger import Dispatch, Ledger
from .queues import Attempt, Queue, Task, Verdict
from .sender import Sender
from .state import CloudTasksState
from .targets import HttpRequest

logger = logging.getLogger(__name__)


class Dispatcher:
    """Takes due tasks from their queues, sends them and books how it went.

    Use as an async context manager: leaving it abandons what is in flight, as the end of the
    service would; the targets see a closed connection.
    """

    def __init__(
        self, state: CloudTasksState, sender: Sender, ledger: Ledger, faults: Faults
    ) -> None:
        self._state = state
        self._sender = sender
        self._ledger = ledger
        self._faults = faults
        self._timers: dict[str, tuple[float, asyncio.TimerHandle]] = {}
        self._attempts: set[asyncio.Task[None]] = set()
        self._running = False

    async def __aenter__(self) -> Dispatcher:
        self._running = True
        for queue in self._state.queues.values():
            self.wake(queue)
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._running = False
        for _, timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        for attempt in self._attempts:
            attempt.cancel()
        await asyncio.gather(*self._attempts, return_exceptions=True)

    def wake(self, queue: Queue) -> None:
        """Sends all that may go now and sets the queue's timer for the next moment something
        may. To be called whenever the queue changed."""
        if not self._running:
            return
        now = self._state.clock()
        while (task := queue.take_due(now)) is not None:
            self._start(queue, task)
        self._set_timer(queue, queue.wake_at(now), now)

    def run_now(self, queue: Queue, task_id: str) -> Task:
        """Sends a task at once, past all limits. Raises Refusal NOT_FOUND."""
        task = queue.take(task_id, self._state.clock())
        self._start(queue, task)
        return task

    async def quiet(self) -> None:
        """Returns when no attempt is in flight."""
        while self._attempts:
            await asyncio.wait(self._attempts)

    def forget(self, queue: Queue) -> None:
        """Drops the timer of a deleted queue."""
        timer = self._timers.pop(queue.name, None)
        if timer is not None:
            timer[1].cancel()

    def _set_timer(self, queue: Queue, wake_at: float | None, now: float) -> None:
        present = self._timers.get(queue.name)
        if present is not None:
            if present[0] == wake_at:
                return
            present[1].cancel()
            del self._timers[queue.name]
        if wake_at is not None:
            handle = asyncio.get_running_loop().call_later(
                max(0.0, wake_at - now), self._on_timer, queue
            )
            self._timers[queue.name] = wake_at, handle

    def _on_timer(self, queue: Queue) -> None:
        self._timers.pop(queue.name, None)
        self.wake(queue)

    def _start(self, queue: Queue, task: Task) -> None:
        assert task.last_attempt is not None
        self._ledger.count(queue.name, "dispatches")
        target = queue.settings.http_target
        request = task.request if target is None else target.applied_to(task.request)
        headers = self._sender.headers(queue, task, request)
        self._spawn(
            self._attempt(queue, task, task.last_attempt, request, headers, task.dispatch_count - 1)
        )

    def _spawn(self, work: Coroutine[object, object, None]) -> None:
        run = asyncio.get_running_loop().create_task(work)
        self._attempts.add(run)
        run.add_done_callback(self._attempts.discard)

    async def _attempt(
        self,
        queue: Queue,
        task: Task,
        attempt: Attempt,
        request: HttpRequest,
        headers: CIMultiDict[str],
        retry_count: int,
    ) -> None:
        second = ""
        if self._faults.active:
            await asyncio.sleep(self._faults.dispatch_delay())
            second = self._faults.second_delivery()
        if second == "together":
            self._spawn(self._deliver_again(task, request, headers))
        outcome = await self._sender.send(request, headers, task.dispatch_deadline)
        if second == "after":
            self._spawn(self._deliver_again(task, request, headers))
        now = self._state.clock()
        verdict = queue.finish(task, attempt, outcome, now)
        self._ledger.record(
            Dispatch(
                name=task.name,
                started=attempt.dispatch_time,
                finished=now,
                status=outcome.status,
                error=outcome.error,
                retry_count=retry_count,
            ),
        )
        self._ledger.count(queue.name, verdict.value)
        if verdict is Verdict.EXHAUSTED:
            logger.warning("gave up %s after %d attempts", task.name, task.dispatch_count)
        if self._state.queues.get(queue.name) is queue:
            self.wake(queue)

    async def _deliver_again(
        self, task: Task, request: HttpRequest, headers: CIMultiDict[str]
    ) -> None:
        """The fault of a second delivery: nothing is made of its outcome."""
        await self._sender.send(request, headers, task.dispatch_deadline)
