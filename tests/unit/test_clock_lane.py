"""Enqueuing while Memorystore is away: the clock lane, and the circuit breaker, in virtual time."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from forkjoin_gcp.config import QueueConfig
from forkjoin_gcp.errors import (
    IndexUnavailable,
    SchedulerUnavailable,
    StoreUnavailable,
    TaskQueueNotFound,
)
from forkjoin_gcp.names import CLOCK_BLOCK, Batch, Lane
from forkjoin_gcp.ports import Release
from forkjoin_gcp.tasks import ChunkTask, RootTask, parse_task
from forkjoin_gcp.testing.virtual_time import VirtualClock
from forkjoin_gcp.writing.writer import Writer
from tests.unit.outage import REFUSED, SILENT, Outage
from tests.unit.rig import Rig, rigged

MODES = (REFUSED, SILENT)


def a_rig(mode: str = "", **settings: Any) -> tuple[Rig, Outage]:
    rig = Rig(**settings)
    outage = Outage(rig)
    outage.mode = mode
    return rig, outage


async def an_open_rig(**settings: Any) -> tuple[Rig, Outage]:
    """A rig whose breaker is open, with item 0 put in."""
    rig, outage = a_rig(REFUSED, **settings)
    await rig.put(0)
    return rig, outage


def stalled_creates(rig: Rig, *seconds: float) -> None:
    """Make the next creates of the store take so long, each, and those after it no time."""
    create, waits = rig.store.create, iter(seconds)

    async def slow(batch: Batch, segments: Any) -> Any:
        await asyncio.sleep(next(waits, 0))
        return await create(batch, segments)

    rig.store.create = slow  # type: ignore[method-assign]


def roots(rig: Rig) -> list[RootTask]:
    tasks = [parse_task(request.body) for request in rig.scheduler.created]
    return [task for task in tasks if isinstance(task, RootTask)]


@rigged
async def test_enqueuing_goes_on_while_memorystore_refuses() -> None:
    rig, outage = a_rig(REFUSED)
    ids = await rig.put(*range(250))
    assert rig.loop.time() < 0.3, "three tries, 0.05 s and 0.1 s apart"
    assert outage.calls["reserve"] == 3
    (batch,) = rig.batches
    assert batch.lane.is_clock
    await rig.drain()
    assert rig.numbers == list(range(250))
    assert {item.id for item in rig.handled} == set(ids)
    assert len(set(ids)) == 250
    assert not outage.calls.keys() & {"seal", "fence"}, "a clock batch is read without Memorystore"
    assert rig.left == 0


@rigged
async def test_enqueuing_goes_on_while_memorystore_never_answers() -> None:
    rig, outage = a_rig(SILENT, acquire_timeout=1)
    await rig.put(1)
    assert rig.loop.time() == pytest.approx(1, abs=0.01)
    assert outage.calls["reserve"] == 1, "no answer opens the breaker at once"
    began = rig.loop.time()
    await rig.put(2)
    assert rig.loop.time() == began, "and nobody else waits"
    await rig.drain()
    assert rig.numbers == [1, 2]


def test_nothing_fails_and_nobody_waits_long_through_an_outage() -> None:
    for mode in MODES:
        rigged(lambda mode=mode: _thirty_seconds_away(mode))()  # type: ignore[misc]


async def _thirty_seconds_away(mode: str) -> None:
    """500 items/s; Memorystore is away from second 2 to 32."""
    rig, outage = a_rig(acquire_timeout=1, lanes=2)
    create = rig.store.create

    async def as_slow_as_firestore(batch: Batch, segments: Any) -> Any:
        await asyncio.sleep(0.02)
        return await create(batch, segments)

    rig.store.create = as_slow_as_firestore  # type: ignore[method-assign]
    waits: dict[float, float] = {}

    async def caller(n: int) -> None:
        began = n / 500
        await asyncio.sleep(began)
        await rig.put(n)
        waits[began] = rig.loop.time() - began

    async def meddle() -> None:
        await asyncio.sleep(2)
        outage.mode = mode
        await asyncio.sleep(30)
        outage.mode = ""

    count = 40 * 500
    delivering = asyncio.ensure_future(_deliver_until(rig, lambda: len(waits) == count))
    await asyncio.gather(meddle(), *(caller(n) for n in range(count)))
    await delivering
    during = sorted(wait for began, wait in waits.items() if 2 <= began < 32)
    assert during[len(during) * 99 // 100] < 2 * rig.config.acquire_timeout
    assert during[-1] < 2 * rig.config.acquire_timeout
    assert rig.counters["breaker_opened"] == 1
    back = sorted(wait for began, wait in waits.items() if began > 38)
    assert back[-1] < 0.1
    await rig.writer.put([rig.codec.encode({"n": count})])
    assert not rig.batches[-1].lane.is_clock, "it comes back by itself"
    await rig.drain()
    assert rig.numbers == list(range(count + 1)), "each once: no answer was lost, only calls"
    assert rig.left == 0


async def _deliver_until(rig: Rig, done: Callable[[], bool]) -> None:
    while not done():
        await rig.drain()
        await asyncio.sleep(0.1)


# The breaker


@rigged
async def test_the_breaker_is_probed_further_and_further_apart_and_closes() -> None:
    rig, outage = await an_open_rig()
    opened = rig.loop.time()
    for n in range(1, 60):
        await asyncio.sleep(0.5)
        await rig.put(n)
    assert outage.calls["reserve"] == 3, "nobody pays for finding out"
    waits = [b - a for a, b in itertools.pairwise([opened, *outage.pinged_at])]
    assert [round(wait, 1) for wait in waits[:6]] == [0.5, 1, 2, 4, 5, 5]
    outage.mode = ""
    await asyncio.sleep(5.1)
    pings = outage.calls["ping"]
    await rig.put(60)
    assert outage.calls["reserve"] == 4
    await asyncio.sleep(60)
    assert outage.calls["ping"] == pings, "once it is back nobody asks"
    assert rig.counters["breaker_opened"] == 1
    await rig.drain()
    assert rig.numbers == list(range(61))


@rigged
async def test_a_probe_that_gets_no_answer_goes_on() -> None:
    rig, outage = await an_open_rig(acquire_timeout=1)
    outage.mode = SILENT
    await asyncio.sleep(20)
    assert outage.calls["ping"] >= 3
    outage.mode = ""
    await asyncio.sleep(6.1)
    await rig.put(1)
    assert outage.calls["reserve"] == 4


@rigged
async def test_a_single_refusal_does_not_open_the_breaker() -> None:
    rig, outage = a_rig(REFUSED)
    put = asyncio.ensure_future(rig.put(1))
    await asyncio.sleep(0.06)
    outage.mode = ""
    await put
    assert not rig.batches[0].lane.is_clock
    assert rig.counters["breaker_opened"] == 0


@rigged
async def test_closing_ends_the_probe_and_finishes_what_was_taken() -> None:
    rig, outage = a_rig(SILENT)
    put = asyncio.ensure_future(rig.put(1))
    await asyncio.sleep(0.1)
    await rig.writer.close()
    await put
    pings = outage.calls["ping"]
    await asyncio.sleep(60)
    assert outage.calls["ping"] == pings
    await rig.drain()
    assert rig.numbers == [1]


@rigged
async def test_a_memory_only_queue_has_no_clock_lane() -> None:
    rig, outage = a_rig(SILENT, storage="memorystore", acquire_attempts=2)
    with pytest.raises(IndexUnavailable, match="acquire_timeout"):
        await rig.put(1)
    asked, began = outage.calls["reserve"], rig.loop.time()
    assert asked == 2
    with pytest.raises(IndexUnavailable, match="acquire_timeout"):
        await rig.put(1)
    assert (outage.calls["reserve"], rig.loop.time()) == (asked, began), "told at once"
    outage.mode = ""
    await asyncio.sleep(5)
    await rig.put(2)
    await rig.drain()
    assert rig.numbers == [2]


# Moves


def test_a_release_that_gets_no_answer_moves_its_group_to_the_clock_lane() -> None:
    for mode in MODES:
        rigged(lambda mode=mode: _away_before_the_release(mode))()  # type: ignore[misc]


async def _away_before_the_release(mode: str) -> None:
    rig, outage = a_rig(acquire_timeout=1)
    stalled_creates(rig, 1.0)
    put = asyncio.ensure_future(rig.put(1, 2, 3))
    await asyncio.sleep(0.5)
    outage.mode = mode
    ids = await put
    assert rig.loop.time() < 0.5 + 2 * rig.config.acquire_timeout
    assert rig.counters["segments_moved"] == 1
    assert [b.lane.is_clock for b, held in rig.store.segments.items() if held] == [True]
    delivering = asyncio.ensure_future(rig.drain())
    await asyncio.sleep(30)
    assert rig.numbers == [1, 2, 3], "though Memorystore is still away"
    assert {item.id for item in rig.handled} == set(ids)
    outage.mode = ""
    await delivering
    assert rig.numbers == [1, 2, 3]


@rigged
async def test_late_segments_move_at_once_while_the_breaker_is_open() -> None:
    rig, outage = a_rig(writer_timeout=2, acquire_timeout=1, lanes=2)
    stalled_creates(rig, 8.0)
    put = asyncio.ensure_future(rig.put(1))
    early = asyncio.ensure_future(rig.drain())
    await asyncio.sleep(5)
    outage.mode = SILENT
    await rig.put(2)
    asked = outage.calls.copy()
    ids = await put
    assert rig.loop.time() == pytest.approx(8, abs=0.1)
    assert {n: outage.calls[n] - asked[n] for n in ("reserve", "release")} == {
        "reserve": 0,
        "release": 0,
    }
    outage.mode = ""
    await early
    await rig.drain()
    assert rig.numbers == [1, 2]
    assert ids[0] in {item.id for item in rig.handled}


@rigged
async def test_a_late_clock_write_moves_to_a_later_period() -> None:
    rig, _ = await an_open_rig(writer_timeout=3, max_clock_skew=1)
    stalled_creates(rig, 6.0)
    put = asyncio.ensure_future(rig.put(1, 2))
    early = asyncio.ensure_future(rig.drain())
    ids = await put
    assert rig.counters["clock_late"] == 1
    assert rig.counters["segments_moved"] == 1
    assert len(roots(rig)) == 2
    await early
    await rig.drain()
    assert rig.numbers == [0, 1, 2]
    assert {item.id for item in rig.handled} >= set(ids), "ids are kept in the move"


@rigged
async def test_a_late_clock_write_comes_back_to_an_ordinary_lane() -> None:
    rig, outage = await an_open_rig(writer_timeout=3)
    stalled_creates(rig, 20.0)
    put = asyncio.ensure_future(rig.put(1, 2))
    await asyncio.sleep(1)
    outage.mode = ""
    await put
    assert [b.lane.is_clock for b, held in rig.store.segments.items() if held] == [True, False]
    await rig.drain()
    assert rig.numbers == [0, 1, 2]


@rigged
async def test_a_late_move_on_the_clock_lane_moves_again() -> None:
    rig, _ = await an_open_rig(writer_timeout=3)
    stalled_creates(rig, 20.0)
    move, waits = rig.store.move, iter([20.0, 20.0])

    async def slow(*args: Any) -> bool:
        await asyncio.sleep(next(waits, 0))
        return await move(*args)

    rig.store.move = slow  # type: ignore[method-assign]
    await rig.put(1)
    assert rig.counters["clock_late"] == 3
    await rig.drain()
    assert rig.numbers == [0, 1]


@rigged
async def test_a_clock_write_that_is_late_for_ever_is_told() -> None:
    rig, _ = await an_open_rig(writer_timeout=3)
    stalled_creates(rig, 20.0)
    move = rig.store.move

    async def slow(*args: Any) -> bool:
        await asyncio.sleep(20)
        return await move(*args)

    rig.store.move = slow  # type: ignore[method-assign]
    with pytest.raises(IndexUnavailable, match="late on 5 indexes"):
        await rig.put(1)
    await rig.drain()


@rigged
async def test_only_the_write_must_be_in_time_not_the_root_task() -> None:
    rig, _ = await an_open_rig(writer_timeout=3)
    await asyncio.sleep(2)
    create = rig.scheduler.create

    async def slow(task: Any) -> bool:
        await asyncio.sleep(30)
        return await create(task)

    rig.scheduler.create = slow  # type: ignore[method-assign]
    await rig.put(1)
    assert rig.counters["clock_late"] == 0
    await rig.drain()
    assert rig.numbers == [0, 1]


@rigged
async def test_a_machine_suspended_while_it_wrote_is_late_by_its_clock() -> None:
    rig, _ = await an_open_rig(writer_timeout=3)
    create = rig.store.create

    async def suspended(batch: Batch, segments: Any) -> Any:
        rig.store.create = create  # type: ignore[method-assign]
        rig.clock._start += 60  # the loop's clock has stood still
        return await create(batch, segments)

    rig.store.create = suspended  # type: ignore[method-assign]
    await rig.put(1)
    assert rig.counters["clock_late"] == 1
    await rig.drain()
    assert rig.numbers == [0, 1]


# Blocks and chunks


@rigged
async def test_writers_that_choose_the_same_block_do_not_meet() -> None:
    rig, _ = await an_open_rig()
    chosen = iter([[7], [7], [7], [8]])
    rig.writer._holds._sample = lambda blocks, count: next(chosen)
    ids = await rig.put(1) + await rig.put(2)
    assert rig.counters["segment_conflicts"] == 2
    assert [one.rpartition("-")[2] for one in ids] == ["7000", "8000"]
    await rig.drain()
    assert rig.numbers == [0, 1, 2]


@rigged
async def test_moves_that_choose_a_taken_block_choose_again() -> None:
    rig, _ = await an_open_rig(writer_timeout=3)
    chosen = iter([[7], [8], [8], [9]])
    rig.writer._holds._sample = lambda blocks, count: next(chosen)
    stalled_creates(rig, 20.0)
    put = asyncio.ensure_future(rig.put(1))
    await asyncio.sleep(19.999)
    other = Writer(rig.config, rig.ports, rig.counters)
    other._holds._sample = lambda blocks, count: next(chosen)
    await other.put([rig.codec.encode({"n": 2})])
    await put
    assert rig.counters["segments_moved"] == 1
    await rig.drain()
    assert rig.numbers == [0, 1, 2]


@rigged
async def test_each_segment_has_a_block_of_its_own() -> None:
    rig, _ = await an_open_rig(batch_size=100)
    payloads = [rig.codec.encode({"n": n, "text": "x" * 400_000}) for n in range(1, 8)]
    ids = await rig.writer.put(payloads)
    assert len(set(ids)) == 7
    firsts = [first for held in rig.store.segments.values() for first in held]
    assert all(first % CLOCK_BLOCK == 0 for first in firsts)
    assert len(firsts) == len(set(firsts)) >= 5, "two of 400 KB fit one document"
    await rig.drain()
    assert sorted(rig.numbers) == list(range(8))


@rigged
async def test_segments_are_packed_into_chunks() -> None:
    rig, _ = await an_open_rig(batch_size=100)
    await rig.drain()
    rig.scheduler.created.clear()
    for n in range(100):
        await rig.put(*range(n * 10, n * 10 + 10))
    assert len(rig.batches) == 2
    assert len(roots(rig)) == 1, "a process asks once for each batch"
    rig.handled.clear()
    await rig.drain()
    assert rig.numbers == list(range(1000))
    chunks = [r for r in rig.scheduler.created if isinstance(parse_task(r.body), ChunkTask)]
    assert len(chunks) == 10


@rigged
async def test_batch_size_one_works_on_the_clock_lane() -> None:
    rig, _ = await an_open_rig(batch_size=1)
    await rig.put(*range(1, 200))
    await rig.drain()
    assert rig.numbers == list(range(200))


@rigged
async def test_a_clock_root_delivered_again_runs_nothing_twice() -> None:
    rig, _ = await an_open_rig(batch_size=10)
    # Full segments: what is left of a batch is packed as all of it was, wherever its blocks lie.
    await rig.put(*range(1, 101))
    (root,) = roots(rig)
    await asyncio.sleep(20)
    await rig.deliver(root.body())
    created = len(rig.scheduler.created)
    await rig.deliver(rig.scheduler.created[3].body)
    await rig.deliver(root.body())
    assert len(rig.scheduler.created) == created, "names do not depend on what has gone"
    await rig.drain()
    assert sorted(set(rig.numbers)) == list(range(101))


@rigged
async def test_failures_on_the_clock_lane_are_tried_again_like_any() -> None:
    async def handle(item: Any) -> None:
        if item.attempt < 3 and item.payload["n"] % 7 == 0:
            raise ValueError

    rig, _ = a_rig(REFUSED)
    rig._handle = handle
    await rig.put(*range(100))
    await rig.drain()
    assert rig.numbers == list(range(100))
    assert rig.left == 0


# Clocks, timeouts, other services


def with_clock(rig: Rig, off: float) -> Writer:
    """A writer of another process, whose clock is off by so many seconds."""
    clock = VirtualClock(rig.loop, rig.clock._start + off)
    return Writer(rig.config, replace(rig.ports, clock=clock), rig.counters)


def test_clocks_may_be_off_by_max_clock_skew() -> None:
    for off in (-5.0, -2.5, 0.0, 2.5, 5.0):
        rigged(lambda off=off: _off_by(off))()  # type: ignore[misc]


async def _off_by(off: float) -> None:
    """Writes end just before the writer's time is over, by a clock that is ``off``."""
    rig, _ = a_rig(REFUSED, writer_timeout=10, max_clock_skew=5)
    writer = with_clock(rig, off)
    await writer.put([rig.codec.encode({"n": 0})])
    delivering = asyncio.ensure_future(rig.drain())
    for n, (stall, late) in enumerate([(10.49, 0), (10.51, 1)], start=1):
        await asyncio.sleep(1.5 - (rig.clock.now() + off) % 1)  # half of a period is left
        stalled_creates(rig, stall)
        before = rig.counters["clock_late"]
        await writer.put([rig.codec.encode({"n": n})])
        assert rig.counters["clock_late"] - before == late, (off, stall)
    await delivering
    await rig.drain()
    assert rig.numbers == [0, 1, 2], off
    assert rig.left == 0


