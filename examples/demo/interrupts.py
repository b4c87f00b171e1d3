"""Ctrl-C, and the other signals that ask for the end: never an end cut short."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

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
def held() -> Iterator[None]:
    """Let the block come to its end; then raise KeyboardInterrupt if a signal came meanwhile."""
    came: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _frame: came.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if came:
        raise KeyboardInterrupt


def _pass_on(_number: int, _frame: FrameType | None) -> None:
    signal.raise_signal(signal.SIGINT)
