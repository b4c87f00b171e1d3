"""An item that kills its process is found, and nobody else is blamed: under virtual time."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from forkjoin_gcp.errors import ChunkBusy, SchedulerUnavailable
from forkjoin_gcp.items import DeadLetter, Item, Segment, StoredItem
from forkjoin_gcp.joining.isolation import ProcessGate, items_in, parts_of, plan_cut
from forkjoin_gcp.names import Batch, Lane
from forkjoin_gcp.ports import Found
from forkjoin_gcp.tasks import ChunkTask, RootTask, TaskRequest, parse_task, request_for
from forkjoin_gcp.testing.virtual_time import run_virtual
from tests.unit.processes import Process
from tests.unit.rig import Rig, rigged

LANE = Lane("rig", "v1")


class Deadly:
    """A queue served by one process, and items of which some kill it, after ``seconds``."""

    def __init__(
        self,
        deadly: set[int],
        *,
        seconds: Callable[[int], float] = lambda _: 0.0,
        silent: float = 0.0,
        **settings: Any,
    ) -> None:
        self._deadly = deadly
        self._seconds = seconds
        self._silent = silent
        self.rig = Rig(self._handle, **settings)
        self.process = Process(self.rig)
        self.times: dict[int, float] = {}

    async def _handle(self, item: Item[Any]) -> None:
        await asyncio.sleep(self._seconds(item.payload["n"]))
        if item.payload["n"] in self._deadly:
            self.process.die(self._silent)
            await asyncio.sleep(3600)
        self.times[item.payload["n"]] = self.rig.clock.now()

    async def drain(self) -> None:
        await self.rig.scheduler.run(self.process.deliver)

    async def check(self, count: int) -> list[DeadLetter]:
        """All were handled but the deadly ones, which are dead letters."""
        innocent = set(range(count)) - self._deadly
        assert set(self.rig.numbers) == innocent
        letters = await self.rig.store.dead_letters(LANE, 10_000)
        assert {letter.payload for letter in letters} == {f'{{"n":{n}}}' for n in self._deadly}
        assert {letter.reason for letter in letters} == ({"crashed"} if letters else set())
        assert self.rig.left == 0
        return letters


@rigged
async def test_a_chunk_is_split_down_to_the_item_that_kills() -> None:
    case = Deadly({37})
    ids = await case.rig.put(*range(100))
    await case.drain()
    (letter,) = await case.check(100)
    assert letter.id == ids[37]
    assert letter.attempts == 3
    assert "3 times" in letter.error
    assert case.process.deaths <= 3 + 7 + 3, "as a chunk, in each half, and alone"


@rigged
async def test_a_sweep_does_not_begin_the_search_again() -> None:
    """The swept root's chunk finds where it was split before, and so do its parts."""
    case = Deadly({37, 73})
    await case.rig.put(*range(100))
    (batch,) = case.rig.batches
    running = asyncio.ensure_future(case.drain())
    for sweep in range(1, 8):
        await asyncio.sleep(15)
        root = RootTask(batch, sweep=sweep)
        await case.rig.scheduler.create(request_for(root, case.rig.config))
    await running
    await case.check(100)
    assert case.process.deaths <= 3 + 2 * (7 + 3) + 2, "as without sweeps, and two for chance"