@rigged
async def test_a_clock_further_off_is_made_up_for_by_the_workers() -> None:
    """Off Cloud Tasks' clock by a minute, but not off the worker's, which waits."""
    rig, _ = a_rig(REFUSED)
    rig.clock._start -= 60
    rig.scheduler._clock = VirtualClock(rig.loop, rig.clock._start + 60)
    stalled_creates(rig, 9.0)
    put = asyncio.ensure_future(rig.put(1))
    await asyncio.sleep(1)
    await rig.drain()
    await put
    await rig.drain()
    assert rig.numbers == [1]
    assert rig.left == 0


@rigged
async def test_a_clock_further_off_than_both_leaves_items_to_the_sweeper() -> None:
    """The limit of the clock lane, as docs/protocol.md tells."""
    rig, _ = a_rig(REFUSED, sweep_after=60)
    await rig.put(0)
    await rig.drain()
    writer = with_clock(rig, -(rig.loop.time() - 0.1))
    await writer.put([rig.codec.encode({"n": 1})])
    await rig.drain()
    assert rig.numbers == [0]
    assert rig.left == 1
    await asyncio.sleep(61)
    await rig.sweeper.run()
    await rig.drain()
    assert rig.numbers == [0, 1]
    assert rig.left == 0


@rigged
async def test_a_root_run_too_soon_waits() -> None:
    rig, _ = await an_open_rig()
    (root,) = roots(rig)
    running = asyncio.ensure_future(rig.deliver(root.body()))
    await asyncio.sleep(0.4)
    await rig.put(1)
    await running
    await rig.drain()
    assert rig.numbers == [0, 1]


