"""Threads with an event loop: one for all I/O of a queue, one for its handlers.

Callers on any thread or loop share the I/O loop, so group commit works across all of them, and a
handler that blocks its own loop cannot delay an ``enqueue``.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

from forkjoin_gcp.errors import QueueClosed
from forkjoin_gcp.items import Item
from forkjoin_gcp.joining.handlers import Handler, Outcome, Run

T = TypeVar("T")
Answer = list[str] | Exception
STOP_SECONDS = 1.0
"""How long a loop may take to end once it was told: what runs on it has been cancelled."""

_Answers = list[tuple[asyncio.Future[list[str]], Answer]]


class SystemClock:
    """The machine's own clock, as ports.Clock."""

    def now(self) -> float:
        return time.time()


class LoopThread:
    """A daemon thread that runs an event loop until it is stopped."""

    def __init__(self, name: str, loop: asyncio.AbstractEventLoop | None = None) -> None:
        self.loop = loop or asyncio.new_event_loop()
        self._submitting = threading.Lock()
        self._ended = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Run a coroutine on the loop; callable from any thread but its own.

        The future it returns comes to an end, by being cancelled if the loop is stopped. Raises
        QueueClosed once that is so.
        """
        with self._submitting:
            if not self._ended:
                return asyncio.run_coroutine_threadsafe(work, self.loop)
        work.close()
        raise QueueClosed

    def stop(self) -> None:
        """End the loop, cancelling what still runs on it, and the thread with it.

        A thread that does not end in STOP_SECONDS is left to itself: something blocks its loop.
        """
        if self._thread.is_alive():
            self.loop.call_soon_threadsafe(self.loop.stop)
            self._thread.join(STOP_SECONDS)

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_forever()
            with self._submitting:
                self._ended = True
            # What was submitted before that is given its turn, so that it is there to be cancelled.
            self.loop.run_until_complete(asyncio.sleep(0))
            rest = asyncio.all_tasks(self.loop)
            for task in rest:
                task.cancel()
            self.loop.run_until_complete(asyncio.gather(*rest, return_exceptions=True))
            self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        finally:
            self.loop.close()


class Inbox:
    """Hands payloads from any thread to a loop, and answers back, waking each loop once a burst.

    Waking a loop costs a system call and a switch of threads; under load one wake-up brings many.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        take: Callable[[Sequence[str], Callable[[Answer], None]], None],
    ) -> None:
        self._loop: asyncio.AbstractEventLoop | None = loop
        self._take = take
        self._handed: deque[tuple[Sequence[str], Callable[[Answer], None]]] = deque()
        self._woken = False
        self._closed = False
        self._answers: dict[asyncio.AbstractEventLoop, _Answers] = {}

    @property
    def is_waiting(self) -> bool:
        """Whether something was handed in that nobody has taken."""
        return bool(self._handed)

    def hand_in(self, payloads: Sequence[str]) -> Future[list[str]]:
        """For a thread: a future to wait on."""
        future: Future[list[str]] = Future()

        def done(answer: Answer) -> None:
            if isinstance(answer, Exception):
                future.set_exception(answer)
            else:
                future.set_result(answer)

        self._put(payloads, done)
        return future

    def hand_in_from_loop(self, payloads: Sequence[str]) -> asyncio.Future[list[str]]:
        """For a coroutine on any loop: a future of that loop."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[list[str]] = loop.create_future()

        def done(answer: Answer) -> None:
            if self._closed or self._loop is None:
                _wake(loop, [(future, answer)])
                return
            answers = self._answers.setdefault(loop, [])
            answers.append((future, answer))
            if len(answers) == 1:
                self._loop.call_soon(self._answer, loop)

        self._put(payloads, done)
        return future

    def _put(self, payloads: Sequence[str], done: Callable[[Answer], None]) -> None:
        self._handed.append((payloads, done))
        if self._closed:
            self.refuse(QueueClosed())
        else:
            self._call_drain()

    def _call_drain(self) -> None:
        while (loop := self._loop) is not None and not self._woken:
            self._woken = True
            try:
                loop.call_soon_threadsafe(self._drain)
            except RuntimeError:  # the loop has ended, and ``resume`` may have brought another
                self._woken = False
                if self._loop is loop:
                    return

    def pause(self) -> None:
        """Keep what is handed in from here on. To be called on the loop's own thread."""
        self._loop = None
        self._take = _nobody_takes
        self._answer_all()

    def resume(
        self,
        loop: asyncio.AbstractEventLoop,
        take: Callable[[Sequence[str], Callable[[Answer], None]], None],
    ) -> None:
        """After a pause, and after the end of the loop before: give all that was kept to ``take``
        on ``loop``, and what is handed in from here on."""
        self._take = take
        self._woken = False
        self._loop = loop
        self._call_drain()

    def close(self) -> None:
        """Refuse what is handed in from here on. To be called on the loop's own thread."""
        self._closed = True
        self._answer_all()
        self.refuse(QueueClosed())

    def refuse(self, error: Exception) -> None:
        """Answer all that nobody has taken with ``error``."""
        # A closing loop and a thread that came too late may both be here: each pops what it can.
        with contextlib.suppress(IndexError):
            while True:
                self._handed.popleft()[1](error)

    def _drain(self) -> None:
        if self._loop is None:
            return
        self._woken = False  # first: what is handed in from here on wakes the loop again
        while self._handed:
            self._take(*self._handed.popleft())

    def _answer_all(self) -> None:
        for loop in list(self._answers):
            self._answer(loop)

    def _answer(self, loop: asyncio.AbstractEventLoop) -> None:
        _wake(loop, self._answers.pop(loop, []))


def _nobody_takes(*_: object) -> None:
    raise AssertionError("a paused inbox keeps what it is given")


def _wake(loop: asyncio.AbstractEventLoop, answers: _Answers) -> None:
    with contextlib.suppress(RuntimeError):  # the caller's loop is closed: nobody waits any more
        loop.call_soon_threadsafe(_settle_all, answers)


def _settle_all(answers: _Answers) -> None:
    for future, answer in answers:
        if future.done():  # cancelled by its caller
            continue
        if isinstance(answer, Exception):
            future.set_exception(answer)
        else:
            future.set_result(answer)


class ThreadedRunner:
    """HandlerRunner on a loop thread of its own, started at the first item.

    Of ``dispatch_deadline`` D, a margin of a fifth (at most 30 s) is kept three times over: nothing
    new is begun in the last two margins, what runs is cancelled one margin before the end, and
    half a margin before the end a handler that cannot be cancelled is left to itself.
    """

    def __init__(self, handler: Handler, dispatch_deadline: float) -> None:
        self._handler = handler
        self._deadline = dispatch_deadline
        self._thread: LoopThread | None = None

    async def run(self, items: Sequence[Item[Any]], elapsed: float) -> list[Outcome]:
        margin = min(30.0, self._deadline / 5)
        left = max(0.0, self._deadline - elapsed - margin)
        if self._thread is None:
            self._thread = LoopThread("forkjoin-handlers")
        run = Run(items)
        future = self._thread.submit(self._bounded(run, left, margin))
        try:
            async with asyncio.timeout(left + margin / 2):
                await asyncio.wrap_future(future)
        except TimeoutError:
            future.cancel()
        return run.results()

    def stop(self) -> None:
        """End the handlers' loop, if there is one."""
        if self._thread is not None:
            self._thread.stop()

    async def _bounded(self, run: Run, seconds: float, margin: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._handler.handle(run, max(0.0, seconds - margin))
        except TimeoutError:
            return
