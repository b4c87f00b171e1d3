"""Finding the item that kills its process: where a chunk is split, and who runs beside whom.

A chunk whose runs vanish is split in two, and its parts are suspects. What a suspect's run vanishes
with is split again, until one item is left; that one is blamed only for runs that vanished while
nothing else of this package ran in the process.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from forkjoin_gcp.errors import ChunkBusy
from forkjoin_gcp.items import Segment
from forkjoin_gcp.ports import Found
from forkjoin_gcp.tasks import ChunkTask

PUT_OFF_SECONDS = 1.0
"""How long a chunk is put off at least where a lone suspect has the process to itself."""


@dataclass(frozen=True, slots=True)
class Cut:
    """Where a chunk is to be split, and the pieces of a segment that stands across, if one does."""

    at: int
    found: Found | None = None
    pieces: tuple[Segment, ...] = ()


def items_in(found: Sequence[Found]) -> int:
    """How many items are left."""
    return sum(len(one.segment.items) for one in found if one.segment)


def plan_cut(task: ChunkTask, found: Sequence[Found], vanished: int, limit: int) -> Cut | None:
    """The cut of a chunk of which ``vanished`` runs vanished; None where it is to be run.

    ``limit`` such runs are allowed, of a suspect none while it has more than one item. A chunk
    that is no suspect and has one item left is set apart whole: at its end.
    """
    order = [(one, item) for one in found if one.segment for item in one.segment.items]
    allowed = 0 if task.suspect else limit - 1
    if vanished <= allowed or not order:
        return None
    if len(order) == 1:
        return None if task.suspect else Cut(task.stop)
    one, middle = order[len(order) // 2]
    segment = one.segment
    assert segment is not None
    number = segment.items.index(middle)
    if number == 0:  # chunks read by segments' keys
        return Cut(one.first)
    rest = segment.items[number:]
    return Cut(
        middle.position,
        one,
        (
            replace(segment, items=segment.items[:number]),
            replace(segment, first=middle.position, items=rest, handled=()),
        ),
    )


def parts_of(task: ChunkTask, at: int) -> list[ChunkTask]:
    """The suspects that a chunk becomes when it is split at ``at``."""
    spans = ((task.first, at), (at, task.stop))
    return [
        replace(task, first=first, stop=stop, suspect=True) for first, stop in spans if first < stop
    ]


class ProcessGate:
    """Who of a process's chunks runs beside whom. Safe from many threads and event loops."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._loner: Presence | None = None

    @contextlib.contextmanager
    def inside(self) -> Iterator[Presence]:
        """Be one of those that run. Raises ChunkBusy while one of them is, or is to be, alone."""
        presence = Presence(self)
        self._enter()
        try:
            yield presence
        finally:
            self._leave(presence)

    def claim(self, presence: Presence) -> int | None:
        """Let nobody else in. How many others are; None where one of them claims that already."""
        with self._lock:
            if self._loner is not None:
                return None
            self._loner = presence
            return self._inside - 1

    def _enter(self) -> None:
        with self._lock:
            if self._loner is not None:
                raise ChunkBusy(after=PUT_OFF_SECONDS)
            self._inside += 1

    def _leave(self, presence: Presence) -> None:
        with self._lock:
            self._inside -= 1
            if self._loner is presence:
                self._loner = None
            elif self._loner is not None and self._inside == 1:
                self._loner.left_alone()

    def waive(self, presence: Presence) -> None:
        """Let others in again."""
        with self._lock:
            if self._loner is presence:
                self._loner = None


class Presence:
    """One chunk that runs in a process."""

    def __init__(self, gate: ProcessGate) -> None:
        self._gate = gate
        self._loop = asyncio.get_running_loop()
        self._alone = asyncio.Event()

    async def alone(self, seconds: float) -> bool:
        """Have the process to oneself until the end; False where others stay longer than that."""
        others = self._gate.claim(self)
        if not others:
            return others == 0
        try:
            async with asyncio.timeout(max(0.0, seconds)):
                await self._alone.wait()
        except TimeoutError:
            self._gate.waive(self)
            return False
        return True

    def left_alone(self) -> None:
        """Called by the gate, on any thread."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(self._alone.set)