@rigged
async def test_a_clock_batch_is_packed_by_its_writers_batch_size() -> None:
    rig, _ = await an_open_rig(batch_size=10)
    await rig.put(*range(1, 21))
    (root,) = roots(rig)
    rig.config = QueueConfig("rig", batch_size=100)
    rig.use(rig.runner.handler)
    await rig.deliver(root.body())
    await rig.drain()
    chunks = [parse_task(task.body) for task in rig.scheduler.created]
    assert sum(isinstance(task, ChunkTask) for task in chunks) == 3
    assert rig.numbers == list(range(21))


@rigged
async def test_writers_with_other_timeouts_have_a_root_of_their_own() -> None:
    """As in a rolling upgrade: the earlier root does not stand in for the later one."""
    rig, _ = await an_open_rig(writer_timeout=2, max_clock_skew=1)
    later = QueueConfig("rig", writer_timeout=8, max_clock_skew=1)
    upgraded = Writer(later, rig.ports, rig.counters)
    stalled_creates(rig, 6.0)
    put = asyncio.ensure_future(upgraded.put([rig.codec.encode({"n": 1})]))
    await asyncio.sleep(0.01)
    await rig.drain()
    await put
    assert rig.counters["clock_late"] == 0
    assert {root.after_ms for root in roots(rig)} == {3000, 9000}
    await rig.drain()
    assert rig.numbers == [0, 1]


