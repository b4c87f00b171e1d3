"""Ctrl-C, and the other signals that ask for the end: never an end cut short."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Callable, Coroutine, Iterator
from types import FrameType
from typing import Any, TypeVar

T = TypeVar("T")

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
STATUS = 128 + signal.SIGINT


def accept() -> None:
    """From here on a signal raises KeyboardInterrupt, also one that was blocked until now.

    Even where the parent had SIGINT ignored, as a shell does for what it runs in the background.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, _pass_on)
    signal.signal(signal.SIGHUP, _pass_on)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def ignore() -> None:
    """For the last steps before the process ends."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@contextlib.contextmanager
def held(answer: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Let the block come to its end, and call ``answer`` for each signal meanwhile; then raise
    KeyboardInterrupt if there was one."""
    came: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        came.append(number)
        answer()

    before = signal.signal(signal.SIGINT, note)
    try:
        yield
    except BaseException:
        if not came:
            raise
    finally:
        signal.signal(signal.SIGINT, before)
    if came:
        raise KeyboardInterrupt


def run(main: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """What the coroutine that ``main`` makes returns. A signal cancels it, and raises
    KeyboardInterrupt once it has ended.

    asyncio.run alone answers signals by the same, but only from its first step to its last: one
    that comes while the loop is made or closed would leave a coroutine that was never awaited.
    """
    task: asyncio.Task[Any] | None = None
    interrupted = False

    def cancel() -> None:
        nonlocal interrupted
        interrupted = True
        if task is not None and not task.done():
            task.get_loop().call_soon_threadsafe(task.cancel)

    async def cancellable() -> T:
        nonlocal task
        task = asyncio.current_task()
        if interrupted:
            raise asyncio.CancelledError
        return await main()

    with held(cancel):
        try:
            return asyncio.run(cancellable())
        finally:
            task = None  # and with it the loop, whose destructor would swallow a signal


def _pass_on(_number: int, _frame: FrameType | None) -> None:
    signal.raise_signal(signal.SIGINT)
