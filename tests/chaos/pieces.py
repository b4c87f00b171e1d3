"""The queue under chaos, for those who enqueue and those who join: FORKJOIN_QUEUE=...:pieces.

The handler notes what it handled in a file of its process's own in the directory HANDLED: one line
"id number" an item, past any buffer, before it returns. Some items fail now and then, some always,
some are refused, and two kill their process each time.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
from pathlib import Path

from pydantic import BaseModel

from forkjoin_gcp import ForkJoinQueue, Item, Reject
from forkjoin_gcp.config import Settings

NAME = "pieces"
HANDLED = "CHAOS_HANDLED"
FAILING_SHARE = 0.01
REFUSED, FAILING = 997, 1_499
"""Every so many-th item is refused by the handler, or fails in each try."""
POISON = (8_000, 9_000)
"""These kill their process. One takes minutes to be told from its neighbours, so they come early,
and not at all in a short run."""

SETTINGS: Settings = {
    "batch_period": 0.3,
    "writer_timeout": 1.0,
    "concurrency": 100,
    "max_attempts": 4,
    "retry_min_backoff": 0.2,
    "retry_max_backoff": 1.0,
    "dispatch_deadline": 30,
    "sweep_after": 90,
}


class Piece(BaseModel):
    number: int
    text: str


pieces = ForkJoinQueue(NAME, payload=Piece, **SETTINGS)


class _Ledger:
    """The file of this process, opened at its first line."""

    def __init__(self) -> None:
        self._file: int | None = None

    def add(self, line: str) -> None:
        if self._file is None:
            path = Path(os.environ[HANDLED]) / f"{os.getpid()}-{random.randrange(10**9)}.handled"
            self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(self._file, line.encode())


_ledger = _Ledger()


@pieces.handler
async def handle(item: Item[Piece]) -> None:
    number = item.payload.number
    await asyncio.sleep(random.uniform(0.0, 0.02))
    if number in POISON:
        os.kill(os.getpid(), signal.SIGKILL)
    if number % REFUSED == 0:
        raise Reject("every so many-th is refused")
    if number % FAILING == 0 or random.random() < FAILING_SHARE:
        raise RuntimeError("now and then")
    _ledger.add(f"{item.id} {number}\n")