@rigged
async def test_a_later_root_does_not_rely_on_the_chunks_of_an_earlier_one() -> None:
    """What came between the two is in the span of a chunk that read it before it was there."""

    async def slow(item: Any) -> None:
        await asyncio.sleep(10)

    rig = Rig(slow, writer_timeout=2, max_clock_skew=1)
    outage = Outage(rig)
    outage.mode = REFUSED
    blocks = iter([1, 8])
    rig.writer._holds._sample = lambda of, count: [next(blocks) for _ in range(count)]
    await rig.put(0)
    await rig.put(2)
    upgraded = Writer(
        QueueConfig("rig", writer_timeout=8, max_clock_skew=1), rig.ports, rig.counters
    )
    upgraded._holds._sample = lambda of, count: [5]
    stalled_creates(rig, 6.0)
    put = asyncio.ensure_future(upgraded.put([rig.codec.encode({"n": 1})]))
    await asyncio.sleep(0.01)
    await rig.drain()
    await put
    await rig.drain()
    assert rig.numbers == [0, 1, 2]
    assert rig.left == 0


@rigged
async def test_scheduler_away_as_well_defers_and_the_next_writer_tries_again() -> None:
    rig, _ = await an_open_rig()
    await rig.drain()
    create = rig.scheduler.create

    async def away(task: Any) -> bool:
        rig.scheduler.create = create  # type: ignore[method-assign]
        raise SchedulerUnavailable

    rig.scheduler.create = away  # type: ignore[method-assign]
    await rig.put(1)
    assert rig.counters["schedule_deferred"] == 1
    await rig.put(2)
    await rig.drain()
    assert rig.numbers == [0, 1, 2]


