"""Writer, reader and worker under virtual time, while a seed chooses what fails where.

Every call of a port may fail before or after its effect, take long, or find that the counters are
lost; Memorystore may be away for a while, and a writer's clock be wrong; tasks are delivered late,
twice, again, or cut short; writers die; handlers fail. There are finitely many faults. After the
last of them, all that was accepted must come to its end: handled or dead-lettered, and gone from
the store.

Only two things may wait for the sweeper: what was never accepted, and a batch whose root task the
scheduler refused (design, "When things fail"). The test schedules the latter as the sweeper would.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from forkjoin_gcp.errors import (
    ChunkBusy,
    ForkJoinError,
    IndexUnavailable,
    QueueClosed,
    Reject,
    SchedulerUnavailable,
    ServiceError,
    StoreUnavailable,
)
from forkjoin_gcp.items import Item
from forkjoin_gcp.names import Batch, Lane
from forkjoin_gcp.ports import Release, TaskRequest
from forkjoin_gcp.tasks import RootTask, parse_task
from forkjoin_gcp.testing.virtual_time import VirtualClock, run_virtual
from forkjoin_gcp.writing.writer import Writer
from tests.unit.rig import Rig, rigged

WRITER_TIMEOUT = 1.0
CLOCK_SKEW = 5.0
DELIVERIES = 12
CALLS = (
    *("index.reserve", "index.release", "index.release_and_reserve", "index.seal", "index.fence"),
    *("index.wait_drained", "index.ping", "index.lease", "index.renew", "index.unlease"),
    *("store.create", "store.discard", "store.move", "store.listing", "store.read"),
    *("store.split", "store.settle", "scheduler.create"),
)
STAY = b"until all is in"
"""The body of a task whose delivery keeps the scheduler at work until the last item is in."""

Call = tuple[str, int]
"""A method of a port and which call of it, counted from 0."""


class Fault(Enum):
    """What becomes of one call of a port."""

    REFUSED = "fails, and did nothing"
    LOST = "done, and no answer"
    SLOW = "late"
    STALLED = "later than a reader waits for writers"
    ASLEEP = "later than a clock batch is run"
    SLOW_ANSWER = "done, and the answer late"
    STALLED_ANSWER = "done, and the answer later than a reader waits"
    FORGOTTEN = "the counters are lost before it"
    FORGOTTEN_AFTER = "the counters are lost after it"


SECONDS = {
    Fault.SLOW: (0.3, 0.0),
    Fault.STALLED: (3.0, 0.0),
    Fault.ASLEEP: (8.0, 0.0),
    Fault.SLOW_ANSWER: (0.0, 0.3),
    Fault.STALLED_ANSWER: (0.0, 3.0),
}


class Misdelivery(Enum):
    """What becomes of one delivery of a task."""

    LATE = "late"
    TWICE = "twice at once"
    AGAIN = "and again later"
    FAILED_BEFORE = "fails before it arrives"
    FAILED_AFTER = "done, and counted as failed"
    CUT_SHORT = "its process is killed, and it is delivered again"


@dataclass(frozen=True)
class Put:
    """Some items handed to a writer; ``kill``: that writer's process dies so much later."""

    at: float
    writer: int
    count: int
    kill: float | None = None


@dataclass(frozen=True)
class Case:
    """One course of events."""

    puts: list[Put]
    faults: dict[Call, Fault] = field(default_factory=dict)
    misdeliveries: dict[int, tuple[Misdelivery, float]] = field(default_factory=dict)
    failures: dict[int, int] = field(default_factory=dict)
    """How many tries of an item fail; over max_attempts is for good, -1 is a Reject."""
    seconds: dict[int, float] = field(default_factory=dict)
    """How long an item takes, where it takes time."""
    settings: dict[str, Any] = field(default_factory=dict)
    outage: tuple[float, float, bool] | None = None
    """When Memorystore goes away, for how long, and whether it is silent then, or refuses."""
    clock_off: float = 0.0
    """By how much the second writer's clock is off, in seconds."""


