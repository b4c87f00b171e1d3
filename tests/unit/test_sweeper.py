"""What nobody is working on comes back: the sweeper beside the real writer, reader and worker."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from forkjoin_gcp.errors import (
    ConfigurationError,
    IndexUnavailable,
    SchedulerUnavailable,
    StoreUnavailable,
    TaskQueueNotFound,
)
from forkjoin_gcp.items import Item
from forkjoin_gcp.names import Batch, Lane, knuth_hash
from forkjoin_gcp.ports import KeyRange, Scanned, TaskRequest
from forkjoin_gcp.sweeper import Sweeper, SweepReport, format_resume, parse_resume
from forkjoin_gcp.tasks import ChunkTask, RootTask, Task, parse_task
from forkjoin_gcp.testing.in_process import InProcessScheduler
from forkjoin_gcp.testing.store_contract import some_segments
from tests.unit.outage import REFUSED, Outage
from tests.unit.rig import Rig, rigged

AFTER = 1_800.0


class Forgetful(InProcessScheduler):
    """Cloud Tasks that may lose what it took, and gives a task up after ``max_tries``.

    The names stay taken.
    """

    max_tries = 1_000_000

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.lose: Callable[[Task], bool] = lambda task: False
        self.lost: list[Task] = []

    def _put(self, task: TaskRequest, tried: int, at: float) -> None:
        parsed = parse_task(task.body)
        if tried >= self.max_tries or self.lose(parsed):
            self.lost.append(parsed)
        else:
            super()._put(task, tried, at)


class SweptRig(Rig):
    """A rig whose scheduler is forgetful."""

    scheduler: Forgetful

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.scheduler = Forgetful(self.clock)
        self.use(self.runner.handler)

    async def sweep(self, **arguments: Any) -> SweepReport:
        return await self.sweeper.run(**arguments)

    async def later(self, seconds: float = AFTER + 1) -> None:
        await asyncio.sleep(seconds)


def is_root(task: Task) -> bool:
    return isinstance(task, RootTask) and not task.sweep


def nothing(task: Task) -> bool:
    return False


@rigged
async def test_a_batch_whose_root_task_was_lost_comes_back() -> None:
    rig = SweptRig()
    rig.scheduler.lose = is_root
    ids = await rig.put(*range(250))
    await rig.drain()
    assert rig.handled == []
    await rig.later(AFTER - 10)
    early = await rig.sweep()
    assert (early.documents, early.items, early.stale) == (3, 250, [])
    await rig.later(20)
    report = await rig.sweep()
    (stale,) = report.stale
    assert (stale.batch, stale.items, stale.scheduled) == (rig.batches[0], 250, True)
    assert stale.untouched_since == pytest.approx(rig.clock.now() - AFTER - 10, abs=1)
    assert (report.resume, report.unknown, report.failed) == ("", [], False)
    await rig.drain()
    assert rig.numbers == list(range(250))
    assert sorted(item.id for item in rig.handled) == sorted(ids)
    assert rig.left == 0
    assert rig.counters["batches_swept"] == 1
    assert (await rig.sweep()).documents == 0


@rigged
async def test_a_root_task_that_used_up_its_attempts_comes_back() -> None:
    rig = SweptRig()
    await rig.put(1, 2)
    seal = rig.index.seal

    async def away(*_: Any) -> int | None:
        raise IndexUnavailable

    rig.scheduler.max_tries = 3
    rig.index.seal = away  # type: ignore[method-assign]
    await rig.drain()
    assert rig.scheduler.lost == [RootTask(rig.batches[0], batch_size=100)]
    rig.index.seal = seal  # type: ignore[method-assign]
    await rig.later()
    assert len((await rig.sweep()).stale) == 1
    await rig.drain()
    assert rig.numbers == [1, 2]


@rigged
async def test_a_lost_chunk_comes_back_though_its_name_is_taken() -> None:
    rig = SweptRig(batch_size=10)
    rig.scheduler.lose = lambda task: isinstance(task, ChunkTask) and task.first == 10
    await rig.put(*range(30))
    await rig.drain()
    assert rig.left == 10
    # The root again does not help: the chunk's name is taken.
    rig.scheduler.lose = nothing
    await rig.reader.run(RootTask(rig.batches[0]))
    await rig.drain()
    assert rig.left == 10
    await rig.later()
    assert [stale.items for stale in (await rig.sweep()).stale] == [10]
    await rig.drain()
    assert rig.numbers == list(range(30))


@rigged
async def test_what_a_sweep_scheduled_and_was_lost_again_comes_back_in_the_next_window() -> None:
    rig = SweptRig(batch_size=10)
    rig.scheduler.lose = lambda task: True
    await rig.put(*range(30))
    await rig.later()
    assert [stale.scheduled for stale in (await rig.sweep()).stale] == [True]
    await rig.later()
    rig.scheduler.lose = lambda task: isinstance(task, ChunkTask)
    assert [stale.scheduled for stale in (await rig.sweep()).stale] == [True]
    await rig.drain()
    assert rig.left == 30
    await rig.later()
    rig.scheduler.lose = nothing
    assert [stale.scheduled for stale in (await rig.sweep()).stale] == [True]
    await rig.drain()
    assert rig.numbers == list(range(30))


@rigged
async def test_a_deferred_root_whose_writer_died_comes_back() -> None:
    rig = SweptRig()
    create = rig.scheduler.create

    async def away(task: TaskRequest) -> bool:
        raise SchedulerUnavailable

    rig.scheduler.create = away  # type: ignore[method-assign]
    await rig.put(1)
    assert rig.counters["schedule_deferred"] == 1
    await rig.writer.close()
    rig.scheduler.create = create  # type: ignore[method-assign]
    await rig.later()
    await rig.sweep()
    await rig.drain()
    assert rig.numbers == [1]
    assert not rig.index._open, "the swept root sealed and fenced"


@rigged
async def test_a_lane_whose_root_was_lost_keeps_gathering_and_comes_back() -> None:
    """Its newest segment is always fresh: the oldest decides."""
    rig = SweptRig()
    rig.scheduler.lose = is_root
    for n in range(40):
        await rig.put(n)
        await rig.later(60)
    assert len(rig.batches) == 1
    assert len(rig.scheduler.created) == 1
    rig.scheduler.lose = nothing
    report = await rig.sweep()
    assert [stale.batch for stale in report.stale] == rig.batches
    await rig.drain()
    await rig.put(40)
    assert len(rig.batches) == 2, "the lane has moved on"
    await rig.drain()
    assert rig.numbers == list(range(41))


@rigged
async def test_a_full_batch_whose_two_roots_were_lost_comes_back() -> None:
    rig = SweptRig(batch_size=10, max_batch_items=20)
    rig.scheduler.lose = is_root
    await rig.put(*range(20))
    await rig.later()
    await rig.sweep()
    await rig.drain()
    assert rig.numbers == list(range(20))


@rigged
async def test_a_clock_batch_whose_root_was_lost_comes_back() -> None:
    rig = SweptRig()
    outage = Outage(rig)
    outage.mode = REFUSED
    rig.scheduler.lose = is_root
    ids = [one for n in range(4) for one in await rig.put(n, n + 10)]
    assert {batch.lane.is_clock for batch in rig.batches} == {True}
    await rig.later()
    rig.scheduler.lose = nothing
    report = await rig.sweep()
    assert [stale.scheduled for stale in report.stale] == [True] * len(rig.batches)
    await rig.drain()
    assert sorted(item.id for item in rig.handled) == sorted(ids)
    assert rig.left == 0


@rigged
async def test_what_an_old_version_left_is_swept_too() -> None:
    old = SweptRig(version="v1", batch_size=7)
    old.scheduler.lose = is_root
    await old.put(*range(20))
    new = SweptRig(version="v2")
    new.store, new.index = old.store, old.index
    new.use(new.runner.handler)
    await new.later()
    await new.put(20)
    report = await new.sweep()
    assert [(s.batch.lane.version, s.scheduled) for s in report.stale] == [("v1", True)]
    assert report.unknown == []
    await new.drain()
    assert new.numbers == list(range(21))
    assert new.left == 0


@rigged
async def test_unknown_queues_are_reported_and_not_touched() -> None:
    rig = SweptRig()
    for queue, version in (("other", "v1"), ("other", "v2"), ("third", "v1"), ("rig-2", "v1")):
        batch = Batch(Lane(queue, version), 1_000)
        await rig.store.create(batch, some_segments(batch, 5))
    await rig.put(1)
    await rig.drain()
    await rig.later()
    report = await rig.sweep(known=["third"])
    assert report.unknown == [("other", "v1"), ("other", "v2"), ("rig-2", "v1")]
    assert (report.documents, report.stale) == (0, [])
    assert len(rig.scheduler.created) == 1
    assert rig.left == 20


@rigged
async def test_two_sweepers_at_once_create_one_task() -> None:
    rig = SweptRig()
    rig.scheduler.lose = is_root
    await rig.put(1)
    await rig.later()
    rival = Sweeper(rig.config, rig.ports, rig.counters)
    one, two = await asyncio.gather(rig.sweep(), rival.run())
    assert sorted([one.stale[0].scheduled, two.stale[0].scheduled]) == [False, True]
    assert not one.failed
    assert not two.failed
    swept = [task for task in rig.scheduler.created if "_sweep-" in task.task_id]
    assert len(swept) == 1
    await rig.drain()
    assert rig.numbers == [1]


@rigged
async def test_items_that_are_to_be_tried_later_are_not_swept_before() -> None:
    tries: dict[int, int] = {}

    async def fail_once(item: Item[Any]) -> None:
        n = item.payload["n"]
        tries[n] = tries.get(n, 0) + 1
        if tries[n] == 1:
            raise ValueError("not yet")

    wait = 10 * AFTER
    rig = SweptRig(fail_once, retry_min_backoff=wait, retry_max_backoff=wait)
    await rig.put(1, 2)
    rig.scheduler.lose = lambda task: isinstance(task, ChunkTask)
    await rig.drain()
    assert rig.left == 2
    assert len(rig.scheduler.lost) == 1
    for _ in range(9):
        await rig.later(AFTER)
        assert (await rig.sweep()).stale == []
    await rig.later(2 * AFTER + 60)
    rig.scheduler.lose = nothing
    assert len((await rig.sweep()).stale) == 1
    await rig.drain()
    assert rig.numbers == [1, 2]


@rigged
async def test_what_is_handled_and_kept_is_not_stale() -> None:
    rig = SweptRig(on_success="keep")
    await rig.put(1)
    await rig.drain()
    await rig.later()
    report = await rig.sweep()
    assert (report.documents, report.items, report.stale) == (1, 0, [])


@rigged
async def test_a_dry_run_changes_nothing() -> None:
    rig = SweptRig()
    rig.scheduler.lose = is_root
    await rig.put(1, 2, 3)
    await rig.later()
    before = dict(rig.store.segments[rig.batches[0]])
    report = await rig.sweep(dry_run=True)
    assert [(stale.items, stale.scheduled, stale.error) for stale in report.stale] == [
        (3, None, "")
    ]
    assert len(rig.scheduler.created) == 1
    assert rig.store.segments[rig.batches[0]] == before
    assert rig.counters["batches_swept"] == 0


async def many_batches(rig: SweptRig, batches: int, items: int) -> None:
    rig.scheduler.lose = is_root
    for n in range(batches):
        await rig.put(*range(n * items, (n + 1) * items))
        rig.index.forget()  # each its own batch
        await rig.later(1)
    await rig.later()
    rig.scheduler.lose = nothing


@pytest.mark.parametrize(("partitions", "bound"), [(1, 7), (4, 7), (4, 1), (8, 33), (64, 10)])
def test_a_sweep_that_ends_at_its_bound_goes_on_where_it_was(partitions: int, bound: int) -> None:
    @rigged
    async def test() -> None:
        rig = SweptRig(batch_size=2)
        await many_batches(rig, 20, 5)
        resume, read, sweeps = "", 0, 0
        while True:
            report = await rig.sweep(partitions=partitions, max_documents=bound, resume=resume)
            assert report.documents <= bound
            read, resume, sweeps = read + report.documents, report.resume, sweeps + 1
            if not resume:
                break
        assert read == 60
        assert sweeps <= 61
        await rig.drain()
        assert rig.numbers == list(range(100))

    test()


@rigged
async def test_sweeps_that_begin_elsewhere_each_time_see_everything() -> None:
    rig = SweptRig()
    await many_batches(rig, 30, 1)
    begins = [0, 1, 2**31, 2**32 - 1, *(knuth_hash(n) for n in range(40))]
    for begin in begins:
        for partitions in (1, 3, 8):
            whole = await rig.sweep(dry_run=True, partitions=partitions, begin=begin)
            assert sorted(stale.batch.key for stale in whole.stale) == sorted(
                batch.key for batch in rig.batches
            )
    for begin in begins:
        await rig.sweep(max_documents=4, begin=begin)
    await rig.drain()
    assert rig.numbers == list(range(30))


@rigged
async def test_a_sweep_ends_when_its_time_is_over() -> None:
    rig = SweptRig()
    await many_batches(rig, 10, 1)
    scan = rig.store.scan

    async def slow(wanted: KeyRange, page: int) -> AsyncIterator[list[Scanned]]:
        async for found in scan(wanted, 1):
            await asyncio.sleep(1)
            yield found

    rig.store.scan = slow  # type: ignore[method-assign]
    report = await rig.sweep(partitions=1, seconds=3.5)
    assert report.documents == 4
    assert report.resume
    rest = await rig.sweep(resume=report.resume)
    assert rest.documents == 6
    await rig.drain()
    assert rig.numbers == list(range(10))


@rigged
async def test_what_could_not_be_read_is_told_and_left_for_later() -> None:
    rig = SweptRig()
    await many_batches(rig, 12, 1)
    scan = rig.store.scan

    async def partly(wanted: KeyRange, page: int) -> AsyncIterator[list[Scanned]]:
        if wanted.start >= "8":
            raise StoreUnavailable("no answer")
        async for found in scan(wanted, page):
            yield found

    rig.store.scan = partly  # type: ignore[method-assign]
    report = await rig.sweep(partitions=4)
    assert report.failed
    assert report.errors == ["no answer"] * 2
    rig.store.scan = scan  # type: ignore[method-assign]
    again = await rig.sweep(resume=report.resume)
    assert not again.failed
    assert report.documents + again.documents == 12
    await rig.drain()
    assert rig.numbers == list(range(12))


@rigged
async def test_a_store_that_is_away_is_raised() -> None:
    rig = SweptRig()

    async def away() -> list[tuple[str, str]]:
        raise StoreUnavailable

    rig.store.versions = away  # type: ignore[method-assign]
    with pytest.raises(StoreUnavailable):
        await rig.sweep()


@rigged
async def test_a_batch_that_could_not_be_scheduled_is_told() -> None:
    rig = SweptRig()
    await many_batches(rig, 2, 1)
    create = rig.scheduler.create

    async def refuse(task: TaskRequest) -> bool:
        if parse_task(task.body).batch == rig.batches[0]:
            raise TaskQueueNotFound("no queue rig-1")
        return await create(task)

    rig.scheduler.create = refuse  # type: ignore[method-assign]
    report = await rig.sweep()
    assert report.failed
    assert {stale.batch: (stale.scheduled, stale.error) for stale in report.stale} == {
        rig.batches[0]: (None, "no queue rig-1"),
        rig.batches[1]: (True, ""),
    }


@rigged
async def test_sweeping_what_is_worked_on_after_all_does_no_harm() -> None:
    """Its task was only late: whatever runs beside it, each segment is settled once."""
    rig = SweptRig()
    await rig.put(*range(150))
    await rig.later()  # nothing was delivered meanwhile
    await rig.sweep()
    assert len(rig.scheduler.created) == 2
    await rig.drain()
    assert sorted(set(rig.numbers)) == list(range(150))
    assert rig.left == 0
    assert (await rig.sweep()).documents == 0


@rigged
async def test_wrong_arguments_are_refused() -> None:
    rig = SweptRig()
    for arguments, message in (
        ({"partitions": 0}, "partitions=0"),
        ({"partitions": 65}, "from 1 to 64"),
        ({"max_documents": 0}, "max_documents=0"),
        ({"seconds": 0.0}, "seconds=0.0"),
        ({"resume": "rig"}, "resume='rig'"),
        ({"resume": "rig.v1:9:0:8"}, "resume="),
    ):
        with pytest.raises(ConfigurationError, match=message):
            await rig.sweep(**arguments)


def test_resume_is_read_as_it_was_written() -> None:
    key = Batch(Lane("feeds", "v1"), 1_767_225_600_000).key
    ranges = [KeyRange("feeds", "v1", key, 300, "g"), KeyRange("feeds", "v-2", "0", 0, "80000000")]
    text = format_resume([*ranges, KeyRange("other", "v1")])
    assert not set(text) & set(" \"'$&|;<>()*?[]{}~#!\\`")
    assert parse_resume("feeds", text) == ranges
    assert parse_resume("third", text) == []


def test_a_swept_root_has_names_of_its_own() -> None:
    rig_batch = Batch(Lane("feeds", "v1"), 1_767_225_600_000)
    plain, swept = RootTask(rig_batch), RootTask(rig_batch, sweep=1_767_229_200)
    assert plain.task_id != swept.task_id
    assert parse_task(swept.body()) == swept
    assert b"sweep" not in plain.body()
    others = {RootTask(rig_batch, sweep=1_767_229_200 + n).task_id for n in range(100)}
    assert len(others) == 100
    for wrong in (
        b'{"kind":"root","queue":"feeds","version":"v1","batch":"%s","full":true,"sweep":1}',
        b'{"kind":"root","queue":"feeds","version":"v1","batch":"%s","sweep":-1}',
        b'{"kind":"chunk","queue":"feeds","version":"v1","batch":"%s","first":0,"stop":1,'
        b'"generation":0,"sweep":1}',
    ):
        with pytest.raises(ConfigurationError, match="sweep"):
            parse_task(wrong % rig_batch.key.encode())


def test_tasks_of_a_sweep_are_spread() -> None:
    """A sweep goes by ascending hashes; the ids that it creates do not ascend with them."""
    lane = Lane("feeds", "v1")
    batches = sorted((Batch(lane, 1_000 + n) for n in range(200)), key=lambda batch: batch.key)
    ids = [RootTask(batch, sweep=1_767_229_200).task_id for batch in batches]
    ascents = sum(one < two for one, two in itertools.pairwise(ids))
    assert 60 < ascents < 140
