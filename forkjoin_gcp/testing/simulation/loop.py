"""An event loop for several simulated processes at once, in virtual time, in an order from a seed.

Every callback belongs to a process: the one in whose context it was scheduled. Each process runs
its own callbacks in order, as an event loop does; whose turn it is, the seed decides. A process
that has crashed runs nothing any more: its coroutines stay where they were, no ``finally`` runs, as
after SIGKILL. One that is stalled runs nothing until it is let go on, as after SIGSTOP.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import heapq
import itertools
from collections import deque
from collections.abc import Callable, Coroutine
from random import Random
from typing import Any, TypeVar, TypeVarTuple, Unpack

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

_process: contextvars.ContextVar[Process] = contextvars.ContextVar("process")


class EndlessError(AssertionError):
    """A simulated world did not come to rest within its limits."""


class Process:
    """What can crash and stall by itself. ``crash_at_step`` counts its callbacks."""

    __slots__ = (
        "alive",
        "context",
        "crash_at_step",
        "name",
        "on_crash",
        "ready",
        "stalled",
        "steps",
    )

    def __init__(self, name: str) -> None:
        self.name = name
        self.alive = True
        self.stalled = False
        self.steps = 0
        self.crash_at_step: int | None = None
        self.on_crash: Callable[[], None] = lambda: None
        self.ready: deque[Handle] = deque()
        self.context = contextvars.Context()
        self.context.run(_process.set, self)

    def __repr__(self) -> str:
        return self.name


def current_process() -> Process:
    """The process that the running callback belongs to."""
    return _process.get()


class Handle:
    """A callback that was scheduled, and the process it belongs to."""

    __slots__ = ("args", "callback", "context", "process", "was_cancelled", "when_")

    def __init__(
        self,
        callback: Callable[..., object],
        args: tuple[Any, ...],
        context: contextvars.Context,
        process: Process,
        when: float = 0.0,
    ) -> None:
        self.callback = callback
        self.args = args
        self.context = context
        self.process = process
        self.when_ = when
        self.was_cancelled = False

    def cancel(self) -> None:
        self.was_cancelled = True

    def cancelled(self) -> bool:
        return self.was_cancelled

    def when(self) -> float:
        return self.when_


class _Task(asyncio.Task[T]):
    """A task whose hash is its number, so that sets of tasks have the same order in every run."""

    _numbers = itertools.count()

    def __init__(self, coro: Any, **options: Any) -> None:
        self.number = next(self._numbers)
        super().__init__(coro, **options)

    def __hash__(self) -> int:
        return self.number


class SimulatedLoop(asyncio.BaseEventLoop):
    """Runs until a coroutine of the outside world is done. ``outside`` never crashes or stalls."""

    def __init__(self, random: Random) -> None:
        super().__init__()
        self._random = random
        self._now = 0.0
        self._timers: list[tuple[float, int, Handle]] = []
        self._numbers = itertools.count()
        self._runnable: list[Process] = []
        self._spawned: list[_Task[Any]] = []
        self._ended_for_good = False
        self._failure: BaseException | None = None
        self.outside = Process("world")
        self.steps = 0

    def time(self) -> float:
        return self._now

    def get_debug(self) -> bool:
        return False

    def close(self) -> None:
        """It ends with ``run``."""

    def is_running(self) -> bool:
        return asyncio._get_running_loop() is self

    def is_closed(self) -> bool:
        return self._ended_for_good

    def call_soon(
        self,
        callback: Callable[[Unpack[Ts]], object],
        *args: *Ts,
        context: contextvars.Context | None = None,
    ) -> Any:
        context = contextvars.copy_context() if context is None else context
        process = context.get(_process, self.outside)
        handle = Handle(callback, args, context, process)
        self._make_ready(handle)
        return handle

    call_soon_threadsafe = call_soon
    """All is on one thread."""

    def call_later(
        self,
        delay: float,
        callback: Callable[[Unpack[Ts]], object],
        *args: *Ts,
        context: contextvars.Context | None = None,
    ) -> Any:
        return self.call_at(self._now + delay, callback, *args, context=context)

    def call_at(
        self,
        when: float,
        callback: Callable[[Unpack[Ts]], object],
        *args: *Ts,
        context: contextvars.Context | None = None,
    ) -> Any:
        context = contextvars.copy_context() if context is None else context
        process = context.get(_process, self.outside)
        handle = Handle(callback, args, context, process, when)
        if process.alive:
            heapq.heappush(self._timers, (when, next(self._numbers), handle))
        return handle

    def outside_later(self, delay: float, callback: Callable[..., object], *args: Any) -> Handle:
        """Call back in ``delay`` seconds, whatever becomes of the process that asks for it."""
        handle: Handle = self.call_later(delay, callback, *args, context=self.outside.context)
        return handle

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(
        self,
        coro: Any,
        *,
        name: object = None,
        context: contextvars.Context | None = None,
        **options: Any,
    ) -> Any:
        task: _Task[Any] = _Task(
            coro, loop=self, name=name and str(name), context=context, **options
        )
        self._spawned.append(task)
        return task

    def spawn(self, process: Process, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Begin ``work`` in a process. What it raises ends the world."""
        task: asyncio.Task[T] = self.create_task(work, context=process.context.copy())
        task.add_done_callback(self._ended, context=self.outside.context)
        return task

    def fail(self, error: BaseException) -> None:
        """End the world with ``error``."""
        self._failure = self._failure or error

    def _ended(self, task: asyncio.Task[Any]) -> None:
        if not task.cancelled() and (error := task.exception()):
            self.fail(error)

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if isinstance(error, BaseException) and not self._ended_for_good:
            self.fail(error)

    def crash(self, process: Process) -> None:
        """End a process between two of its steps: nothing of it runs any more."""
        if process.alive:
            process.alive = False
            process.ready.clear()
            if process in self._runnable:
                self._runnable.remove(process)
            process.on_crash()

    def stall(self, process: Process) -> None:
        """Let a process run nothing until ``go_on``."""
        process.stalled = True
        if process in self._runnable:
            self._runnable.remove(process)

    def go_on(self, process: Process) -> None:
        """Let a stalled process run what has come up for it."""
        process.stalled = False
        if process.alive and process.ready and process not in self._runnable:
            self._runnable.append(process)

    def run(self, main: Coroutine[Any, Any, T], *, max_steps: int, max_seconds: float) -> T:
        """The result of ``main``, run outside of any process.

        Raises EndlessError beyond a limit, or where everything waits for what cannot happen, and
        whatever a callback or a task that nobody waits for raised.
        """
        asyncio._set_running_loop(self)
        try:
            task = self.outside.context.copy().run(self.create_task, main)
            while not task.done():
                self._step(max_steps, max_seconds)
                if self._failure is not None:
                    raise self._failure
            result: T = task.result()
            return result
        finally:
            asyncio._set_running_loop(None)
            self._close()

    def _step(self, max_steps: int, max_seconds: float) -> None:
        if not self._runnable:
            self._pass_time(max_seconds)
            return
        runnable = self._runnable
        at = self._random.randrange(len(runnable)) if len(runnable) > 1 else 0
        process = runnable[at]
        handle = process.ready.popleft()
        if not process.ready:
            runnable[at] = runnable[-1]
            runnable.pop()
        if handle.was_cancelled:
            return
        process.steps += 1
        self.steps += 1
        if self.steps > max_steps:
            raise EndlessError(f"not at rest after {max_steps:,} steps, at {self._now:.1f} s")
        if process.steps == process.crash_at_step:
            self.crash(process)
            return
        handle.context.run(handle.callback, *handle.args)

    def _pass_time(self, max_seconds: float) -> None:
        timers = self._timers
        while timers and (timers[0][2].was_cancelled or not timers[0][2].process.alive):
            heapq.heappop(timers)
        if not timers:
            raise EndlessError(f"everything waits at {self._now:.1f} s, and no timer is set")
        self._now = max(self._now, timers[0][0])
        if self._now > max_seconds:
            raise EndlessError(f"not at rest after {max_seconds:,.0f} s")
        while timers and timers[0][0] <= self._now:
            handle = heapq.heappop(timers)[2]
            if not handle.was_cancelled:
                self._make_ready(handle)

    def _make_ready(self, handle: Handle) -> None:
        process = handle.process
        if not process.alive or self._ended_for_good:
            return
        if not process.ready and not process.stalled:
            self._runnable.append(process)
        process.ready.append(handle)

    def _close(self) -> None:
        """Let go of what never ended, without letting it run."""
        self._ended_for_good = True
        self._timers.clear()
        for task in self._spawned:
            if not task.done():
                task._log_destroy_pending = False  # type: ignore[attr-defined]
                _end(task.get_coro())
        self._spawned.clear()


def _end(coroutine: Any) -> None:
    for _ in range(10):  # what awaits in a finally does not end at once
        with contextlib.suppress(BaseException):
            coroutine.close()
            return