class Faulty:
    """A port whose calls go wrong as the case says; each takes a millisecond or more."""

    def __init__(self, course: Course, name: str, port: Any, error: type[ServiceError]) -> None:
        self._course = course
        self._name = name
        self._port = port
        self._error = error

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._port, name)
        called = f"{self._name}.{name}"
        if called not in CALLS:
            return method

        async def call(*args: Any, **kwargs: Any) -> Any:
            number = self._course.calls[called]
            self._course.calls[called] += 1
            fault = self._course.case.faults.get((called, number))
            before, after = SECONDS.get(fault, (0.0, 0.0)) if fault else (0.0, 0.0)
            await asyncio.sleep(before + (1 + number * 7 % 5) / 1000)
            if self._name == "index" and self._course.is_away():
                if self._course.is_silent:
                    await asyncio.sleep(1.1 * self._course.rig.config.acquire_timeout)
                raise self._error
            if fault is Fault.FORGOTTEN:
                self._course.forget()
            if fault is Fault.REFUSED:
                self._course.note_refused(called, args)
                raise self._error
            result = await method(*args, **kwargs)
            if fault is Fault.FORGOTTEN_AFTER:
                self._course.forget()
            await asyncio.sleep(after + 0.001)
            if fault is Fault.LOST:
                raise self._error
            return result

        return call


