"""Writer, reader and worker together, under virtual time: what is put in comes out, once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from forkjoin_gcp.config import QueueConfig
from forkjoin_gcp.errors import (
    IndexUnavailable,
    QueueClosed,
    Reject,
    Retry,
    SchedulerUnavailable,
    StoreUnavailable,
    TaskQueueNotFound,
)
from forkjoin_gcp.items import Item, Segment, StoredItem
from forkjoin_gcp.joining.handlers import BatchHandler, BatchItem
from forkjoin_gcp.names import Batch, Lane
from forkjoin_gcp.ports import Release
from forkjoin_gcp.tasks import ChunkTask, RootTask, parse_task
from forkjoin_gcp.testing.virtual_time import VirtualClock
from tests.unit.rig import Rig, rigged


@rigged
async def test_one_item() -> None:
    rig = Rig()
    ids = await rig.put(1)
    assert rig.left == 1
    await rig.drain()
    assert rig.numbers == [1]
    assert [item.id for item in rig.handled] == ids
    assert rig.left == 0
    assert len(rig.scheduler.created) == 1


@rigged
async def test_a_thousand_callers_make_one_task_a_batch_and_few_calls() -> None:
    rig = Rig()
    ids = await asyncio.gather(*(rig.put(n) for n in range(1000)))
    assert len({one for (one,) in ids}) == 1000
    assert rig.counters["groups"] == 1, "all in one pass of the loop"
    await rig.drain()
    assert rig.numbers == list(range(1000))
    assert len(rig.scheduler.created) == 10, "a root and nine chunks of 100"
    assert rig.counters["chunks"] == 10


@rigged
async def test_callers_over_time_share_a_batch_until_its_period_is_over() -> None:
    rig = Rig(batch_period=0.5)
    drained = asyncio.ensure_future(asyncio.sleep(0))
    for n in range(20):
        await rig.put(n)
        await asyncio.sleep(0.02)
    await drained
    assert len(rig.batches) == 1
    assert len(rig.scheduler.created) == 1
    root = rig.scheduler.created[0]
    assert root.at == pytest.approx(rig.clock.now() - 0.4 + 0.5)
    await rig.drain()
    assert rig.numbers == list(range(20))


@rigged
async def test_order_within_a_batch_is_the_order_of_arrival() -> None:
    rig = Rig(concurrency=1)
    await asyncio.gather(*(rig.put(n) for n in range(50)))
    await rig.drain()
    assert [item.payload["n"] for item in rig.handled] == list(range(50))


@rigged
async def test_segments_never_cross_a_chunk_boundary() -> None:
    rig = Rig(batch_size=10)
    for size in (7, 7, 25, 1):
        await rig.put(*range(size))
    (batch,) = rig.batches
    for segment in rig.store.segments[batch].values():
        assert {item.position // 10 for item in segment.items} == {segment.first // 10}
    await rig.drain()
    assert len(rig.handled) == 40
    assert rig.counters["chunks"] == 4


@rigged
async def test_all_chunks_are_scheduled_at_once_and_start_together() -> None:
    rig = Rig(batch_size=100, max_batch_items=20_000)
    await rig.put(*range(10_000))
    await rig.drain()
    starts = [
        at for at, task in rig.scheduler.dispatched if isinstance(parse_task(task.body), ChunkTask)
    ]
    assert len(starts) == 99
    assert max(starts) - min(starts) < 0.001
    assert rig.numbers == list(range(10_000))


@rigged
async def test_max_batch_items_closes_a_batch_and_runs_it_at_once() -> None:
    rig = Rig(max_batch_items=100, batch_period=60)
    await rig.put(*range(60))
    await rig.put(*range(60, 120))
    await rig.put(*range(120, 130))
    assert len(rig.batches) == 2
    began = rig.loop.time()
    roots = [parse_task(task.body) for task in rig.scheduler.created]
    assert [isinstance(t, RootTask) and t.full for t in roots] == [False, True, False]
    assert rig.scheduler.created[1].at is None
    running = asyncio.ensure_future(rig.drain())
    await asyncio.sleep(1)
    assert rig.numbers == list(range(120))
    await running
    assert rig.numbers == list(range(130))
    assert rig.loop.time() - began >= 60


@rigged
async def test_more_than_a_batch_may_hold_is_split_over_batches() -> None:
    rig = Rig(max_batch_items=100, batch_size=50)
    ids = await rig.put(*range(350))
    assert len(set(ids)) == 350
    assert len(rig.batches) == 4
    await rig.drain()
    assert rig.numbers == list(range(350))


@rigged
async def test_without_a_period_each_burst_is_a_batch_and_runs_at_once() -> None:
    rig = Rig(batch_period=0)
    await asyncio.gather(*(rig.put(n) for n in range(5)))
    await asyncio.gather(*(rig.put(n) for n in range(5, 8)))
    assert len(rig.batches) == 2
    assert all(task.at is None for task in rig.scheduler.created)
    await rig.drain()
    assert rig.numbers == list(range(8))


@rigged
async def test_lanes_are_used_side_by_side() -> None:
    rig = Rig(lanes=3)
    gate = asyncio.Event()
    create = rig.store.create

    async def slow(batch: Batch, segments: Any) -> Any:
        await gate.wait()
        return await create(batch, segments)

    rig.store.create = slow  # type: ignore[method-assign]
    puts = []
    for n in range(3):
        puts.append(asyncio.ensure_future(rig.put(n)))
        await asyncio.sleep(0.1)
    gate.set()
    await asyncio.gather(*puts)
    assert {batch.lane.number for batch in rig.batches} == {0, 1, 2}
    await rig.put(3)
    assert len(rig.batches) == 3, "an idle writer stays on the lane it prefers"
    await rig.drain()
    assert rig.numbers == [0, 1, 2, 3]


@rigged
async def test_shards_spread_tasks_over_queues() -> None:
    rig = Rig(shards=4, batch_size=10)
    await rig.put(*range(200))
    await rig.drain()
    assert {task.queue for task in rig.scheduler.created} == {f"rig-{n}" for n in (1, 2, 3, 4)}
    assert rig.numbers == list(range(200))


@rigged
async def test_groups_keep_a_distance_where_callers_wait_but_a_lone_caller_never_does() -> None:
    rig = Rig()
    began = rig.loop.time()
    for n in range(10):
        await rig.put(n)
    assert rig.loop.time() == began
    rig.counters.clear()
    create = rig.store.create

    async def as_slow_as_an_emulator(batch: Batch, segments: Any) -> Any:
        await asyncio.sleep(0.003)
        return await create(batch, segments)

    rig.store.create = as_slow_as_an_emulator  # type: ignore[method-assign]

    async def caller(start: float) -> None:
        await asyncio.sleep(start)
        await rig.put(0)

    await asyncio.gather(*(caller(n / 1000) for n in range(1000)))
    assert rig.counters["groups"] <= 100, "1,000 items/s one by one share groups"


@rigged
async def test_a_full_batch_is_begun_once_though_it_has_two_roots() -> None:
    async def slow(item: Item[Any]) -> None:
        await asyncio.sleep(5)

    rig = Rig(slow, max_batch_items=100, batch_size=50, batch_period=0.5)
    await rig.put(*range(60))
    await rig.put(*range(60, 100))
    assert len(rig.scheduler.created) == 2
    await rig.drain()
    assert rig.numbers == list(range(100))
    assert rig.counters["roots"] == 2


# Handlers' failures


@rigged
async def test_failures_are_tried_again_with_backoff_and_then_dead_lettered() -> None:
    times: list[float] = []

    async def handle(item: Item[Any]) -> None:
        if item.payload["n"] == 3:
            times.append(asyncio.get_running_loop().time())
            raise ValueError("no")

    rig = Rig(handle, max_attempts=4, retry_min_backoff=10, retry_max_backoff=25)
    ids = await rig.put(*range(5))
    await rig.drain()
    assert rig.numbers == [0, 1, 2, 4]
    waits = [round(b - a) for a, b in pairwise(times)]
    assert waits == [10, 20, 25]
    (letter,) = await rig.store.dead_letters(Lane("rig", "v1"), 10)
    assert (letter.id, letter.reason, letter.attempts) == (ids[3], "attempts", 4)
    assert letter.error == "ValueError: no"
    assert letter.payload == '{"n":3}'
    assert rig.left == 0


@rigged
async def test_attempts_are_counted_for_the_handler() -> None:
    seen: list[int] = []

    async def handle(item: Item[Any]) -> None:
        seen.append(item.attempt)
        if item.attempt < 3:
            raise RuntimeError

    rig = Rig(handle, retry_min_backoff=1)
    await rig.put(1)
    await rig.drain()
    assert seen == [1, 2, 3]
    assert rig.numbers == [1]


@rigged
async def test_reject_is_dead_lettered_at_once() -> None:
    async def handle(item: Item[Any]) -> None:
        raise Reject("not ours")

    rig = Rig(handle)
    await rig.put(1)
    await rig.drain()
    (letter,) = await rig.store.dead_letters(Lane("rig", "v1"), 10)
    assert (letter.reason, letter.error, letter.attempts) == ("rejected", "not ours", 1)


@rigged
async def test_retry_after_is_kept_for_each_item() -> None:
    done: dict[int, float] = {}

    async def handle(item: Item[Any]) -> None:
        n = item.payload["n"]
        if item.attempt == 1 and n:
            raise Retry(after=n * 100.0)
        done[n] = asyncio.get_running_loop().time()

    rig = Rig(handle, retry_min_backoff=1)
    await rig.put(0, 1, 2, 3)
    await rig.drain()
    base = done[0]
    assert sorted(done) == [0, 1, 2, 3]
    for n in (1, 2, 3):
        assert n * 100 <= done[n] - base < n * 100 + 5


@rigged
async def test_what_is_tried_later_does_not_expire_before() -> None:
    async def handle(item: Item[Any]) -> None:
        if item.attempt == 1:
            raise Retry(after=20 * 86_400)

    rig = Rig(handle)
    await rig.put(1)
    running = asyncio.ensure_future(rig.drain())
    await asyncio.sleep(5)
    (segment,) = [s for held in rig.store.segments.values() for s in held.values()]
    assert segment.expire_at >= rig.clock.now() + 20 * 86_400
    await running
    assert rig.numbers == [1]


@rigged
async def test_what_does_not_decode_is_dead_lettered_and_the_rest_runs() -> None:
    rig = Rig()
    await rig.put(1, 2, 3)
    (batch,) = rig.batches
    (first,) = rig.store.segments[batch]
    segment = rig.store.segments[batch][first]
    items = list(segment.items)
    items[1] = StoredItem(items[1].position, "[not json")
    rig.store.segments[batch][first] = Segment(
        segment.first, tuple(items), segment.nonce, segment.origin, 0, segment.enqueued_at, 0
    )
    await rig.drain()
    assert rig.numbers == [1, 3]
    (letter,) = await rig.store.dead_letters(batch.lane, 10)
    assert letter.reason == "undecodable"
    assert letter.payload == "[not json"


@rigged
async def test_kept_items_are_handled_once_and_stay() -> None:
    rig = Rig(on_success="keep")
    await rig.put(1, 2)
    await rig.drain()
    await rig.deliver(rig.scheduler.created[0].body)
    assert rig.numbers == [1, 2]
    (segment,) = [s for held in rig.store.segments.values() for s in held.values()]
    assert [item.payload for item in segment.handled] == ['{"n":1}', '{"n":2}']
    assert not segment.items


@rigged
async def test_near_the_deadline_the_rest_goes_on_in_a_new_generation_without_a_try() -> None:
    async def handle(item: Item[Any]) -> None:
        await asyncio.sleep(10)

    rig = Rig(handle, dispatch_deadline=100, concurrency=1, writer_timeout=5)
    await rig.put(*range(20))
    began = rig.loop.time()
    await rig.drain()
    assert rig.numbers == list(range(20))
    assert all(item.attempt == 1 for item in rig.handled)
    assert rig.counters["chunks"] == 3
    assert rig.loop.time() - began < 210, "no backoff between generations"


@rigged
async def test_a_handler_that_hangs_is_ended_and_counts_as_a_try() -> None:
    async def handle(item: Item[Any]) -> None:
        if item.payload["n"] == 1:
            await asyncio.sleep(10_000)

    rig = Rig(handle, dispatch_deadline=30, max_attempts=2, retry_min_backoff=1)
    await rig.put(0, 1, 2)
    await rig.drain()
    assert rig.numbers == [0, 2]
    (letter,) = await rig.store.dead_letters(Lane("rig", "v1"), 10)
    assert "deadline" in letter.error
    assert letter.attempts == 2


@rigged
async def test_batch_handler_decides_on_single_items() -> None:
    seen: list[list[int]] = []

    async def handle(items: list[BatchItem[Any]]) -> None:
        seen.append([item.payload["n"] for item in items])
        for item in items:
            if item.payload["n"] == 1:
                item.reject("no")
            if item.payload["n"] == 2 and item.attempt == 1:
                item.fail(ValueError("later"))

    rig = Rig(retry_min_backoff=1)
    rig.use(BatchHandler(handle))
    await rig.put(0, 1, 2)
    await rig.drain()
    assert seen == [[0, 1, 2], [2]]
    (letter,) = await rig.store.dead_letters(Lane("rig", "v1"), 10)
    assert letter.error == "no"
    assert rig.left == 0


# When things fail


@rigged
async def test_writer_that_dies_is_waited_for_and_then_given_up() -> None:
    rig = Rig(writer_timeout=10)
    await rig.put(1)
    await rig.index.reserve(Lane("rig", "v1"), 1)
    await rig.drain()
    assert rig.numbers == [1]
    assert rig.counters["writers_given_up"] == 1
    assert 10 <= rig.loop.time() < 12


@rigged
async def test_writer_that_stalls_past_the_fence_moves_its_segments() -> None:
    rig = Rig(writer_timeout=2, batch_size=10)
    await rig.put(0)
    create = rig.store.create

    async def stalled(batch: Batch, segments: Any) -> Any:
        rig.store.create = create  # type: ignore[method-assign]
        await asyncio.sleep(60)
        return await create(batch, segments)

    rig.store.create = stalled  # type: ignore[method-assign]
    put = asyncio.ensure_future(rig.put(*range(1, 15)))
    await asyncio.sleep(0.01)
    early = asyncio.ensure_future(rig.drain())
    ids = await put
    assert rig.counters["release_late"] == 1
    await early
    await rig.drain()
    assert rig.numbers == list(range(15))
    assert {item.id for item in rig.handled} >= set(ids), "ids are kept in the move"
    assert rig.left == 0


@rigged
async def test_lost_counters_make_writers_move_and_readers_list() -> None:
    rig = Rig()
    await rig.put(1)
    create = rig.store.create

    async def flushed(batch: Batch, segments: Any) -> Any:
        rig.index.forget()
        rig.store.create = create  # type: ignore[method-assign]
        return await create(batch, segments)

    rig.store.create = flushed  # type: ignore[method-assign]
    await rig.put(2)
    assert rig.counters["release_late"] == 1
    assert rig.counters["segments_moved"] == 1
    await rig.drain()
    assert rig.numbers == [1, 2]
    assert rig.counters["plans_by_listing"] >= 1


@rigged
async def test_lost_answer_of_a_release_moves_the_segments() -> None:
    rig = Rig()
    release = rig.index.release

    async def lost(lane: Lane, index: int, *, scheduled: bool) -> Release:
        await release(lane, index, scheduled=scheduled)
        rig.index.release = release  # type: ignore[method-assign]
        raise IndexUnavailable

    rig.index.release = lost  # type: ignore[method-assign]
    await rig.put(1)
    assert rig.counters["segments_moved"] == 1
    await rig.drain()
    assert rig.numbers == [1]
    assert len(rig.scheduler.created) == 2 or rig.left == 0


@rigged
async def test_reserve_is_tried_again_and_then_fails_clearly() -> None:
    rig = Rig(acquire_attempts=3, storage="memorystore")
    tries = 0

    async def down(lane: Lane, count: int) -> Any:
        nonlocal tries
        tries += 1
        raise IndexUnavailable("Memorystore is away")

    reserve, rig.index.reserve = rig.index.reserve, down  # type: ignore[method-assign]
    with pytest.raises(IndexUnavailable, match="away"):
        await rig.put(1)
    assert tries == 3
    rig.index.reserve = reserve  # type: ignore[method-assign]
    with pytest.raises(IndexUnavailable, match="away"):
        await rig.put(1)
    assert rig.loop.time() < 0.5, "while it counts as away nobody waits to be told so"
    await asyncio.sleep(0.5)
    await rig.put(2)
    await rig.drain()
    assert rig.numbers == [2]


@rigged
async def test_a_reserve_that_never_answers_is_given_up_in_time() -> None:
    rig = Rig(acquire_timeout=1, acquire_attempts=2, storage="memorystore")

    async def silent(lane: Lane, count: int) -> Any:
        await asyncio.sleep(3600)

    rig.index.reserve = silent  # type: ignore[method-assign]
    with pytest.raises(IndexUnavailable, match="acquire_timeout"):
        await rig.put(1)
    assert rig.loop.time() < 3


@rigged
async def test_store_that_is_away_fails_its_callers_and_leaves_a_harmless_hole() -> None:
    rig = Rig()
    create = rig.store.create

    async def away(batch: Batch, segments: Any) -> Any:
        rig.store.create = create  # type: ignore[method-assign]
        return [StoreUnavailable("Firestore is away") for _ in segments]

    await rig.put(0)
    rig.store.create = away  # type: ignore[method-assign]
    with pytest.raises(StoreUnavailable, match="away"):
        await rig.put(1)
    await rig.put(2)
    await rig.drain()
    assert rig.numbers == [0, 2]
    assert rig.loop.time() < 2, "the hold was given back: nobody waited for it"


@rigged
async def test_scheduler_that_is_away_defers_and_the_next_writer_tries_again() -> None:
    rig = Rig()
    create = rig.scheduler.create

    async def away(task: Any) -> bool:
        rig.scheduler.create = create  # type: ignore[method-assign]
        raise SchedulerUnavailable

    rig.scheduler.create = away  # type: ignore[method-assign]
    await rig.put(1)
    assert rig.counters["schedule_deferred"] == 1
    assert not rig.scheduler.created
    await rig.put(2)
    assert len(rig.scheduler.created) == 1
    await rig.drain()
    assert rig.numbers == [1, 2]


@rigged
async def test_a_missing_task_queue_refuses_and_leaves_nothing() -> None:
    rig = Rig()

    async def missing(task: Any) -> bool:
        raise TaskQueueNotFound("rig-1 does not exist")

    rig.scheduler.create = missing  # type: ignore[method-assign]
    with pytest.raises(TaskQueueNotFound):
        await rig.put(1)
    assert rig.left == 0


@rigged
async def test_root_delivered_again_finds_nothing_left_and_names_dedupe() -> None:
    rig = Rig(batch_size=10)
    await rig.put(*range(30))
    await rig.drain()
    created = len(rig.scheduler.created)
    await rig.deliver(rig.scheduler.created[0].body)
    await rig.deliver(rig.scheduler.created[1].body)
    await rig.drain()
    assert len(rig.scheduler.created) == created
    assert rig.numbers == list(range(30))


@rigged
async def test_root_that_dies_half_way_is_done_again() -> None:
    rig = Rig(batch_size=10)
    await rig.put(*range(50))
    create = rig.scheduler.create
    calls = 0

    async def failing(task: Any) -> bool:
        nonlocal calls
        calls += 1
        if 2 <= calls <= 4:
            raise SchedulerUnavailable
        return await create(task)

    rig.scheduler.create = failing  # type: ignore[method-assign]
    await rig.drain()
    assert rig.numbers == list(range(50))


@rigged
async def test_machinery_failures_are_raised_and_the_chunk_is_done_again() -> None:
    rig = Rig()
    await rig.put(1)
    read = rig.store.read

    async def away(batch: Batch, first: int, stop: int) -> Any:
        rig.store.read = read  # type: ignore[method-assign]
        raise StoreUnavailable

    rig.store.read = away  # type: ignore[method-assign]
    await rig.drain()
    assert rig.numbers == [1]
    assert len(rig.scheduler.dispatched) == 3, "the root twice, then its chunk by name"


@rigged
async def test_counters_gone_back_cannot_overwrite_anothers_segment() -> None:
    """A rollback that nothing revealed hands a position out twice: the second writer moves on."""
    rig = Rig()
    await rig.put(1)
    for state in rig.index._open.values():
        state.length = 0
    ids = await rig.put(2, 3)
    assert rig.counters["segment_conflicts"] == 1
    assert len(set(ids)) == 2
    await rig.drain()
    assert rig.numbers == [1, 2, 3]


@rigged
async def test_segment_settled_by_another_is_left_to_it() -> None:
    rig = Rig()
    await rig.put(1, 2)
    body = rig.scheduler.created[0].body
    await asyncio.gather(rig.deliver(body), rig.deliver(body))
    assert rig.left == 0
    assert set(rig.numbers) == {1, 2}


async def handled_by_two_tries(root_of: Callable[[RootTask], RootTask]) -> list[int]:
    """What 40 items were handled as, whose root, `root_of` the writer's, stopped half-way and was
    tried again by a deployment with another batch_size. Nothing is left."""
    rig = Rig(batch_size=10)
    await rig.put(*range(40))
    root = parse_task(rig.scheduler.created[0].body)
    assert isinstance(root, RootTask)
    body = root_of(root).body()
    create = rig.scheduler.create
    calls = 0

    async def failing(task: Any) -> bool:
        nonlocal calls
        calls += 1
        if calls > 1:
            raise SchedulerUnavailable
        return await create(task)

    rig.scheduler.create = failing  # type: ignore[method-assign]
    with pytest.raises(SchedulerUnavailable):
        await rig.deliver(body)
    rig.scheduler.create = create  # type: ignore[method-assign]
    rig.config = QueueConfig("rig", batch_size=20)
    rig.use(rig.runner.handler)
    await rig.deliver(body)
    await rig.drain()
    assert rig.left == 0
    return rig.numbers


@rigged
async def test_a_batch_keeps_its_batch_size_through_two_tries_of_its_root() -> None:
    assert await handled_by_two_tries(lambda root: root) == list(range(40))


@rigged
async def test_batch_size_changed_between_two_tries_of_a_root_hides_nothing() -> None:
    numbers = await handled_by_two_tries(lambda root: replace(root, batch_size=0))
    assert set(numbers) == set(range(40))


@rigged
async def test_a_late_duplicate_that_settles_first_leaves_nothing_behind() -> None:
    """Generation 0 comes again while generation 1 runs, wins its segment, and finds generation 1's
    name taken: generation 1 must go on, though it lost. The leases were lost before."""
    starts = 0

    async def handle(item: Item[Any]) -> None:
        nonlocal starts
        starts += 1
        if item.attempt < 3:
            await asyncio.sleep(5 if starts == 2 else 0)
            raise ValueError

    rig = Rig(handle, retry_min_backoff=1, retry_max_backoff=1)
    await rig.put(1)
    batch = rig.batches[0]
    running = asyncio.ensure_future(rig.drain())
    await asyncio.sleep(2.6)
    rig.index.forget()
    await rig.deliver(ChunkTask(batch, 0, 100).body())
    await running
    assert rig.counters["settle_lost"] == 1
    assert set(rig.numbers) == {1}
    assert rig.left == 0


@rigged
async def test_a_worker_whose_clock_is_behind_takes_cloud_tasks_word_for_the_time() -> None:
    async def handle(item: Item[Any]) -> None:
        if item.attempt == 1:
            raise ValueError

    rig = Rig(handle, retry_min_backoff=10)
    now = rig.clock.now
    await rig.put(1)
    rig.scheduler._clock = VirtualClock(rig.loop, now() + 30 - rig.loop.time())
    await rig.drain()
    assert rig.numbers == [1]
    assert rig.counters["chunks"] == 2, "no generation after generation until the clock comes up"


@rigged
async def test_a_move_whose_root_cannot_be_scheduled_is_counted() -> None:
    rig = Rig()
    await rig.put(1)
    rig.index.forget()
    create = rig.store.create

    async def flushed(batch: Batch, segments: Any) -> Any:
        rig.index.forget()
        return await create(batch, segments)

    async def missing(task: Any) -> bool:
        if len(rig.scheduler.created) > 1:
            raise TaskQueueNotFound
        return await schedule(task)

    schedule = rig.scheduler.create
    rig.store.create = flushed  # type: ignore[method-assign]
    rig.scheduler.create = missing  # type: ignore[method-assign]
    await rig.put(2)
    assert rig.counters["schedule_deferred"] == 1
    assert rig.left == 2


@rigged
async def test_close_waits_for_what_was_taken_and_refuses_the_rest() -> None:
    rig = Rig()
    puts = [asyncio.ensure_future(rig.put(n)) for n in range(5)]
    await asyncio.sleep(0)
    await rig.writer.close()
    await asyncio.gather(*puts)
    with pytest.raises(QueueClosed):
        await rig.put(9)
    await rig.drain()
    assert rig.numbers == list(range(5))


@rigged
async def test_closing_in_haste_leaves_no_caller_waiting() -> None:
    rig = Rig()

    async def hang(batch: Batch, segments: Any) -> Any:
        await asyncio.sleep(3600)

    rig.store.create = hang  # type: ignore[method-assign]
    puts = [asyncio.ensure_future(rig.put(n)) for n in range(3)]
    await asyncio.sleep(0.1)
    puts.append(asyncio.ensure_future(rig.put(4)))
    await asyncio.sleep(0.1)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(5):
            await rig.writer.close()
    results = await asyncio.gather(*puts, return_exceptions=True)
    assert all(isinstance(result, QueueClosed) for result in results)
    maybe = ["may have been accepted" in str(result) for result in results]
    assert maybe == [True, True, True, False], "the last was not being written"


@rigged
async def test_waiting_for_writers_leaves_a_root_the_time_to_do_its_work() -> None:
    """Whatever the settings: a request that is cut off begins its wait anew each time."""
    rig = Rig(writer_timeout=15, dispatch_deadline=15)
    await rig.put(1)
    await rig.index.reserve(Lane("rig", "v1"), 1)  # a writer that dies

    async def deliver(body: bytes, tried: int) -> None:
        assert tried < 3, "it never ends"
        try:
            async with asyncio.timeout(rig.config.dispatch_deadline - 1):
                await rig.deliver(body)
        except TimeoutError:
            raise StoreUnavailable from None

    await rig.scheduler.run(deliver)
    assert rig.numbers == [1]


@rigged
async def test_waiting_for_a_lease_leaves_a_chunk_the_time_to_do_its_work() -> None:
    """Whatever the settings: else nothing is begun in time, and nothing ever is."""
    rig = Rig(acquire_timeout=15, dispatch_deadline=15)
    await rig.put(1)

    async def silent(*_: Any, **__: Any) -> Any:
        await asyncio.sleep(60)
        raise IndexUnavailable

    rig.index.lease = rig.index.unlease = silent  # type: ignore[method-assign]

    async def deliver(body: bytes, tried: int) -> None:
        assert len(rig.scheduler.created) < 5, "it never ends"
        await rig.deliver(body)

    await rig.scheduler.run(deliver)
    assert rig.numbers == [1]
