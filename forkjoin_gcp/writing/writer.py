"""The writer: group → reserve → write ∥ schedule → release → (late: move).

Callers do not go through this one by one. What is handed in while a group is being written forms
the next group, so at load one reservation, one write and one release serve many callers.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import uuid
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from forkjoin_gcp.config import QueueConfig
from forkjoin_gcp.errors import (
    ForkJoinError,
    QueueClosed,
    SegmentConflict,
    ServiceError,
)
from forkjoin_gcp.items import Segment
from forkjoin_gcp.names import Batch, Lane, item_id
from forkjoin_gcp.ports import Counters, Ports, Release
from forkjoin_gcp.writing.groups import Done, Group, Pending, Slice, Submission
from forkjoin_gcp.writing.holds import Hold, Holds, LaneHold, Stamp
from forkjoin_gcp.writing.moves import Mover
from forkjoin_gcp.writing.room import Load, Room

logger = logging.getLogger(__name__)

GROUP_INTERVAL = 0.015
"""Seconds. Where several callers wait, groups of a lane start no closer than this, unless callers
have gone quiet: more items share each round trip and each document. A lone caller never waits."""

GROUP_QUIET = 0.003
"""Seconds without a new item after which a group starts before GROUP_INTERVAL is over: callers that
wait for their answers before they enqueue again have all come back by then."""

CUT_SHORT = "the queue was closed while the item was written: it may have been accepted"

Placed = tuple[int, Segment]
"""A segment, and which item of its group is its first."""


class Writer:
    """Brings items of one queue into the store. Belongs to one event loop.

    ``first_lane`` is the lane this process prefers, so that processes spread over the lanes; the
    others are used while it is busy.
    """

    def __init__(
        self,
        config: QueueConfig,
        ports: Ports,
        counters: Counters,
        *,
        first_lane: int = 0,
        new_nonce: Callable[[], str] = lambda: uuid.uuid4().hex,
    ) -> None:
        self._config = config
        self._ports = ports
        self._counters = counters
        self._new_nonce = new_nonce
        numbers = [(first_lane + n) % config.lanes for n in range(config.lanes)]
        lanes = [Lane(config.name, config.version, n) for n in numbers]
        self._idle = lanes[::-1]
        self._holds = Holds(config, ports, counters)
        self._mover = Mover(ports.store, self._holds, counters, lanes[0])
        self._room = Room(config, counters)
        self._pending = Pending(config.max_batch_items)
        self._last_arrival = 0.0
        self._running: set[asyncio.Task[None]] = set()
        self._closed = False

    def submit(self, payloads: Sequence[str], done: Done) -> None:
        """Take encoded payloads; ``done`` is called when they are durable or refused.

        Everything submitted in one pass of the event loop goes into one group, if there is room.
        """
        if self._closed:
            done(QueueClosed())
            return
        load = Load.of(payloads)

        def end(answer: list[str] | Exception) -> None:
            self._room.leave(load)
            done(answer)

        def enter() -> None:
            self._pending.add(Submission(payloads, end))
            self._last_arrival = asyncio.get_running_loop().time()
            self._start_lane()

        self._room.ask(load, enter, done)

    async def put(self, payloads: Sequence[str]) -> list[str]:
        """Return the items' ids once all are durable. Raises the first error met."""
        future: asyncio.Future[list[str]] = asyncio.get_running_loop().create_future()

        def done(result: list[str] | Exception) -> None:
            if not future.done():
                if isinstance(result, Exception):
                    future.set_exception(result)
                else:
                    future.set_result(result)

        self.submit(payloads, done)
        return await future

    async def rest(self) -> None:
        """Return when all taken before has met its end, and what was taken meanwhile."""
        while self._running:
            await asyncio.wait(self._running)

    async def close(self) -> None:
        """Refuse new items, and those that wait for room; return when the others met their end.

        Cancelled, it refuses those that have not: their callers are told, and none waits for ever.
        """
        self._closed = True
        self._room.close()
        try:
            await self.rest()
        finally:
            self._idle.clear()  # no lane starts again
            running = list(self._running)
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
            while group := self._pending.take():
                group.refuse_all(QueueClosed())
            await self._holds.close()

    def _start_lane(self) -> None:
        if self._idle and len(self._pending):
            self._spawn(self._run_lane(self._idle.pop()))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return task

    async def _run_lane(self, lane: Lane) -> None:
        """Write group after group until nothing waits."""
        started = float("-inf")
        loop = asyncio.get_running_loop()
        group: Group | None = None
        held: tuple[Group, Hold] | None = None
        try:
            while True:
                if held is None:
                    await self._gather(started)
                    group = self._pending.take()
                    if group is None:
                        break
                    started = loop.time()
                    try:
                        held = group, await self._holds.take(lane, len(group.payloads))
                    except Exception as error:
                        group.refuse_all(_known(error))
                        continue
                    self._start_lane()
                group, hold = held
                try:
                    held = await self._write(group, hold, started)
                except Exception as error:
                    held = None
                    group.refuse_all(_known(error))
                started = loop.time() if held else started
        except asyncio.CancelledError:
            if group is not None:
                group.refuse_all(QueueClosed(CUT_SHORT))
            raise
        self._idle.append(lane)
        self._start_lane()

    async def _gather(self, started: float) -> None:
        """Wait for more callers where several wait already and the last group was just now."""
        loop = asyncio.get_running_loop()
        while len(self._pending) > 1 and not self._closed:
            until = min(started + GROUP_INTERVAL, self._last_arrival + GROUP_QUIET)
            if until <= loop.time():
                return
            await asyncio.sleep(until - loop.time())

    async def _write(self, group: Group, hold: Hold, started: float) -> tuple[Group, Hold] | None:
        """Write one group and release it; the next group and its hold, if both are there."""
        batch = hold.batch
        now = self._ports.clock.now()
        stamp = Stamp(self._new_nonce(), now, now + self._config.expire_after)
        segments = hold.build(group.payloads, stamp)
        self._counters["groups"] += 1
        outcome, scheduled = await asyncio.gather(
            self._create(hold, segments), self._holds.schedule(hold), return_exceptions=True
        )
        written: list[Placed] = []
        if isinstance(scheduled, BaseException):
            # There is nobody to bring these items to a handler: they are taken back.
            await self._discard(batch, segments)
            group.refuse_all(_known(scheduled))
        elif isinstance(outcome, BaseException):
            group.refuse_all(_known(outcome))
        else:
            written = self._sort_out(group, segments, outcome)
        verdict, following = await self._release(hold, scheduled is True, started)
        if verdict is not Release.LATE:
            self._accept(group, batch, written)
        elif written:
            moving = self._spawn(self._mover.move(batch, [segment for _, segment in written]))
            # A callback: it comes even where the task is cancelled before its first step.
            moving.add_done_callback(functools.partial(self._end_late, group, batch, written))
        return following

    async def _create(self, hold: Hold, segments: Sequence[Segment]) -> list[Exception | None]:
        outcome = await self._ports.store.create(hold.batch, segments)
        hold.wrote()
        return outcome

    def _sort_out(
        self, group: Group, segments: Sequence[Segment], outcome: Sequence[Exception | None]
    ) -> list[Placed]:
        """The segments that were written; the others' callers are told, or their items wait on."""
        written: list[Placed] = []
        again: list[Slice] = []
        offset = 0
        for segment, error in zip(segments, outcome, strict=True):
            count = len(segment.items)
            if error is None:
                written.append((offset, segment))
            elif isinstance(error, SegmentConflict):
                # The counters had gone back to positions already used, or two writers on the clock
                # lane took the same block. Nothing of this segment was written, so its items take
                # new positions, and new ids, with the next group.
                self._counters["segment_conflicts"] += 1
                again += group.part(offset, count)
            else:
                group.refuse(offset, count, error)
            offset += count
        self._pending.put_back(again)
        return written

    def _accept(self, group: Group, batch: Batch, written: Sequence[Placed]) -> None:
        key = batch.key
        for offset, segment in written:
            # A segment just written has its items at consecutive positions.
            places = range(segment.first, segment.first + len(segment.items))
            group.accept(offset, [item_id(key, place) for place in places])
            self._counters["items_enqueued"] += len(segment.items)

    async def _release(
        self, hold: Hold, scheduled: bool, started: float
    ) -> tuple[Release, tuple[Group, Hold] | None]:
        """Give the hold back, in one round trip with the next group's where one waits."""
        due = started + GROUP_INTERVAL <= asyncio.get_running_loop().time()
        turns = isinstance(hold, LaneHold) and self._holds.can_turn
        group = self._pending.take() if turns and (due or len(self._pending) == 1) else None
        if group is None or not isinstance(hold, LaneHold):
            return await self._holds.release(hold, scheduled=scheduled), None
        following: LaneHold | None = None
        try:
            verdict, following = await self._holds.release_and_take(
                hold, len(group.payloads), scheduled=scheduled
            )
        finally:
            if following is None:
                self._pending.put_back(group.slices)
        return verdict, (group, following) if following else None

    async def _discard(self, batch: Batch, segments: Sequence[Segment]) -> None:
        try:
            await self._ports.store.discard(batch, segments)
        except ServiceError as error:
            logger.warning("segments of %s could not be taken back: %s", batch.key, error)

    def _end_late(
        self, group: Group, batch: Batch, written: Sequence[Placed], moving: asyncio.Task[None]
    ) -> None:
        error = asyncio.CancelledError() if moving.cancelled() else moving.exception()
        if error is None:
            self._accept(group, batch, written)
            return
        for offset, segment in written:
            group.refuse(offset, len(segment.items), _known(error))


def _known(error: BaseException) -> Exception:
    """An error of this package's tree, so that callers need to know no other."""
    if isinstance(error, ForkJoinError):
        return error
    if isinstance(error, asyncio.CancelledError):
        return QueueClosed(CUT_SHORT)
    logger.error("unexpected error while enqueuing", exc_info=error)
    return ServiceError(f"unexpected {type(error).__name__}: {error}")