@rigged
async def test_a_clock_batch_whose_writer_died_owing_its_root_comes_back_by_a_sweep() -> None:
    rig, _ = await an_open_rig(sweep_after=60)
    await rig.drain()
    create = rig.scheduler.create

    async def away(task: Any) -> bool:
        raise SchedulerUnavailable

    rig.scheduler.create = away  # type: ignore[method-assign]
    await rig.put(1)
    await rig.writer.close()
    rig.scheduler.create = create  # type: ignore[method-assign]
    rig.use(rig.runner.handler)
    await asyncio.sleep(70)
    await rig.put(2)
    await rig.drain()
    assert rig.numbers == [0, 2]
    await rig.sweeper.run()
    await rig.drain()
    assert rig.numbers == [0, 1, 2]


@rigged
async def test_refusals_of_the_other_services_are_told_on_the_clock_lane_too() -> None:
    rig, _ = await an_open_rig()
    await rig.drain()
    create, schedule = rig.store.create, rig.scheduler.create

    async def away(batch: Batch, segments: Any) -> Any:
        return [StoreUnavailable("Firestore is away") for _ in segments]

    async def missing(task: Any) -> bool:
        raise TaskQueueNotFound

    rig.store.create = away  # type: ignore[method-assign]
    with pytest.raises(StoreUnavailable, match="away"):
        await rig.put(1)
    rig.store.create = create  # type: ignore[method-assign]
    await asyncio.sleep(1)
    rig.scheduler.create = missing  # type: ignore[method-assign]
    with pytest.raises(TaskQueueNotFound):
        await rig.put(1)
    rig.scheduler.create = schedule  # type: ignore[method-assign]
    assert rig.left == 0


@rigged
async def test_a_late_release_and_an_outage_together_lose_nothing() -> None:
    rig, outage = a_rig(acquire_timeout=1)
    create = rig.store.create

    async def flushed(batch: Batch, segments: Any) -> Any:
        rig.store.create = create  # type: ignore[method-assign]
        outage.forget()
        return await create(batch, segments)

    release = rig.index.release

    async def late_then_silent(lane: Lane, index: int, *, scheduled: bool) -> Release:
        verdict: Release = await release(lane, index, scheduled=scheduled)
        outage.mode = SILENT
        return verdict

    rig.store.create = flushed  # type: ignore[method-assign]
    outage.release = late_then_silent
    await rig.put(1)
    assert rig.loop.time() < 2 * rig.config.acquire_timeout
    assert rig.counters["release_late"] == 1
    outage.mode = ""
    await rig.drain()
    assert rig.numbers == [1]
