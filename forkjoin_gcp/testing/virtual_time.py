"""An event loop on which waiting takes no time, and a clock that goes with it.

When nothing is ready to run, the loop's time jumps to the next timer instead of sleeping until it.
A test of an hour's backoff takes a millisecond, and always the same course.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

STUCK_SECONDS = 5.0
"""Real seconds after which a loop with nothing to wait for but other threads gives up."""


class StuckError(AssertionError):
    """Every task on the loop waits for something that cannot happen any more."""


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """An event loop whose ``time`` begins at 0 and passes only when there is nothing else to do."""

    def __init__(self) -> None:
        self._now = 0.0
        super().__init__(_JumpingSelector(self))

    def time(self) -> float:
        return self._now

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self._now += seconds


class _JumpingSelector(selectors.SelectSelector):
    def __init__(self, loop: VirtualTimeLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if ready:
            return ready
        if timeout is None:
            ready = super().select(STUCK_SECONDS)
            if not ready:
                raise StuckError("every task waits, and no timer is set")
            return ready
        self._loop.advance(timeout)
        return []


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
