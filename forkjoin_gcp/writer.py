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
from typing import Any, TypeVar

from forkjoin_gcp.config import QueueConfig
from forkjoin_gcp.errors import (
    ForkJoinError,
    IndexUnavailable,
    QueueClosed,
    SegmentConflict,
    ServiceError,
    TaskQueueNotFound,
)
from forkjoin_gcp.groups import Done, Group, Pending, Slice, Submission
from forkjoin_gcp.items import Segment, build_segments, move_segment
from forkjoin_gcp.names import Batch, Lane, item_id
from forkjoin_gcp.ports import Counters, Found, Ports, Release, Reservation
from forkjoin_gcp.tasks import RootTask, request_for

logger = logging.getLogger(__name__)
T = TypeVar("T")

GROUP_INTERVAL = 0.015
"""Seconds. Where several callers wait, groups of a lane start no closer than this, unless callers
have gone quiet: more items share each round trip and each document. A lone caller never waits."""

GROUP_QUIET = 0.003
"""Seconds without a new item after which a group starts before GROUP_INTERVAL is over: callers that
wait for their answers before they enqueue again have all come back by then."""

MOVE_ATTEMPTS = 5
"""How many new indexes a late group is moved to before its callers are told of the failure."""


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
        self._idle = [Lane(config.name, config.version, n) for n in reversed(numbers)]
        self._pending = Pending(config.max_batch_items)
        self._last_arrival = 0.0
        self._running: set[asyncio.Task[None]] = set()
        self._closed = False

    def submit(self, payloads: Sequence[str], done: Done) -> None:
        """Take encoded payloads; ``done`` is called when they are durable or refused.

        Everything submitted in one pass of the event loop goes into one group.
        """
        if self._closed:
            done(QueueClosed())
            return
        self._pending.add(Submission(payloads, done))
        self._last_arrival = asyncio.get_running_loop().time()
        self._start_lane()

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

    async def close(self) -> None:
        """Refuse new items and return when all taken before have met their end.

        Cancelled, it refuses those that have not: their callers are told, and none waits for ever.
        """
        self._closed = True
        try:
            while self._running:
                await asyncio.wait(self._running)
        finally:
            self._idle.clear()  # no lane starts again
            running = list(self._running)
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
            while group := self._pending.take():
                group.refuse_all(QueueClosed())

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
        held: tuple[Group, Reservation] | None = None
        try:
            while True:
                if held is None:
                    await self._gather(started)
                    group = self._pending.take()
                    if group is None:
                        break
                    started = loop.time()
                    try:
                        held = group, await self._reserve(lane, len(group.payloads))
                    except Exception as error:
                        group.refuse_all(_known(error))
                        continue
                    self._start_lane()
                group, reservation = held
                try:
                    held = await self._write(lane, group, reservation, started)
                except Exception as error:
                    held = None
                    group.refuse_all(_known(error))
                started = loop.time() if held else started
        except asyncio.CancelledError:
            if group is not None:
                group.refuse_all(QueueClosed())
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

    async def _reserve(self, lane: Lane, count: int) -> Reservation:
        for tried in range(self._config.acquire_attempts - 1):
            try:
                return await self._in_time(self._ports.index.reserve(lane, count))
            except IndexUnavailable:
                await asyncio.sleep(min(1.0, 0.05 * 2**tried))
        return await self._in_time(self._ports.index.reserve(lane, count))

    async def _in_time(self, call: Coroutine[Any, Any, T]) -> T:
        """One try to reach Memorystore, connecting included."""
        try:
            async with asyncio.timeout(self._config.acquire_timeout):
                return await call
        except TimeoutError:
            raise IndexUnavailable(
                f"no answer from Memorystore in acquire_timeout={self._config.acquire_timeout} s"
            ) from None

    async def _write(
        self, lane: Lane, group: Group, reservation: Reservation, started: float
    ) -> tuple[Group, Reservation] | None:
        """Write one group and release it; the next group and its reservation, if both are there."""
        batch = Batch(lane, reservation.index)
        now = self._ports.clock.now()
        segments = build_segments(
            batch,
            reservation.start,
            reservation.batch_size,
            group.payloads,
            nonce=self._new_nonce(),
            enqueued_at=now,
            expire_at=now + self._config.expire_after,
        )
        self._counters["groups"] += 1
        outcome, scheduled = await asyncio.gather(
            self._ports.store.create(batch, segments),
            self._schedule_root(batch, reservation),
            return_exceptions=True,
        )
        written: list[Segment] = []
        if isinstance(scheduled, BaseException):
            # There is nobody to bring these items to a handler: they are taken back.
            await self._discard(batch, segments)
            group.refuse_all(_known(scheduled))
        elif isinstance(outcome, BaseException):
            group.refuse_all(_known(outcome))
        else:
            written = self._sort_out(group, reservation.start, segments, outcome)
        known = scheduled is True
        verdict, following = await self._release(lane, reservation.index, known, started)
        if verdict is not Release.LATE:
            self._accept(group, reservation.start, batch, written)
        elif written:
            moving = self._spawn(self._move(batch, written, MOVE_ATTEMPTS))
            # A callback: it comes even where the task is cancelled before its first step.
            moving.add_done_callback(
                functools.partial(self._end_late, group, reservation.start, batch, written)
            )
        return following

    def _sort_out(
        self,
        group: Group,
        start: int,
        segments: Sequence[Segment],
        outcome: Sequence[Exception | None],
    ) -> list[Segment]:
        """The segments that were written; the others' callers are told, or their items wait on."""
        written: list[Segment] = []
        again: list[Slice] = []
        for segment, error in zip(segments, outcome, strict=True):
            if error is None:
                written.append(segment)
            elif isinstance(error, SegmentConflict):
                # The counters had gone back to positions already used. Nothing of this segment was
                # written, so its items take new positions, and new ids, with the next group.
                self._counters["segment_conflicts"] += 1
                again += group.part(segment.first - start, len(segment.items))
            else:
                group.refuse(segment.first - start, len(segment.items), error)
        self._pending.put_back(again)
        return written

    def _accept(self, group: Group, start: int, batch: Batch, written: Sequence[Segment]) -> None:
        key = batch.key
        for segment in written:
            # A segment just written has its items at consecutive positions.
            places = range(segment.first, segment.first + len(segment.items))
            ids = [item_id(key, place) for place in places]
            group.accept(segment.first - start, ids)
            self._counters["items_enqueued"] += len(segment.items)

    async def _release(
        self, lane: Lane, index: int, scheduled: bool, started: float
    ) -> tuple[Release, tuple[Group, Reservation] | None]:
        """Give the hold back, in one round trip with the next group's reservation where one waits.

        No answer counts as late: if the release was not seen, a reader may fence at any time.
        """
        due = started + GROUP_INTERVAL <= asyncio.get_running_loop().time()
        group = self._pending.take() if due or len(self._pending) == 1 else None
        port = self._ports.index
        try:
            if group is None:
                call = port.release(lane, index, scheduled=scheduled)
                return self._noted(await self._in_time(call)), None
            both = port.release_and_reserve(lane, index, len(group.payloads), scheduled=scheduled)
            verdict, reservation = await self._in_time(both)
            return self._noted(verdict), (group, reservation)
        except BaseException as error:
            if group is not None:
                self._pending.put_back(group.slices)
            if not isinstance(error, IndexUnavailable):
                raise
            logger.warning("no answer to the release of %s: %s", index, error)
            return self._noted(Release.LATE), None

    def _noted(self, verdict: Release) -> Release:
        self._counters[f"release_{verdict.value}"] += 1
        return verdict

    async def _schedule_root(self, batch: Batch, reservation: Reservation) -> bool:
        """Whether the batch's root task is known to exist. Raises TaskQueueNotFound."""
        if reservation.scheduled and not reservation.full:
            return True
        task = RootTask(batch, full=reservation.full)
        at_once = reservation.full or self._config.batch_period == 0
        at = None if at_once else self._ports.clock.now() + self._config.batch_period
        try:
            await self._ports.scheduler.create(request_for(task, self._config, at))
        except TaskQueueNotFound:
            raise
        except ServiceError as error:
            # The items are durable. The next writer of the batch tries again, and the sweeper
            # finds what no writer comes after.
            self._counters["schedule_deferred"] += 1
            logger.warning("root task of %s is deferred: %s", batch.key, error)
            return False
        return True

    async def _discard(self, batch: Batch, segments: Sequence[Segment]) -> None:
        try:
            await self._ports.store.discard(batch, segments)
        except ServiceError as error:
            logger.warning("segments of %s could not be taken back: %s", batch.key, error)

    def _end_late(
        self,
        group: Group,
        start: int,
        batch: Batch,
        written: Sequence[Segment],
        moving: asyncio.Task[None],
    ) -> None:
        error = asyncio.CancelledError() if moving.cancelled() else moving.exception()
        if error is None:
            self._accept(group, start, batch, written)
            return
        for segment in written:
            group.refuse(segment.first - start, len(segment.items), _known(error))

    async def _move(self, batch: Batch, segments: Sequence[Segment], attempts: int) -> None:
        """Move late segments to a new index, until one is released in time.

        A segment that is gone, or changed, was read by a reader, which is all that was wanted.
        """
        found = await self._find(batch, segments)
        if not found:
            return
        if not attempts:
            raise IndexUnavailable(f"{batch.key} was late on {MOVE_ATTEMPTS} indexes in a row")
        reservation = await self._reserve(batch.lane, sum(len(s.items) for _, s in found))
        target = Batch(batch.lane, reservation.index)
        moves, position = [], reservation.start
        for one, segment in found:
            pieces = move_segment(segment, position, reservation.batch_size)
            position += len(segment.items)
            moves.append(self._move_one(batch, one, target, pieces))
        scheduled, *outcome = await asyncio.gather(
            self._schedule_root(target, reservation), *moves, return_exceptions=True
        )
        if isinstance(scheduled, BaseException):
            # The items are durable already, so a missing Cloud Tasks queue no longer refuses them.
            self._counters["schedule_deferred"] += 1
            logger.error("root task of %s could not be created: %s", target.key, scheduled)
        try:
            released = self._ports.index.release(
                batch.lane, reservation.index, scheduled=scheduled is True
            )
            verdict = self._noted(await self._in_time(released))
        except IndexUnavailable:
            verdict = self._noted(Release.LATE)
        moved = [piece for pieces in outcome if isinstance(pieces, list) for piece in pieces]
        clashed = [
            segment
            for (_, segment), result in zip(found, outcome, strict=True)
            if isinstance(result, SegmentConflict)
        ]
        if verdict is Release.LATE and moved:
            await self._move(target, moved, attempts - 1)
        if clashed:
            await self._move(batch, clashed, attempts - 1)
        for result in outcome:
            if isinstance(result, BaseException) and not isinstance(result, SegmentConflict):
                raise result

    async def _find(self, batch: Batch, segments: Sequence[Segment]) -> list[tuple[Found, Segment]]:
        """The segments that stand as this writer wrote them: no reader has settled any of them."""
        wrote = {segment.first: segment for segment in segments}
        there = await self._ports.store.read(batch, min(wrote), max(wrote) + 1)
        return [
            (one, one.segment)
            for one in there
            if one.segment
            and one.first in wrote
            and (one.segment.nonce, one.segment.items)
            == (wrote[one.first].nonce, wrote[one.first].items)
        ]

    async def _move_one(
        self, batch: Batch, found: Found, target: Batch, pieces: Sequence[Segment]
    ) -> list[Segment]:
        if not await self._ports.store.move(batch, found, target, pieces):
            return []
        self._counters["segments_moved"] += 1
        return list(pieces)


def _known(error: BaseException) -> Exception:
    """An error of this package's tree, so that callers need to know no other."""
    if isinstance(error, ForkJoinError):
        return error
    if isinstance(error, asyncio.CancelledError):
        return QueueClosed()
    logger.error("unexpected error while enqueuing", exc_info=error)
    return ServiceError(f"unexpected {type(error).__name__}: {error}")
