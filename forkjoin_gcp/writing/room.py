"""Backpressure: how much may be pending in a process, and who waits for room, first come first in.

Who hands items in waits for its answer anyway, so it is there that it waits: a thread blocks, a
coroutine awaits, and what they hold is theirs. What is let in is bounded.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from forkjoin_gcp.config import QueueConfig
from forkjoin_gcp.errors import QueueClosed, QueueFull
from forkjoin_gcp.items import payload_bytes
from forkjoin_gcp.ports import Counters

Enter = Callable[[], None]
Refuse = Callable[[Exception], None]


@dataclass(frozen=True, slots=True)
class Load:
    """What one caller hands in at once."""

    items: int
    bytes: int

    @classmethod
    def of(cls, payloads: Sequence[str]) -> Load:
        return cls(len(payloads), payload_bytes(payloads))


@dataclass(frozen=True, slots=True)
class _Waiter:
    load: Load
    until: float
    enter: Enter
    refuse: Refuse


class Room:
    """Lets loads in up to ``max_pending_items`` and ``max_pending_bytes``. Belongs to one loop.

    Those that find no room wait in their order, each for ``enqueue_timeout`` seconds. One that is
    larger than all the room there is goes in alone.
    """

    def __init__(self, config: QueueConfig, counters: Counters) -> None:
        self._config = config
        self._counters = counters
        self._items = 0
        self._bytes = 0
        self._waiting: deque[_Waiter] = deque()
        self._timer: asyncio.TimerHandle | None = None

    def ask(self, load: Load, enter: Enter, refuse: Refuse) -> None:
        """Call ``enter`` when there is room for ``load``, or ``refuse`` with QueueFull."""
        if not self._waiting and self._fits(load):
            self._let_in(load, enter)
            return
        if not self._config.enqueue_timeout:
            self._refuse(load, refuse)
            return
        self._counters["waits_for_room"] += 1
        until = asyncio.get_running_loop().time() + self._config.enqueue_timeout
        self._waiting.append(_Waiter(load, until, enter, refuse))
        self._watch()

    def leave(self, load: Load) -> None:
        """What was let in has met its end."""
        self._items -= load.items
        self._bytes -= load.bytes
        self._let_in_who_fits()

    def close(self) -> None:
        """Refuse all who wait: the queue was closed."""
        if self._timer is not None:
            self._timer.cancel()
        while self._waiting:
            self._waiting.popleft().refuse(QueueClosed())

    def _fits(self, load: Load) -> bool:
        if not self._items:
            return True
        return (
            self._items + load.items <= self._config.max_pending_items
            and self._bytes + load.bytes <= self._config.max_pending_bytes
        )

    def _let_in(self, load: Load, enter: Enter) -> None:
        self._items += load.items
        self._bytes += load.bytes
        enter()

    def _refuse(self, load: Load, refuse: Refuse) -> None:
        self._counters["queue_full"] += 1
        config = self._config
        refuse(
            QueueFull(
                f"no room for {load.items:,} items ({load.bytes:,} bytes) within "
                f"enqueue_timeout={config.enqueue_timeout:g} s: {self._items:,} items "
                f"({self._bytes:,} bytes) are pending, {len(self._waiting):,} callers wait, and "
                f"max_pending_items={config.max_pending_items:,}, "
                f"max_pending_bytes={config.max_pending_bytes:,}"
            )
        )

    def _watch(self) -> None:
        """See to it that the first who waits is refused in time: no later one is due sooner."""
        if self._timer is None and self._waiting:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_at(self._waiting[0].until, self._expire)

    def _expire(self) -> None:
        self._timer = None
        now = asyncio.get_running_loop().time()
        while self._waiting and self._waiting[0].until <= now:
            waiter = self._waiting.popleft()
            self._refuse(waiter.load, waiter.refuse)
        self._let_in_who_fits()  # who was behind a large one may be small
        self._watch()

    def _let_in_who_fits(self) -> None:
        while self._waiting and self._fits(self._waiting[0].load):
            waiter = self._waiting.popleft()
            self._let_in(waiter.load, waiter.enter)
