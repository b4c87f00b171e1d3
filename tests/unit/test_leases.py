"""A chunk's lease under virtual time: who may run a chunk, and what is counted against it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from forkjoin_gcp.errors import ChunkBusy, IndexUnavailable, StoreUnavailable
from forkjoin_gcp.items import Item
from forkjoin_gcp.joining.leases import CALLS_AT_ONCE, LEASE_SECONDS
from forkjoin_gcp.names import Batch, Chunk
from forkjoin_gcp.ports import Lease
from forkjoin_gcp.tasks import ChunkTask, RootTask, parse_task
from tests.unit.processes import Process
from tests.unit.rig import Rig, rigged


def taking(seconds: float) -> Any:
    """A handler that takes its time."""

    async def handle(item: Item[Any]) -> None:
        await asyncio.sleep(seconds)

    return handle


async def sealed(rig: Rig, count: int) -> Batch:
    """A batch whose root is through, all of its chunks still to be run."""
    await rig.put(*range(count))
    (batch,) = rig.batches
    await rig.index.fence(batch.lane, batch.index)
    return batch


@rigged
async def test_a_chunk_delivered_twice_is_run_once() -> None:
    rig = Rig(taking(25))
    chunk = ChunkTask(await sealed(rig, 3), 0, 100).body()
    running = asyncio.ensure_future(rig.deliver(chunk))
    for _ in range(5):
        await asyncio.sleep(4)
        with pytest.raises(ChunkBusy) as busy:
            await rig.deliver(chunk)
        assert 0 < busy.value.after <= LEASE_SECONDS
    await running
    await rig.deliver(chunk)
    assert rig.numbers == [0, 1, 2]
    assert {item.attempt for item in rig.handled} == {1}
    assert (rig.counters["chunks"], rig.counters["chunks_busy"]) == (2, 5)


@rigged
async def test_a_chunk_put_off_is_delivered_again() -> None:
    rig = Rig(taking(25))
    await rig.put(1)
    root = parse_task(rig.scheduler.created[0].body)
    assert isinstance(root, RootTask)
    await rig.scheduler.create(
        rig.scheduler.created[0].__class__("rig-1", "twin", root.body(), None, 600)
    )
    await rig.drain()
    assert rig.numbers == [1]
    assert rig.counters["chunks_busy"] >= 1
    assert rig.left == 0


@rigged
async def test_the_lease_of_a_process_that_died_runs_out() -> None:
    async def handle(item: Item[Any]) -> None:
        if not process.deaths:
            process.die()
            await asyncio.sleep(3600)

    rig = Rig(handle)
    process = Process(rig)
    await rig.put(1)
    await rig.scheduler.run(process.deliver)
    assert process.deaths == 1
    assert rig.numbers == [1]
    assert rig.handled[0].attempt == 1, "nothing was settled, so no try is counted"
    assert LEASE_SECONDS <= rig.loop.time() < 2 * LEASE_SECONDS


@rigged
async def test_a_lease_that_is_lost_is_counted_and_its_chunk_goes_on() -> None:
    rig = Rig(taking(30))
    chunk = ChunkTask(await sealed(rig, 3), 0, 100).body()
    running = asyncio.ensure_future(rig.deliver(chunk))
    await asyncio.sleep(1)
    rig.index.forget()
    beside = asyncio.ensure_future(rig.deliver(chunk))
    await asyncio.gather(running, beside)
    assert rig.counters["lease_lost"] == 1, "the second keeps what it took"
    assert rig.counters["settle_lost"] == 1
    assert set(rig.numbers) == {0, 1, 2}
    assert rig.left == 0


@rigged
async def test_without_memorystore_a_chunk_runs_all_the_same() -> None:
    async def away(*_: Any, **__: Any) -> Any:
        raise IndexUnavailable

    async def silent(*_: Any, **__: Any) -> Any:
        await asyncio.sleep(3600)

    for failing, latest in ((away, 5.0), (silent, 5.0 + 3 * 1.0)):
        rig = Rig(taking(5), acquire_timeout=1)
        batch = await sealed(rig, 3)
        began = rig.loop.time()
        rig.index.lease = failing  # type: ignore[method-assign]
        rig.index.renew = failing  # type: ignore[method-assign]
        rig.index.unlease = failing  # type: ignore[method-assign]
        await rig.deliver(ChunkTask(batch, 0, 100).body())
        assert rig.numbers == [0, 1, 2]
        assert rig.counters["lease_skipped"] == 1
        assert rig.counters["lease_lost"] == 0
        assert rig.loop.time() - began <= latest


@rigged
async def test_many_chunks_at_once_share_connections_and_wait_no_longer_for_it() -> None:
    rig = Rig(batch_size=1, acquire_timeout=1)
    batch = await sealed(rig, 100)
    present = most = 0

    async def silent(*_: Any, **__: Any) -> Any:
        nonlocal present, most
        present += 1
        most = max(most, present)
        try:
            await asyncio.sleep(3600)
        finally:
            present -= 1

    rig.index.lease = silent  # type: ignore[method-assign]
    rig.index.unlease = silent  # type: ignore[method-assign]
    began = rig.loop.time()
    tasks = [ChunkTask(batch, n, n + 1).body() for n in range(100)]
    await asyncio.gather(*map(rig.deliver, tasks))
    assert rig.numbers == list(range(100))
    assert rig.loop.time() - began <= 2.0
    assert most == CALLS_AT_ONCE


@rigged
async def test_a_lease_whose_answer_was_lost_is_kept_and_given_back() -> None:
    rig = Rig(taking(25))
    batch = await sealed(rig, 1)
    lease = rig.index.lease

    async def lost(chunk: Chunk, token: str, seconds: float) -> Any:
        rig.index.lease = lease  # type: ignore[method-assign]
        await lease(chunk, token, seconds)
        raise IndexUnavailable

    rig.index.lease = lost  # type: ignore[method-assign]
    task = ChunkTask(batch, 0, 100)
    running = asyncio.ensure_future(rig.deliver(task.body()))
    await asyncio.sleep(20)
    with pytest.raises(ChunkBusy):
        await rig.deliver(task.body())
    await running
    assert await rig.index.lease(task.chunk, "next", 1) == Lease()


@rigged
async def test_a_next_generation_does_not_find_its_chunk_busy() -> None:
    async def handle(item: Item[Any]) -> None:
        if item.attempt < 3:
            raise ValueError

    rig = Rig(handle, retry_min_backoff=0)
    unlease, losing = rig.index.unlease, [True]

    async def lost(chunk: Chunk, token: str, **left: Any) -> None:
        if losing:
            losing.pop()
            raise IndexUnavailable
        await unlease(chunk, token, **left)

    rig.index.unlease = lost  # type: ignore[method-assign]
    await rig.put(1)
    await rig.drain()
    assert rig.numbers == [1]
    assert rig.counters["chunks_busy"] == 0


@rigged
async def test_a_run_that_fails_for_the_services_sake_is_not_held_against_the_chunk() -> None:
    rig = Rig(crash_limit=1)
    task = ChunkTask(await sealed(rig, 3), 0, 100)
    read = rig.store.read

    async def away(*_: Any) -> Any:
        raise StoreUnavailable

    rig.store.read = away  # type: ignore[method-assign]
    for _ in range(5):
        with pytest.raises(StoreUnavailable):
            await rig.deliver(task.body())
    rig.store.read = read  # type: ignore[method-assign]
    await rig.deliver(task.body())
    assert rig.numbers == [0, 1, 2]
    assert rig.counters["chunks_split"] == 0


@rigged
async def test_a_root_whose_first_chunk_is_busy_schedules_the_others_first() -> None:
    rig = Rig(batch_size=10)
    await rig.put(*range(30))
    (batch,) = rig.batches
    await rig.index.lease(Chunk(batch, 0, 10), "somebody", 60)
    with pytest.raises(ChunkBusy):
        await rig.deliver(RootTask(batch).body())
    tasks = [parse_task(one.body) for one in rig.scheduler.created]
    assert [one.first for one in tasks if isinstance(one, ChunkTask)] == [10, 20]
    await rig.drain()
    assert rig.numbers == list(range(30))