class Course:
    """One case, run."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.calls: Counter[str] = Counter()
        self._deliveries = 0
        self._beside: set[asyncio.Task[None]] = set()
        self._deferred: set[Batch] = set()
        self._tries: dict[str, int] = {}
        self.accepted: dict[str, int] = {}
        self.rig = Rig(
            self._handle,
            writer_timeout=WRITER_TIMEOUT,
            max_clock_skew=CLOCK_SKEW,
            acquire_timeout=1,
            dispatch_deadline=15,
            retry_min_backoff=0.5,
            retry_max_backoff=2,
            max_attempts=3,
            batch_size=3,
            **case.settings,
        )
        rig = self.rig
        self._all_in = asyncio.Event()
        self._scheduler = rig.scheduler
        self.forget = rig.index.forget
        rig.index = Faulty(self, "index", rig.index, IndexUnavailable)  # type: ignore[assignment]
        rig.store = Faulty(self, "store", rig.store, StoreUnavailable)  # type: ignore[assignment]
        rig.scheduler = Faulty(self, "scheduler", rig.scheduler, SchedulerUnavailable)  # type: ignore[assignment]
        rig.use(rig.runner.handler)
        self._writers = [self._new_writer(number) for number in range(2)]

    def note_refused(self, name: str, args: tuple[Any, ...]) -> None:
        if name == "scheduler.create":
            task = parse_task(args[0].body)
            if isinstance(task, RootTask):
                self._deferred.add(task.batch)

    async def run(self) -> None:
        puts = [asyncio.ensure_future(self._put(put, n)) for n, put in enumerate(self.case.puts)]
        await self._scheduler.create(TaskRequest("rig-1", "stay", STAY, None, 600))
        delivered = asyncio.ensure_future(self._deliver_all())
        await asyncio.gather(*puts)
        for writer in self._writers:
            await writer.close()
        self._all_in.set()
        await delivered
        for batch in sorted(self._deferred, key=lambda batch: batch.key):
            await self._sweep(batch)
        self._check()

    async def _sweep(self, batch: Batch) -> None:
        while True:
            try:
                await self.rig.reader.run(RootTask(batch))
                break
            except ServiceError:
                continue
            except ChunkBusy as error:
                await asyncio.sleep(error.after)
        await self._deliver_all()

    def _check(self) -> None:
        ended = {item.id for item in self.rig.handled} | set(self.rig.store.buried)
        missing = {one: n for one, n in self.accepted.items() if one not in ended}
        assert not missing, f"accepted, and neither handled nor dead: {missing}"
        assert not self._left() & self.accepted.keys(), "accepted, and still in the store"

    def _left(self) -> set[str]:
        held = [s for one in self.rig.store.segments.values() for s in one.values()]
        return {segment.item_id(item) for segment in held for item in segment.items}

    def is_away(self) -> bool:
        """Whether Memorystore is, at present."""
        at, seconds, _ = self.case.outage or (0.0, 0.0, False)
        return at <= self.rig.loop.time() < at + seconds

    @property
    def is_silent(self) -> bool:
        return self.case.outage is not None and self.case.outage[2]

    def _new_writer(self, number: int) -> Writer:
        off = self.case.clock_off if number else 0.0
        clock = VirtualClock(self.rig.loop, self.rig.clock.now() - self.rig.loop.time() + off)
        return Writer(self.rig.config, replace(self.rig.ports, clock=clock), self.rig.counters)

    async def _put(self, put: Put, number: int) -> None:
        await asyncio.sleep(put.at)
        numbers = range(number * 10, number * 10 + put.count)
        writer = self._writers[put.writer]
        payloads = [self.rig.codec.encode({"n": n}) for n in numbers]
        doing = asyncio.ensure_future(writer.put(payloads))
        if put.kill is not None:
            await asyncio.wait([doing], timeout=put.kill)
            self._kill(put.writer, writer)
        try:
            self.accepted |= dict(zip(await doing, numbers, strict=True))
        except ForkJoinError:
            return

    def _kill(self, number: int, writer: Writer) -> None:
        if self._writers[number] is writer:
            self._writers[number] = self._new_writer(number)
        for task in list(writer._running):
            task.cancel()
        dying = asyncio.ensure_future(self._die(writer))
        self._beside.add(dying)
        dying.add_done_callback(self._beside.discard)

    async def _die(self, writer: Writer) -> None:
        """Tells its callers, so that the test ends; in truth they die with it."""
        writer._closed = True
        closing = asyncio.ensure_future(writer.close())
        await asyncio.sleep(0)
        closing.cancel()
        await asyncio.wait([closing])

    async def _handle(self, item: Item[Any]) -> None:
        n = item.payload["n"]
        await asyncio.sleep(self.case.seconds.get(n, 0.0))
        failures = self.case.failures.get(n, 0)
        if failures < 0:
            raise Reject
        tries = self._tries[item.id] = self._tries.get(item.id, 0) + 1
        if tries <= failures:
            raise RuntimeError

    async def _deliver_all(self) -> None:
        while True:
            await self.rig.scheduler.run(self._deliver)
            if not self._beside:
                return
            await asyncio.wait(self._beside)

    async def _deliver(self, body: bytes, tried: int) -> None:
        if body == STAY:
            await self._all_in.wait()
            return
        number = self._deliveries
        self._deliveries += 1
        what, seconds = self.case.misdeliveries.get(number, (None, 0.0))
        if what is Misdelivery.LATE:
            await asyncio.sleep(seconds)
        if what is Misdelivery.FAILED_BEFORE:
            raise StoreUnavailable
        if what is Misdelivery.TWICE:
            self._second(body, 0.0)
        if what is Misdelivery.AGAIN:
            self._second(body, seconds)
        if what is Misdelivery.CUT_SHORT:
            await _cut_short(self.rig.deliver(body, tried), seconds)
        else:
            await self.rig.deliver(body, tried)
        if what in (Misdelivery.FAILED_AFTER, Misdelivery.CUT_SHORT):
            raise StoreUnavailable

    def _second(self, body: bytes, seconds: float) -> None:
        async def deliver() -> None:
            await asyncio.sleep(seconds)
            try:
                await self.rig.deliver(body)
            except (ServiceError, ChunkBusy):
                return  # the first delivery's task is Cloud Tasks' own; this one it knows not of

        second = asyncio.ensure_future(deliver())
        self._beside.add(second)
        second.add_done_callback(self._beside.discard)


async def _cut_short(work: Coroutine[Any, Any, None], seconds: float) -> None:
    task = asyncio.ensure_future(work)
    await asyncio.wait([task], timeout=seconds)
    task.cancel()
    await asyncio.wait([task])


def a_case(seed: int) -> Case:
    """A course of events for each seed. Hypothesis' own strategies prefer what is small and alike;
    here it is the mixture that finds something."""
    rng = random.Random(seed)

    def some(most: int) -> range:
        return range(rng.randint(0, most))

    def a_number() -> int:
        return rng.randrange(8) * 10 + rng.randrange(5)

    puts = [
        Put(
            at=rng.choice([0.0, rng.uniform(0, 0.1), rng.uniform(0, 2)]),
            writer=rng.randrange(2),
            count=rng.choice([1, 1, 2, 5]),
            kill=rng.uniform(0, 0.06) if rng.random() < 0.1 else None,
        )
        for _ in range(rng.randint(1, 8))
    ]
    failing = rng.choice([0, 12])
    return Case(
        puts,
        {
            (rng.choice(CALLS), min(rng.randrange(8), rng.randrange(8))): rng.choice([*Fault])
            for _ in some(8)
        },
        {
            min(rng.randrange(DELIVERIES), rng.randrange(DELIVERIES)): (
                rng.choice([*Misdelivery]),
                rng.choice([rng.uniform(0, 0.1), rng.uniform(0, 4), 0.5, 1.0, 1.5]),
            )
            for _ in some(8)
        },
        {a_number(): rng.choice([1, 1, 2, 9, -1]) for _ in some(failing)},
        {a_number(): rng.choice([0.005, 0.5, 2.0, 6.0]) for _ in some(failing)},
        {
            "batch_period": rng.choice([0.5, 0.5, 0]),
            "lanes": rng.choice([1, 1, 2]),
            "max_batch_items": rng.choice([10_000, 8]),
            "concurrency": rng.choice([50, 1]),
        },
        rng.choice([None, None, (rng.uniform(0, 2), rng.choice([0.1, 3, 20]), rng.random() < 0.5)]),
        rng.choice([0.0, 0.0, rng.uniform(-CLOCK_SKEW, CLOCK_SKEW)]),
    )


def run(case: Case) -> None:
    async def main() -> None:
        await Course(case).run()

    run_virtual(main())


def fails(case: Case) -> bool:
    try:
        run(case)
    except AssertionError:
        return True
    return False


def smaller(case: Case) -> Iterator[Case]:
    """The case without one of its parts, for each part."""
    for n in range(len(case.puts)):
        yield replace(case, puts=case.puts[:n] + case.puts[n + 1 :])
    for part in ("faults", "misdeliveries", "failures", "seconds", "settings"):
        whole = getattr(case, part)
        for key in whole:
            yield replace(case, **{part: {k: whole[k] for k in whole if k != key}})
    if case.outage:
        yield replace(case, outage=None)
    if case.clock_off:
        yield replace(case, clock_off=0.0)


def least(case: Case) -> Case:
    """The case, with nothing left in it that need not be there for it to fail."""
    for less in smaller(case):
        if fails(less):
            return least(less)
    return case


@given(st.integers(0, 2**64))
@settings(max_examples=300, phases=[Phase.explicit, Phase.generate])
def test_whatever_fails_what_was_accepted_comes_to_its_end(seed: int) -> None:
    case = a_case(seed)
    if fails(case):
        case = least(case)
        print(case)
        run(case)


# What was found, each alone


@rigged
async def test_a_late_group_cancelled_before_its_first_step_tells_its_callers() -> None:
    rig = Rig()
    closing: list[asyncio.Future[None]] = []

    async def too_late(lane: Lane, index: int, *, scheduled: bool) -> Release:
        closing[0].cancel()
        return Release.LATE

    rig.index.release = too_late  # type: ignore[method-assign]
    put = asyncio.ensure_future(rig.put(1))
    await asyncio.sleep(0)
    closing.append(asyncio.ensure_future(rig.writer.close()))
    await asyncio.wait(closing)
    with pytest.raises(QueueClosed):
        await asyncio.wait_for(put, 10)


@rigged
async def test_a_stale_delivery_that_wins_a_segment_leaves_its_retry_to_someone() -> None:
    """Generation 0 comes again beside generation 1, and settles first. Its next name is taken."""
    began = asyncio.Event()

    async def handle(item: Item[Any]) -> None:
        if item.attempt == 2 and not began.is_set():
            began.set()
            await asyncio.sleep(1)
        if item.attempt <= 2:
            raise RuntimeError

    rig = Rig(handle, retry_min_backoff=1)
    await rig.put(1)
    again = rig.scheduler.created[0].body
    drained = asyncio.ensure_future(rig.drain())
    await began.wait()
    await rig.deliver(again)
    await drained
    assert rig.numbers == [1]
    assert rig.left == 0
