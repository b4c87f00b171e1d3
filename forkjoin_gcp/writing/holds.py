"""Holds: where a writer's items go, and what ends its right to put them there.

On an ordinary lane Memorystore counts a hold, and says at its release whether the reader has gone
past. On the clock lane nobody counts: a hold is a period of time, and a write acknowledged after
the end of it is late. The clock lane is for when Memorystore is away.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from forkjoin_gcp.config import QueueConfig
from forkjoin_gcp.errors import IndexUnavailable, ServiceError, TaskQueueNotFound
from forkjoin_gcp.items import Segment, build_segments, move_segment
from forkjoin_gcp.names import CLOCK_BLOCK, CLOCK_LANE, MAX_POSITIONS, Batch, Lane, clock_index
from forkjoin_gcp.ports import Clock, Counters, Ports, Release, Reservation, TaskRequest
from forkjoin_gcp.tasks import RootTask, request_for
from forkjoin_gcp.writing.breaker import Breaker
from forkjoin_gcp.writing.deferred import Deferred

logger = logging.getLogger(__name__)
T = TypeVar("T")

MIN_CLOCK_PERIOD = 1.0
"""Seconds. A clock batch gathers this long at least: it is run ten seconds and more later anyway,
and without group numbers from Memorystore fewer, larger batches make fewer tasks."""

SampleBlocks = Callable[[range, int], list[int]]


@dataclass(frozen=True, slots=True)
class Stamp:
    """What all segments of one write have in common; times are Unix times in seconds."""

    nonce: str
    enqueued_at: float
    expire_at: float


@dataclass(frozen=True, slots=True)
class LaneHold:
    """A hold that Memorystore counts."""

    batch: Batch
    reservation: Reservation

    @property
    def scheduled(self) -> bool:
        """Whether the batch's root task is known to exist."""
        return self.reservation.scheduled and not self.reservation.full

    def root(self, now: float, batch_period: float) -> tuple[RootTask, float | None]:
        """The root task to ask for, and the Unix time at which it is to run; None: at once."""
        full, batch_size = self.reservation.full, self.reservation.batch_size
        task = RootTask(self.batch, full=full, batch_size=batch_size)
        return task, None if full or batch_period == 0 else now + batch_period

    def build(self, payloads: Sequence[str], stamp: Stamp) -> list[Segment]:
        """The segments that hold ``payloads``, in their order."""
        return _build(
            self.batch, self.reservation.start, self.reservation.batch_size, payloads, stamp
        )

    def rebuild(self, segments: Sequence[Segment]) -> list[list[Segment]]:
        """For each of another batch's segments those that hold its items here, under their ids."""
        position, rebuilt = self.reservation.start, []
        for segment in segments:
            rebuilt.append(move_segment(segment, position, self.reservation.batch_size))
            position += len(segment.items)
        return rebuilt

    def wrote(self) -> None:
        """A write has just been acknowledged. Whether that was in time the release tells."""


