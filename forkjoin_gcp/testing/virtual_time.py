"""An event loop on which waiting takes no time, and a clock that goes with it.

When nothing is ready to run, the loop's time jumps to the next timer instead of sleeping until it.
A test of an hour's backoff takes a millisecond, and always the same course.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from typing import Any, TypeVar, TypeVarTuple, Unpack

T = TypeVar("T")
Ts = TypeVarTuple("Ts")
Ready = list[tuple[selectors.SelectorKey, int]]

STUCK_SECONDS = 5.0
"""Real seconds after which a loop with nothing to wait for but other threads gives up."""


class StuckError(AssertionError):
    """Every task on the loop waits for something that cannot happen any more."""


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """An event loop whose ``time`` begins at 0 and passes only when there is nothing else to do.

    It does not pass while a thread of ``run_in_executor`` or ``asyncio.to_thread`` is at work.
    """

    def __init__(self) -> None:
        self._now = 0.0
        self._held = 0
        super().__init__(_JumpingSelector(self))

    def time(self) -> float:
        return self._now

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self._now += seconds

    def hold_until(self, future: asyncio.Future[Any]) -> None:
        """Let no time pass until ``future``, which another thread will settle, is done."""
        self._held += 1
        future.add_done_callback(self._let_go)

    def run_in_executor(
        self, executor: Executor | None, func: Callable[[Unpack[Ts]], T], *args: *Ts
    ) -> asyncio.Future[T]:
        future = super().run_in_executor(executor, func, *args)
        self.hold_until(future)
        return future

    def pass_time(self, timeout: float | None, wait: Callable[[float | None], Ready]) -> Ready:
        """Nothing is ready, and the next timer is ``timeout`` seconds ahead: go there.

        Or ``wait`` so many real seconds for other threads, and return what they made ready.
        """
        if self._held:
            return wait(None)
        if timeout is None:
            ready = wait(STUCK_SECONDS)
            if not ready:
                raise StuckError("every task waits, and no timer is set")
            return ready
        self.advance(timeout)
        return []

    def _let_go(self, _: asyncio.Future[Any]) -> None:
        self._held -= 1


class _JumpingSelector(selectors.DefaultSelector):
    def __init__(self, loop: VirtualTimeLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> Ready:
        ready = super().select(0)
        if ready or timeout == 0:
            return ready
        return self._loop.pass_time(timeout, super().select)


class VirtualClock:
    """ports.Clock in step with a virtual loop: Unix time ``start`` at the loop's 0."""

    def __init__(self, loop: VirtualTimeLoop, start: float = 1_800_000_000.0) -> None:
        self._loop = loop
        self._start = start

    def now(self) -> float:
        return self._start + self._loop.time()


def run_virtual(main: Coroutine[Any, Any, T]) -> T:
    """Run ``main`` on a virtual loop of its own and return its result.

    Raises StuckError where it would wait for ever.
    """
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(main)