@rigged
async def test_one_among_a_thousand_and_the_queue_goes_on() -> None:
    case = Deadly({537}, seconds=lambda n: n % 7 / 10)
    await case.rig.put(*range(1000))
    running = asyncio.ensure_future(case.drain())
    for n in range(1000, 1200):
        await case.rig.put(n)
        await asyncio.sleep(1)
    await running
    await case.drain()
    (letter,) = await case.check(1200)
    enqueued = {item.payload["n"]: item.enqueued_at.timestamp() for item in case.rig.handled}
    meanwhile = [n for n in range(1000, 1200) if enqueued[n] < letter.dead_at]
    waits = sorted(case.times[n] - enqueued[n] for n in meanwhile)
    assert len(meanwhile) > 50
    assert waits[len(waits) * 8 // 10] < 2, "most did not notice"


@rigged
async def test_chunks_of_one_item_that_die_together_are_not_blamed_together() -> None:
    """Ten chunks of one item each, all in one process with the one that kills it: each of them sees
    as many of its runs vanish."""
    case = Deadly({4}, batch_size=1, seconds=lambda n: 0.1 if n == 4 else 0.5)
    await case.rig.put(*range(10))
    await case.drain()
    await case.check(10)


@rigged
async def test_a_suspect_beside_another_killer_is_not_blamed() -> None:
    """Killers keep coming, in chunks that are no suspects yet, and die beside the suspects."""
    killers = set(range(0, 60, 7))
    case = Deadly(killers, batch_size=1, crash_limit=1, seconds=lambda n: 0.2 if n % 7 else 0.1)
    running: list[asyncio.Future[None]] = []
    for n in range(60):
        await case.rig.put(n)
        if n == 0:
            running.append(asyncio.ensure_future(case.drain()))
        await asyncio.sleep(3)
    await running[0]
    await case.drain()
    await case.check(60)


@rigged
async def test_an_item_that_hangs_its_process_is_found_like_one_that_kills_it() -> None:
    """It holds the GIL: no deadline of this process ends it, and no lease is renewed."""
    case = Deadly({17}, silent=30.0, dispatch_deadline=30)
    await case.rig.put(*range(30))
    await case.drain()
    await case.check(30)


def a_course(seed: int) -> None:
    async def main() -> None:
        rng = random.Random(seed)
        count = rng.choice([1, 5, 40, 120])
        deadly = set(rng.sample(range(count), min(count, rng.randint(0, 4))))
        times = {n: rng.choice([0.0, 0.01, 0.3, 4.0]) for n in range(count)}
        case = Deadly(
            deadly,
            seconds=times.__getitem__,
            batch_size=rng.choice([1, 3, 50]),
            crash_limit=rng.choice([1, 2, 3]),
            lanes=rng.choice([1, 2]),
            on_success=rng.choice(["delete", "keep"]),
        )
        ids: list[str] = []
        running = asyncio.ensure_future(asyncio.sleep(0))
        while len(ids) < count:
            size = min(rng.randint(1, 60), count - len(ids))
            ids += await case.rig.put(*range(len(ids), len(ids) + size))
            if running.done():
                running = asyncio.ensure_future(case.drain())
            await asyncio.sleep(rng.choice([0.0, 1.0, 20.0]))
        await running
        await case.drain()
        letters = await case.check(count) if case.rig.config.on_success == "delete" else []
        assert {letter.id for letter in letters} <= {ids[n] for n in deadly}
        assert case.rig.left == 0

    run_virtual(main())


@pytest.mark.parametrize("seed", range(60))
def test_whoever_kills_and_whoever_runs_beside_it(seed: int) -> None:
    a_course(seed)


@rigged
async def test_a_split_that_dies_before_its_parts_are_scheduled_is_repeated() -> None:
    case = Deadly({1}, crash_limit=1)
    await case.rig.put(*range(9))
    create = case.rig.scheduler.create
    failures = 0

    async def failing(task: TaskRequest) -> bool:
        nonlocal failures
        asked = parse_task(task.body)
        if isinstance(asked, ChunkTask) and asked.suspect and failures < 6:
            failures += 1
            raise SchedulerUnavailable
        return await create(task)

    case.rig.scheduler.create = failing  # type: ignore[method-assign]
    await case.drain()
    assert failures == 6
    await case.check(9)
    tasks = [parse_task(one.body) for one in case.rig.scheduler.created]
    spans = [(t.first, t.stop) for t in tasks if isinstance(t, ChunkTask) and t.suspect]
    assert len(spans) == len(set(spans)), "each part once"
    assert {(0, 4), (4, 100)} <= set(spans)


@rigged
async def test_a_chunk_delivered_again_after_it_was_split_is_not_run() -> None:
    case = Deadly({1}, crash_limit=1)
    await case.rig.put(*range(9))
    (batch,) = case.rig.batches
    await case.drain()
    await case.check(9)
    runs, created = case.rig.counters["chunks"], len(case.rig.scheduler.created)
    await case.process.deliver(ChunkTask(batch, 0, 100).body())
    assert case.rig.counters["chunks"] == runs
    assert len(case.rig.scheduler.created) == created


@rigged
async def test_a_chunk_that_changes_while_it_is_split_is_put_off() -> None:
    rig = Rig(crash_limit=1)
    await rig.put(*range(4))
    (batch,) = rig.batches
    await rig.index.fence(batch.lane, batch.index)
    task = ChunkTask(batch, 0, 100)
    await rig.index.lease(task.chunk, "dies", 0.0)

    async def changed(*_: Any) -> bool:
        return False

    split, rig.store.split = rig.store.split, changed  # type: ignore[method-assign]
    with pytest.raises(ChunkBusy):
        await rig.deliver(task.body())
    rig.store.split = split  # type: ignore[method-assign]
    await rig.deliver(task.body())
    assert rig.counters["chunks_split"] == 1
    await rig.drain()
    assert rig.numbers == [0, 1, 2, 3]


@rigged
async def test_an_item_that_waits_to_be_tried_again_is_not_blamed() -> None:
    """A suspect whose last item is not due yet: it is scheduled, not run, and nothing counts."""

    async def handle(item: Item[Any]) -> None:
        if item.attempt == 1:
            raise ValueError

    rig = Rig(handle, crash_limit=1, retry_min_backoff=60)
    await rig.put(1)
    (batch,) = rig.batches
    await rig.index.fence(batch.lane, batch.index)
    await rig.deliver(ChunkTask(batch, 0, 100, suspect=True).body())
    for _ in range(5):
        await rig.deliver(ChunkTask(batch, 0, 100, suspect=True).body())
    await rig.drain()
    assert rig.numbers == [1]
    tasks = [parse_task(one.body) for one in rig.scheduler.created]
    suspects = [t.generation for t in tasks if isinstance(t, ChunkTask) and t.suspect]
    assert suspects == [1], "it stays one"


# Where a chunk is cut

BATCH = Batch(LANE, 7)
CHUNK = ChunkTask(BATCH, 0, 100)
SUSPECT = replace(CHUNK, suspect=True)


def stored(first: int, *positions: int) -> Found:
    items = tuple(StoredItem(n, str(n)) for n in positions)
    handled = (StoredItem(first, "done"),)
    return Found(first, Segment(first, items, "mine", BATCH.key, 0, 0.0, 0.0, handled), None)


DEFECT = Found(2, None, None, "no segment")


def test_what_has_not_vanished_often_enough_is_run() -> None:
    found = [stored(0, *range(10))]
    for vanished in range(3):
        assert plan_cut(CHUNK, found, vanished, 3) is None
    assert plan_cut(CHUNK, found, 3, 3) is not None
    assert plan_cut(SUSPECT, found, 0, 3) is None
    assert plan_cut(SUSPECT, found, 1, 3) is not None


def test_a_segment_across_the_middle_is_cut() -> None:
    cut = plan_cut(CHUNK, [stored(0, 3, 5, 9), stored(20, 21)], 3, 3)
    assert cut is not None
    assert (cut.at, [piece.first for piece in cut.pieces]) == (9, [0, 9])
    assert [[item.position for item in piece.items] for piece in cut.pieces] == [[3, 5], [9]]
    assert [len(piece.handled) for piece in cut.pieces] == [1, 0]
    assert parts_of(CHUNK, cut.at) == [
        ChunkTask(BATCH, 0, 9, suspect=True), ChunkTask(BATCH, 9, 100, suspect=True),
    ]  # fmt: skip


def test_between_two_segments_nothing_is_cut() -> None:
    """The second is read by its key, which may be far before its first item."""
    cut = plan_cut(CHUNK, [stored(0, 5), stored(10, 60)], 3, 3)
    assert cut is not None
    assert (cut.at, cut.found, cut.pieces) == (10, None, ())


def test_one_item_is_set_apart_whole_and_a_suspect_is_not_cut() -> None:
    cut = plan_cut(CHUNK, [DEFECT, stored(10, 60)], 3, 3)
    assert cut is not None
    assert parts_of(CHUNK, cut.at) == [SUSPECT]
    assert plan_cut(SUSPECT, [stored(10, 60)], 9, 3) is None
    assert plan_cut(CHUNK, [DEFECT], 9, 3) is None
    assert items_in([DEFECT, stored(10, 60)]) == 1


@pytest.mark.parametrize("count", [2, 3, 7, 64, 100])
def test_cutting_ends(count: int) -> None:
    """Each part is smaller than the whole, and has all of its items."""

    def halve(task: ChunkTask, found: list[Found]) -> int:
        cut = plan_cut(task, found, 9, 3)
        if cut is None or items_in(found) == 1:
            return 1
        kept = [one for one in found if one is not cut.found]
        kept += [Found(piece.first, piece, None) for piece in cut.pieces]
        parts = []
        for part in parts_of(task, cut.at):
            mine = sorted(
                (one for one in kept if part.first <= one.first < part.stop),
                key=lambda one: one.first,
            )
            assert 0 < items_in(mine) <= (items_in(found) + 1) // 2
            parts.append(halve(part, mine))
        return 1 + max(parts)

    depth = halve(CHUNK, [stored(0, *range(0, count, 2)), stored(50, *range(51, 51 + count // 2))])
    assert depth <= 8


# Who runs beside whom


@rigged
async def test_who_is_alone_lets_nobody_in_until_it_leaves() -> None:
    gate = ProcessGate()
    with gate.inside() as presence:
        assert await presence.alone(0)
        with pytest.raises(ChunkBusy), gate.inside():
            pass
    with gate.inside(), gate.inside():
        pass


@rigged
async def test_who_wants_to_be_alone_waits_for_the_others() -> None:
    gate = ProcessGate()

    async def other(seconds: float) -> None:
        with gate.inside():
            await asyncio.sleep(seconds)

    others = [asyncio.ensure_future(other(seconds)) for seconds in (3, 5)]
    await asyncio.sleep(0)
    loop = asyncio.get_running_loop()
    with gate.inside() as presence:
        assert await presence.alone(10)
        assert loop.time() == 5
    await asyncio.gather(*others)


@rigged
async def test_who_is_not_left_alone_in_time_lets_others_in_again() -> None:
    gate = ProcessGate()
    with gate.inside() as first, gate.inside() as second:
        waiting = asyncio.ensure_future(first.alone(10))
        await asyncio.sleep(1)
        assert not await second.alone(10), "another wants it already"
        assert not await waiting
        with gate.inside():
            pass


def test_chunks_of_other_threads_are_seen() -> None:
    gate = ProcessGate()
    is_in, leave = threading.Event(), threading.Event()

    async def stay() -> None:
        with gate.inside():
            is_in.set()
            await asyncio.to_thread(leave.wait, 10)

    async def wait() -> bool:
        with gate.inside() as presence:
            asyncio.get_running_loop().call_later(0.01, leave.set)
            return await presence.alone(10)

    thread = threading.Thread(target=asyncio.run, args=(stay(),))
    thread.start()
    assert is_in.wait(10)
    assert asyncio.run(wait())
    assert leave.is_set()
    thread.join()
