"""The ports without a service: plain dictionaries on one event loop.

They pass the same contract suites as the real ones. Nothing is awaited inside a step, so each step
is atomic, as one Lua script or one commit is.
"""

from __future__ import annotations

import asyncio
import builtins
import contextlib
import heapq
import itertools
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any

from forkjoin_gcp.config import QueueConfig
from forkjoin_gcp.errors import ChunkBusy, SegmentConflict, ServiceError
from forkjoin_gcp.items import DeadLetter, Segment
from forkjoin_gcp.names import Batch, Lane
from forkjoin_gcp.ports import (
    Buried,
    Change,
    Clock,
    Extent,
    Found,
    KeyRange,
    Listed,
    Release,
    Reservation,
    Scanned,
    TaskRequest,
)
from forkjoin_gcp.runtime import SystemClock
from forkjoin_gcp.testing.in_process_leases import InProcessLeases


@dataclass
class _Open:
    batch_size: int
    writers: int = 0
    length: int = 0
    scheduled: bool = False
    sealed: bool = False
    drained: asyncio.Event = field(default_factory=asyncio.Event)


class InProcessIndex(InProcessLeases):
    """WorkIndex in a dictionary.

    ``forget`` loses everything, as FLUSHALL does, but for the highest index seen: a client of the
    real one remembers that too.
    """

    def __init__(self, config: QueueConfig, clock: Clock) -> None:
        super().__init__(clock)
        self._config = config
        self._current: dict[Lane, int] = {}
        self._open: dict[tuple[Lane, int], _Open] = {}
        self._highest = 0

    def forget(self) -> None:
        """Lose all state."""
        super().forget()
        self._current.clear()
        self._open.clear()

    async def reserve(self, lane: Lane, count: int) -> Reservation:
        if lane not in self._current:
            self._advance(lane, self._highest)
        index = self._current[lane]
        state = self._open.setdefault((lane, index), _Open(self._config.batch_size))
        start = state.length
        state.writers += 1
        state.length += count
        full = state.length >= self._config.max_batch_items
        if full:
            self._advance(lane, index)
        return Reservation(index, start, state.batch_size, state.scheduled, full)

    async def release(self, lane: Lane, index: int, *, scheduled: bool) -> Release:
        state = self._open.get((lane, index))
        if state is None:
            return Release.LATE
        state.writers -= 1
        if scheduled:
            state.scheduled = True
            if self._config.batch_period == 0 and self._current[lane] == index:
                self._advance(lane, index)
        if not state.sealed:
            return Release.OPEN
        if not state.writers:
            state.drained.set()
        return Release.SEALED

    async def release_and_reserve(
        self, lane: Lane, index: int, count: int, *, scheduled: bool
    ) -> tuple[Release, Reservation]:
        verdict = await self.release(lane, index, scheduled=scheduled)
        return verdict, await self.reserve(lane, count)

    async def seal(self, lane: Lane, index: int) -> int | None:
        state = self._open.get((lane, index))
        if state is None:
            return None
        if self._current[lane] == index:
            self._advance(lane, index)
        state.sealed = True
        return state.writers

    async def wait_drained(self, lane: Lane, index: int, seconds: float) -> None:
        state = self._open.get((lane, index))
        if state is not None and state.writers:
            try:
                async with asyncio.timeout(seconds):
                    await state.drained.wait()
            except TimeoutError:
                return

    async def fence(self, lane: Lane, index: int) -> Extent | None:
        if lane in self._current and self._current[lane] <= index:
            self._advance(lane, index)
        state = self._open.pop((lane, index), None)
        return Extent(state.length, state.batch_size) if state else None

    async def ping(self, lane: Lane) -> None:
        return

    async def close(self) -> None:
        return

    def _advance(self, lane: Lane, last: int) -> None:
        self._current[lane] = max(last + 1, int(self._clock.now() * 1e6))
        self._highest = max(self._highest, self._current[lane])


