"""The event loop of a queue in memory: virtual time that waits for what is real.

Time passes only while somebody waits for the queue, and only when nothing else can happen:

- not between two calls of a test: what is enqueued one after another is in one batch;
- not while a thread that the loop started is at work, nor a handler that is not async;
- at its real speed while a handler runs and a socket is open;
- not up to the deadline of handlers that no timer would wake before: they may wait for a thread
  that the loop knows nothing of. After STUCK_SECONDS of real waiting, that is a StuckError.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future
from types import FrameType
from typing import Any, TypeVar, TypeVarTuple, Unpack

from forkjoin_gcp.runtime import LoopThread
from forkjoin_gcp.testing import virtual_time
from forkjoin_gcp.testing.virtual_time import Ready, StuckError, VirtualTimeLoop
from forkjoin_gcp.writing.writer import GROUP_INTERVAL

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

SHOWN_HANDLERS = 3
"""How many of the handlers that wait for ever a StuckError shows."""

WAITS_FOR_ITSELF = (
    "an async handler would wait for its own event loop: there, use the coroutine instead "
    "(`await queue.aenqueue(...)`)"
)

_in_handler: contextvars.ContextVar[bool] = contextvars.ContextVar("in_handler", default=False)


class InMemoryLoop(VirtualTimeLoop):
    """A virtual loop that knows who waits for it and which handlers are in progress on it."""

    def __init__(self) -> None:
        self._waiters = 0
        self._submissions = 0
        self._watched: set[asyncio.Future[Any]] = set()
        self._handlers: dict[asyncio.Task[Any], str] = {}
        self._handlers_timers: deque[asyncio.TimerHandle] = deque()
        self._deadlines: list[float] = []
        self._stuck = ""
        super().__init__()

    def expect(self) -> None:
        """Somebody begins to wait for something: time may pass."""
        self._waiters += 1

    def submitted(self) -> None:
        """Somebody begins to wait for items to be written."""
        self._submissions += 1
        self.expect()

    def answered(self) -> None:
        """Those items are written, or refused."""
        self._submissions -= 1
        self._waiters -= 1

    async def watch(self, work: Coroutine[Any, Any, T]) -> T:
        """Do ``work`` while time may pass. Raises StuckError where handlers wait for ever."""
        self._stuck = ""
        task = asyncio.ensure_future(work)
        self._watched.add(task)
        self.expect()
        try:
            return await task
        except asyncio.CancelledError:
            if self._stuck and task.cancelled():
                raise StuckError(self._stuck) from None
            task.cancel()
            raise
        finally:
            self._watched.discard(task)
            self._waiters -= 1

    @contextlib.contextmanager
    def handler(self, what: str) -> Iterator[None]:
        """The current task is in a handler, which handles ``what``."""
        task = asyncio.current_task()
        assert task is not None
        token = _in_handler.set(True)
        self._handlers[task] = what
        try:
            yield
        finally:
            del self._handlers[task]
            _in_handler.reset(token)

    @contextlib.contextmanager
    def deadline(self, seconds: float) -> Iterator[None]:
        """Handlers begun inside are cancelled after so many seconds."""
        at = self.time() + seconds
        self._deadlines.append(at)
        try:
            yield
        finally:
            self._deadlines.remove(at)

    def call_at(
        self,
        when: float,
        callback: Callable[[Unpack[Ts]], object],
        *args: *Ts,
        context: contextvars.Context | None = None,
    ) -> asyncio.TimerHandle:
        timer = super().call_at(when, callback, *args, context=context)
        if _in_handler.get():
            self._handlers_timers.append(timer)
        return timer

    def pass_time(self, timeout: float | None, wait: Callable[[float | None], Ready]) -> Ready:
        if self._submissions and timeout is not None and timeout <= GROUP_INTERVAL:
            # The writer gathers callers. A thread that holds the time may be one of them.
            self.advance(timeout)
            return []
        if not self._waiters or self._held:
            return wait(None)
        if self._handlers and self._has_open_sockets():
            began = time.monotonic()
            ready = wait(timeout)
            passed = time.monotonic() - began
            self.advance(min(passed, timeout or passed) if ready else timeout or 0.0)
            return ready
        if timeout is None or self._only_deadlines_left(self.time() + timeout):
            ready = wait(virtual_time.STUCK_SECONDS)
            if not ready:
                self._give_up()
            return ready
        self.advance(timeout)
        return []

    def _has_open_sockets(self) -> bool:
        own_pipe = 1
        return len(self._selector.get_map()) > own_pipe  # type: ignore[attr-defined]

    def _only_deadlines_left(self, next_timer: float) -> bool:
        timers = self._handlers_timers
        while timers and (timers[0].cancelled() or timers[0].when() <= self.time()):
            timers.popleft()
        return bool(self._handlers and not timers) and next_timer >= min(self._deadlines)

    def _give_up(self) -> None:
        lines = [f"{what}: waits {_where(task)}" for task, what in self._handlers.items()]
        more = len(lines) - SHOWN_HANDLERS
        self._stuck = "\n".join(
            [
                f"{len(lines)} calls of the handler wait for what will not happen: no timer of "
                "theirs is set, no socket is open, and no other thread brought anything in "
                f"{virtual_time.STUCK_SECONDS:g} s",
                *lines[:SHOWN_HANDLERS],
                *([f"and {more} more"] if more > 0 else []),
            ]
        )
        for task in self._watched:
            task.cancel()


def _where(task: asyncio.Task[Any]) -> str:
    """The innermost line of a waiting task that is not asyncio's own."""
    line = "somewhere"
    inner: Any = task.get_coro()
    while inner is not None:
        frame: FrameType | None = getattr(inner, "cr_frame", None)
        if frame is not None and os.path.dirname(frame.f_code.co_filename) != _ASYNCIO:
            line = f'in {frame.f_code.co_name}, "{frame.f_code.co_filename}", line {frame.f_lineno}'
        inner = getattr(inner, "cr_await", None)
    return line


_ASYNCIO = os.path.dirname(asyncio.__file__)


class InMemoryThread(LoopThread):
    """A thread that runs an InMemoryLoop."""

    loop: InMemoryLoop

    def __init__(self, name: str) -> None:
        super().__init__(name, InMemoryLoop())

    def submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        if self.is_current():
            work.close()
            raise RuntimeError(WAITS_FOR_ITSELF)
        return super().submit(work)

    def is_current(self) -> bool:
        """Whether the caller is on this thread, and would wait for itself."""
        return threading.current_thread() is self._thread

    def stop(self) -> None:
        """End the loop and what still runs on it; a handler that will not end is left behind."""
        if self._thread.is_alive():
            self.loop.call_soon_threadsafe(self.loop.expect)
            self.loop.call_soon_threadsafe(self.loop.stop)
            self._thread.join(virtual_time.STUCK_SECONDS + 1)