@dataclass(slots=True)
class ClockHold:
    """A hold on the clock lane: until its period's end and ``writer_timeout``.

    By the event loop's clock, which never goes back, and by the machine's, which goes on while the
    machine is suspended. Each segment has a block of positions of its own, chosen at random.
    """

    batch: Batch
    batch_size: int
    scheduled: bool
    after_ms: int
    until: float
    until_unix: float
    clock: Clock
    sample: SampleBlocks
    late: bool = False

    def root(self, now: float, batch_period: float) -> tuple[RootTask, float | None]:
        """The root task to ask for, and the Unix time at which it is to run."""
        at = (self.batch.index + self.after_ms) / 1000
        return RootTask(self.batch, after_ms=self.after_ms, batch_size=self.batch_size), at

    def build(self, payloads: Sequence[str], stamp: Stamp) -> list[Segment]:
        """The segments that hold ``payloads``, in their order."""
        cut = _build(self.batch, 0, self.batch_size, payloads, stamp)
        # These items have no ids before, so what is added to positions to have the old ones is 0.
        return [replace(one, shift=0) for (one,) in self.rebuild(cut)]

    def rebuild(self, segments: Sequence[Segment]) -> list[list[Segment]]:
        """For each of another batch's segments those that hold its items here, under their ids."""
        blocks = self.sample(range(MAX_POSITIONS // CLOCK_BLOCK), len(segments))
        return [
            move_segment(segment, block * CLOCK_BLOCK, CLOCK_BLOCK)
            for segment, block in zip(segments, blocks, strict=True)
        ]

    def wrote(self) -> None:
        """A write has just been acknowledged: too late, if the hold is over."""
        over = asyncio.get_running_loop().time() >= self.until
        self.late = self.late or over or self.clock.now() >= self.until_unix


Hold = LaneHold | ClockHold


class Holds:
    """Takes holds and gives them back, for one writer. Belongs to one event loop.

    Whoever gets no answer from Memorystore within ``acquire_timeout``, or ``acquire_attempts``
    refusals in that time, opens the breaker. While it is open every hold is one on the clock lane,
    at once. A memory-only queue has no clock lane: there IndexUnavailable is raised.
    """

    def __init__(
        self,
        config: QueueConfig,
        ports: Ports,
        counters: Counters,
        sample: SampleBlocks = random.sample,
    ) -> None:
        self._config = config
        self._ports = ports
        self._counters = counters
        self._sample = sample
        self._breaker = Breaker(ports.index, config.acquire_timeout, counters)
        self._deferred = Deferred(ports.scheduler, counters)
        self._clock_lane = Lane(config.name, config.version, CLOCK_LANE)
        self._rooted: Batch | None = None

    async def take(self, lane: Lane, count: int) -> Hold:
        """A hold for ``count`` items, on ``lane`` if that can be had. Raises IndexUnavailable."""
        if not self._breaker.is_open:
            try:
                return await self._reserve(lane, count)
            except IndexUnavailable as error:
                self._breaker.open(lane, str(error))
                if self._in_memory:
                    raise
        if self._in_memory:
            raise IndexUnavailable(self._breaker.why)
        return self._take_clock()

    async def release(self, hold: Hold, *, scheduled: bool) -> Release:
        """Give a hold back. No answer is LATE: a reader may fence at any time."""
        if isinstance(hold, ClockHold):
            if not hold.late:
                return Release.OPEN
            self._counters["clock_late"] += 1
            logger.info("write of %s was late", hold.batch.key, extra=_facts("late", hold.batch))
            return Release.LATE
        if self._breaker.is_open and not self._in_memory:
            return self._noted(hold, Release.LATE)
        lane, index = hold.batch.lane, hold.batch.index
        call = self._ports.index.release(lane, index, scheduled=scheduled)
        try:
            return self._noted(hold, await self._ask(lane, call))
        except IndexUnavailable as error:
            logger.warning("no answer to the release of %s: %s", hold.batch.key, error)
            return self._noted(hold, Release.LATE)

    async def release_and_take(
        self, hold: LaneHold, count: int, *, scheduled: bool
    ) -> tuple[Release, LaneHold | None]:
        """Give a hold back and take the next of its lane, in one round trip; None: no answer."""
        lane, index = hold.batch.lane, hold.batch.index
        call = self._ports.index.release_and_reserve(lane, index, count, scheduled=scheduled)
        try:
            verdict, reservation = await self._ask(lane, call)
        except IndexUnavailable as error:
            logger.warning("no answer to the release of %s: %s", hold.batch.key, error)
            return self._noted(hold, Release.LATE), None
        return self._noted(hold, verdict), LaneHold(Batch(lane, reservation.index), reservation)

    async def schedule(self, hold: Hold) -> bool:
        """Whether the root task of the hold's batch is known to exist. Raises TaskQueueNotFound."""
        if hold.scheduled:
            return True
        try:
            await self._ports.scheduler.create(self._root_of(hold))
        except TaskQueueNotFound:
            raise
        except ServiceError as error:
            self.defer(hold, error)
            return False
        if isinstance(hold, ClockHold):
            self._rooted = hold.batch
        return True

    def defer(self, hold: Hold, error: BaseException) -> None:
        """Go on without the root task of the hold's batch, whose items are durable.

        The next writer of the batch asks for it again, and so does this one, in the background.
        """
        self._counters["schedule_deferred"] += 1
        facts = _facts("deferred", hold.batch)
        logger.warning("root task of %s is deferred: %s", hold.batch.key, error, extra=facts)
        self._deferred.add(self._root_of(hold))

    async def close(self) -> None:
        """End what runs in the background."""
        self._breaker.close()
        await self._deferred.close()

    @property
    def can_turn(self) -> bool:
        """Whether a release and the next reservation may go together."""
        return not self._breaker.is_open

    @property
    def _in_memory(self) -> bool:
        return self._config.storage == "memorystore"

    def _root_of(self, hold: Hold) -> TaskRequest:
        task, at = hold.root(self._ports.clock.now(), self._config.batch_period)
        return request_for(task, self._config, at)

    async def _reserve(self, lane: Lane, count: int) -> LaneHold:
        """A hold that Memorystore counts.

        All tries together take ``acquire_timeout`` at most. A memory-only queue has nothing else to
        turn to, so there each try may take as long.
        """
        loop = asyncio.get_running_loop()
        over = loop.time() + self._config.acquire_timeout
        for tried in range(self._config.acquire_attempts):
            wait = min(1.0, 0.05 * 2**tried)
            if self._in_memory:
                over = loop.time() + self._config.acquire_timeout
            try:
                reservation = await self._in_time(over, self._ports.index.reserve(lane, count))
                return LaneHold(Batch(lane, reservation.index), reservation)
            except IndexUnavailable:
                out_of_time = loop.time() + wait >= over and not self._in_memory
                if out_of_time or tried + 1 == self._config.acquire_attempts:
                    raise
            await asyncio.sleep(wait)
        raise AssertionError("acquire_attempts is at least 1")

    async def _ask(self, lane: Lane, call: Coroutine[Any, Any, T]) -> T:
        """One step that is not repeated. Where there is no answer in time, the breaker opens."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            return await self._in_time(began + self._config.acquire_timeout, call)
        except IndexUnavailable as error:
            # The client gives up a little before or after the loop does.
            silent = loop.time() - began > 0.9 * self._config.acquire_timeout
            if silent and not self._in_memory:
                self._breaker.open(lane, str(error))
            raise

    async def _in_time(self, over: float, call: Coroutine[Any, Any, T]) -> T:
        """One try to reach Memorystore, connecting included, that ends at ``over`` (loop time)."""
        try:
            async with asyncio.timeout_at(over):
                return await call
        except TimeoutError:
            raise IndexUnavailable(
                f"no answer from Memorystore in acquire_timeout={self._config.acquire_timeout} s"
            ) from None

    def _take_clock(self) -> ClockHold:
        loop, clock, config = asyncio.get_running_loop(), self._ports.clock, self._config
        now = clock.now()
        batch = Batch(
            self._clock_lane, clock_index(now, max(config.batch_period, MIN_CLOCK_PERIOD))
        )
        until = batch.index / 1000 + config.writer_timeout
        self._counters["clock_holds"] += 1
        return ClockHold(
            batch,
            config.batch_size,
            scheduled=batch == self._rooted,
            after_ms=round((config.writer_timeout + config.max_clock_skew) * 1000),
            until=loop.time() + until - now,
            until_unix=until,
            clock=clock,
            sample=self._sample,
        )

    def _noted(self, hold: LaneHold, verdict: Release) -> Release:
        self._counters[f"release_{verdict.value}"] += 1
        if verdict is Release.LATE:
            logger.info("release of %s was late", hold.batch.key, extra=_facts("late", hold.batch))
        return verdict


def _facts(event: str, batch: Batch) -> dict[str, dict[str, str]]:
    """What a structured log tells of ``batch``."""
    return {"forkjoin": {"event": event, "queue": batch.lane.queue, "batch": batch.key}}


def _build(
    batch: Batch, start: int, batch_size: int, payloads: Sequence[str], stamp: Stamp
) -> list[Segment]:
    return build_segments(
        batch,
        start,
        batch_size,
        payloads,
        nonce=stamp.nonce,
        enqueued_at=stamp.enqueued_at,
        expire_at=stamp.expire_at,
    )