class InProcessStore:
    """WorkStore in dictionaries. A revision is the object itself, compared by identity.

    ``clock`` says when a segment was written; the machine's own does unless one is given.
    """

    def __init__(self, clock: Clock | None = None) -> None:
        self.segments: dict[Batch, dict[int, Segment]] = {}
        self.buried: dict[str, tuple[Lane, DeadLetter]] = {}
        self._clock = clock or SystemClock()
        self._written: dict[tuple[Batch, int], tuple[Segment, float]] = {}

    async def create(
        self, batch: Batch, segments: Sequence[Segment]
    ) -> builtins.list[Exception | None]:
        held = self.segments.setdefault(batch, {})
        outcome: list[Exception | None] = []
        for segment in segments:
            if segment.first not in held:
                self._put(batch, segment)
            same = held[segment.first].nonce == segment.nonce
            outcome.append(None if same else SegmentConflict())
        return outcome

    async def discard(self, batch: Batch, segments: Sequence[Segment]) -> None:
        held = self.segments.get(batch, {})
        for segment in segments:
            if segment.first in held and held[segment.first].nonce == segment.nonce:
                self._drop(batch, segment.first)

    async def move(
        self, batch: Batch, found: Found, target: Batch, pieces: Sequence[Segment]
    ) -> bool:
        held = self.segments.get(batch, {})
        goal = self.segments.setdefault(target, {})
        if held.get(found.first) is not found.revision:
            nonces = {piece.nonce for piece in pieces}
            return bool(pieces) and all(
                piece.first in goal and goal[piece.first].nonce in nonces for piece in pieces
            )
        if any(piece.first in goal for piece in pieces):
            raise SegmentConflict
        self._drop(batch, found.first)
        for piece in pieces:
            self._put(target, piece)
        return True

    async def split(self, batch: Batch, found: Found, pieces: Sequence[Segment]) -> bool:
        held = self.segments.get(batch, {})
        first, *rest = pieces
        if held.get(found.first) is not found.revision:
            there = [held[piece.first].nonce for piece in rest if piece.first in held]
            return first.nonce in there
        if any(piece.first in held for piece in rest):
            raise SegmentConflict
        for piece in pieces:
            self._put(batch, piece)
        return True

    async def listing(self, batch: Batch) -> builtins.list[Listed]:
        held = self.segments.get(batch, {})
        return [Listed(first, len(held[first].items)) for first in sorted(held)]

    async def read(self, batch: Batch, first: int, stop: int) -> builtins.list[Found]:
        held = self.segments.get(batch, {})
        near = range(first, stop) if stop - first < len(held) else sorted(held)
        return [
            Found(at, held[at], held[at])
            for at in near
            if first <= at < stop and at in held and held[at].items
        ]

    async def settle(self, batch: Batch, changes: Sequence[Change]) -> builtins.list[bool]:
        held = self.segments.get(batch, {})
        applied = []
        for change in changes:
            same = held.get(change.found.first) is change.found.revision
            applied.append(same)
            if not same:
                continue
            if change.left is None:
                self._drop(batch, change.found.first)
            else:
                self._put(batch, change.left)
            self.buried.update({letter.id: (batch.lane, letter) for letter in change.dead})
        return applied

    async def dead_letters(self, lane: Lane, limit: int) -> builtins.list[DeadLetter]:
        owner = (lane.queue, lane.version)
        letters = [letter for of, letter in self.buried.values() if (of.queue, of.version) == owner]
        return sorted(letters, key=lambda letter: letter.id)[:limit]

    async def versions(self) -> builtins.list[tuple[str, str]]:
        lanes = {batch.lane for batch, held in self.segments.items() if held}
        return sorted({(lane.queue, lane.version) for lane in lanes})

    async def scan(self, wanted: KeyRange, page: int) -> AsyncIterator[builtins.list[Scanned]]:
        place = (wanted.start, wanted.first - 1)
        while True:
            batches = sorted(
                (batch.key, batch)
                for batch in self.segments
                if (batch.lane.queue, batch.lane.version) == (wanted.queue, wanted.version)
                and place[0] <= batch.key < wanted.stop
            )
            near = (
                self._scanned(batch, first)
                for key, batch in batches
                for first in sorted(self.segments[batch])
                if (key, first) > place
            )
            found = list(itertools.islice(near, page))
            if not found:
                return
            yield found
            place = (found[-1].batch.key, found[-1].first)

    def _scanned(self, batch: Batch, first: int) -> Scanned:
        segment = self.segments[batch][first]
        written, at = self._written.get((batch, first), (None, 0.0))
        updated_at = at if written is segment else segment.enqueued_at
        due = min((item.due for item in segment.items), default=0.0)
        return Scanned(batch, first, len(segment.items), updated_at, due)

    async def graves(self, queue: str) -> builtins.list[Lane]:
        versions = {of.version for of, _ in self.buried.values() if of.queue == queue}
        return [Lane(queue, version) for version in sorted(versions)]

    async def find_dead(self, grave: Lane, after: str, limit: int) -> builtins.list[Buried]:
        owner = (grave.queue, grave.version)
        found = [
            Buried(letter, letter)
            for key, (of, letter) in sorted(self.buried.items())
            if key > after and (of.queue, of.version) == owner
        ]
        return found[:limit]

    async def requeue(self, grave: Lane, buried: Buried, target: Batch, segment: Segment) -> bool:
        held = self.segments.setdefault(target, {})
        there = held.get(segment.first)
        if there is not None and there.nonce == segment.nonce:
            return True
        if not self._is_buried(buried):
            return False
        if there is not None:
            raise SegmentConflict
        del self.buried[buried.letter.id]
        self._put(target, segment)
        return True

    async def purge(self, grave: Lane, buried: Sequence[Buried]) -> builtins.list[bool]:
        purged = []
        for one in buried:
            purged.append(self._is_buried(one))
            if purged[-1]:
                del self.buried[one.letter.id]
        return purged

    async def close(self) -> None:
        return

    def _is_buried(self, buried: Buried) -> bool:
        return self.buried.get(buried.letter.id, (None, None))[1] is buried.revision

    def _put(self, batch: Batch, segment: Segment) -> None:
        self.segments[batch][segment.first] = segment
        self._written[batch, segment.first] = segment, self._clock.now()

    def _drop(self, batch: Batch, first: int) -> None:
        del self.segments[batch][first]
        self._written.pop((batch, first), None)


