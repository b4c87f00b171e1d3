"""A signal at any moment of the demo's run: cancelled, ended, and nothing said about it."""

from __future__ import annotations

import asyncio
import gc
import itertools
import signal
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from examples.demo import interrupts


@pytest.fixture(autouse=True)
def _as_a_program_has_it() -> Iterator[None]:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def run_interrupted_at(event: int) -> bool:
    """Interrupt a run at its n-th call or return of a function; whether there was one."""
    events = itertools.count()

    def profile(_frame: Any, kind: str, _function: Any) -> None:
        if kind in ("call", "return") and next(events) == event:
            sys.setprofile(None)
            signal.raise_signal(signal.SIGINT)

    async def main() -> str:
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        return "done"

    sys.setprofile(profile)
    try:
        return interrupts.run(main) != "done"
    except KeyboardInterrupt:
        return True
    finally:
        sys.setprofile(None)


def test_a_signal_at_any_moment_ends_it_quietly() -> None:
    """What is said late, of a coroutine that was never awaited or a loop left open, is an error
    in these tests, too."""
    interrupted = itertools.takewhile(run_interrupted_at, itertools.count())
    assert sum(1 for _ in interrupted) > 100
    gc.collect()


def test_a_signal_cancels_what_waits() -> None:
    cleaned = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.call_soon(signal.raise_signal, signal.SIGINT)
        try:
            await loop.create_future()
        finally:
            await asyncio.sleep(0)
            cleaned.append(True)

    with pytest.raises(KeyboardInterrupt):
        interrupts.run(main)
    assert cleaned


def test_what_it_returns_and_raises_is_passed_on() -> None:
    async def main() -> int:
        return 1 // divisor

    divisor = 1
    assert interrupts.run(main) == 1
    divisor = 0
    with pytest.raises(ZeroDivisionError):
        interrupts.run(main)