Deliver = Callable[[bytes, int], Coroutine[Any, Any, None]]


class InProcessScheduler:
    """TaskScheduler that delivers on its own event loop: names dedupe, failures are retried.

    ``deliver`` gets a task's body and how often it was tried before. Tombstones never expire.
    """

    def __init__(self, clock: Clock, *, retry_seconds: float = 1.0) -> None:
        self._clock = clock
        self._retry_seconds = retry_seconds
        self._waiting: list[tuple[float, int, TaskRequest, int]] = []
        self._numbers = itertools.count()
        self._running: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()
        self._failures: list[BaseException] = []
        self._names: set[tuple[str, str]] = set()
        self.created: list[TaskRequest] = []
        self.dispatched: list[tuple[float, TaskRequest]] = []

    async def create(self, task: TaskRequest) -> bool:
        if (task.queue, task.task_id) in self._names:
            return False
        self._names.add((task.queue, task.task_id))
        self.created.append(task)
        self._put(task, 0, task.at or 0.0)
        return True

    async def run(self, deliver: Deliver) -> None:
        """Deliver tasks as they come due, side by side; return when none waits or runs.

        A ServiceError or ChunkBusy means another try. Any other error is raised, and its task waits
        for the next run, as do the others; those being delivered go on.
        """
        self._failures.clear()  # what they were raised for waits, and is tried again
        while True:
            while self._waiting and self._waiting[0][0] <= self._clock.now():
                _, _, task, tried = heapq.heappop(self._waiting)
                running = asyncio.ensure_future(self._dispatch(deliver, task, tried))
                self._running.add(running)
                running.add_done_callback(self._ended)
            if self._failures:
                raise self._failures[0]
            if not self._waiting and not self._running:
                return
            wait = self._waiting[0][0] - self._clock.now() if self._waiting else None
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._changed.wait()

    async def close(self) -> None:
        return

    def _put(self, task: TaskRequest, tried: int, at: float) -> None:
        heapq.heappush(self._waiting, (at, next(self._numbers), task, tried))
        self._changed.set()

    def _ended(self, running: asyncio.Task[None]) -> None:
        self._running.discard(running)
        self._changed.set()

    async def _dispatch(self, deliver: Deliver, task: TaskRequest, tried: int) -> None:
        self.dispatched.append((self._clock.now(), task))
        try:
            await deliver(task.body, tried)
        except ServiceError:
            self._put(task, tried + 1, self._clock.now() + self._retry_seconds)
        except ChunkBusy as error:
            wait = max(self._retry_seconds, error.after)
            self._put(task, tried + 1, self._clock.now() + wait)
        except (asyncio.CancelledError, GeneratorExit):
            raise
        except BaseException as error:
            self._put(task, tried, self._clock.now())
            self._failures.append(error)
