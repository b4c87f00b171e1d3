"""Every WorkIndex keeps the same contract: the one in Valkey, and the one in process."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from forkjoin_gcp import IndexUnavailable, QueueConfig, Services
from forkjoin_gcp.gcp.instance import open_client
from forkjoin_gcp.gcp.memorystore import LANE_TTL_MS, MemorystoreIndex
from forkjoin_gcp.names import Lane
from forkjoin_gcp.ports import Counters, Release, WorkIndex
from forkjoin_gcp.testing.in_process import InProcessIndex
from forkjoin_gcp.testing.index_contract import BATCH_SIZE, CHECKS, MAX_BATCH_ITEMS, Check
from forkjoin_gcp.testing.virtual_time import VirtualClock, VirtualTimeLoop, run_virtual


def a_lane() -> Lane:
    return Lane("checks", uuid.uuid4().hex[:12])


def a_config(**settings: float) -> QueueConfig:
    given = {"batch_size": BATCH_SIZE, "max_batch_items": MAX_BATCH_ITEMS, **settings}
    return QueueConfig("checks", **given)


@asynccontextmanager
async def valkey_index(
    services: Services, config: QueueConfig | None = None
) -> AsyncIterator[MemorystoreIndex]:
    config = config or a_config()
    client = await open_client(services, config.acquire_timeout)
    index = MemorystoreIndex(client, config, Counters())
    try:
        yield index
    finally:
        await index.close()


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_valkey(check: Check, services: Services) -> None:
    lane = a_lane()

    async def run() -> None:
        async with valkey_index(services) as index:
            await check(index, lane)
            client = index._client
            keys = [key async for key in client.scan_iter(match=f"*{lane.version}*", count=1000)]
            assert keys
            ttls = [await client.pttl(key) for key in keys]
            assert all(0 < ttl <= LANE_TTL_MS for ttl in ttls), "no key is left without TTL"

    asyncio.run(run())


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_in_process(check: Check) -> None:
    async def run() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualTimeLoop)
        await check(InProcessIndex(a_config(), VirtualClock(loop)), a_lane())

    run_virtual(run())


def with_index(
    services: Services, body: Callable[[WorkIndex, Lane], object], **settings: float
) -> None:
    async def run() -> None:
        async with valkey_index(services, a_config(**settings)) as index:
            await body(index, a_lane())  # type: ignore[misc]

    asyncio.run(run())


def test_a_new_lane_is_seeded_from_the_clock_and_never_goes_back(services: Services) -> None:
    async def body(index: MemorystoreIndex, lane: Lane) -> None:
        seconds, micros = await index._client.time()
        first = await index.reserve(lane, 1)
        assert abs(first.index - (seconds * 1_000_000 + micros)) < 5_000_000
        seen = [first.index]
        for _ in range(20):
            await index.seal(lane, seen[-1])
            seen.append((await index.reserve(lane, 1)).index)
        assert seen == sorted(set(seen))

    with_index(services, body)


def test_lost_state_makes_late_and_is_seeded_ahead(services: Services) -> None:
    async def body(index: MemorystoreIndex, lane: Lane) -> None:
        held = await index.reserve(lane, 5)
        await index._client.delete(lane.key)
        assert await index.release(lane, held.index, scheduled=True) is Release.LATE
        assert (await index.reserve(lane, 1)).index > held.index

    with_index(services, body)


def test_the_floor_keeps_an_index_ahead_of_a_clock_gone_back(services: Services) -> None:
    async def body(index: MemorystoreIndex, lane: Lane) -> None:
        held = await index.reserve(lane, 1)
        ahead = held.index + 10_000_000
        await index.fence(lane, ahead)
        await index._client.delete(lane.key)
        assert (await index.reserve(lane, 1)).index > ahead

    with_index(services, body)


def test_state_of_another_primary_is_not_believed(services: Services) -> None:
    async def body(index: MemorystoreIndex, lane: Lane) -> None:
        held = await index.reserve(lane, 5)
        await index._client.hset(lane.key, "epoch", "0" * 40)
        assert await index.seal(lane, held.index) is None
        assert await index.release(lane, held.index, scheduled=True) is Release.LATE
        again = await index.reserve(lane, 1)
        assert again.index > held.index
        assert again.start == 0
        assert await index.release(lane, again.index, scheduled=True) is Release.OPEN

    with_index(services, body)


def test_state_gone_back_below_the_floor_is_not_believed(services: Services) -> None:
    """What a failover does that rolls the last writes back, where INFO is refused to scripts."""

    async def body(index: MemorystoreIndex, lane: Lane) -> None:
        held = await index.reserve(lane, 5)
        before = await index._client.hgetall(lane.key)
        await index.seal(lane, held.index)
        later = await index.reserve(lane, 1)
        await index._client.delete(lane.key)
        await index._client.hset(lane.key, mapping=before)
        assert await index.release(lane, later.index, scheduled=True) is Release.LATE
        assert (await index.reserve(lane, 1)).index > later.index

    with_index(services, body)


def test_what_was_not_believed_once_is_not_believed_later(services: Services) -> None:
    """A fence of state gone back forgets it, so that no release is called on time after all."""

    async def body(index: MemorystoreIndex, lane: Lane) -> None:
        held = await index.reserve(lane, 5)
        before = await index._client.hgetall(lane.key)
        await index.seal(lane, held.index)
        later = await index.reserve(lane, 1)
        await index._client.delete(lane.key)
        await index._client.hset(lane.key, mapping=before)
        assert await index.fence(lane, later.index) is None
        assert await index.release(lane, held.index, scheduled=True) is Release.LATE
        assert (await index.reserve(lane, 1)).index > later.index

    with_index(services, body)


def test_without_a_period_the_first_task_closes_the_batch(services: Services) -> None:
    async def body(index: MemorystoreIndex, lane: Lane) -> None:
        held = await index.reserve(lane, 1)
        beside = await index.reserve(lane, 1)
        assert await index.release(lane, held.index, scheduled=True) is Release.OPEN
        assert (await index.reserve(lane, 1)).index > held.index
        assert await index.release(lane, beside.index, scheduled=True) is Release.OPEN
        assert await index.seal(lane, held.index) == 0

    with_index(services, body, batch_period=0)


def test_batch_size_is_kept_for_a_batch_when_the_setting_changes(services: Services) -> None:
    async def body(index: MemorystoreIndex, lane: Lane) -> None:
        await index.reserve(lane, 1)
        async with valkey_index(services, a_config(batch_size=3)) as other:
            held = await other.reserve(lane, 1)
            assert held.batch_size == BATCH_SIZE
            extent = await other.fence(lane, held.index)
            assert extent is not None
            assert extent.batch_size == BATCH_SIZE

    with_index(services, body)


def test_scripts_are_loaded_again_after_a_restart(services: Services) -> None:
    async def body(index: MemorystoreIndex, lane: Lane) -> None:
        await index.reserve(lane, 1)
        await index._client.script_flush()
        assert (await index.reserve(lane, 1)).start == 1

    with_index(services, body)


def test_unreachable_memorystore_names_the_setting() -> None:
    async def run() -> None:
        services = Services(memorystore="redis://127.0.0.1:9")
        async with valkey_index(services) as index:
            with pytest.raises(IndexUnavailable, match=r"FORKJOIN_MEMORYSTORE.*forkjoin local up"):
                await index.reserve(a_lane(), 1)

    asyncio.run(run())


def test_a_lost_answer_is_not_repeated(services: Services) -> None:
    """redis-py's default would send the script again, and count the writer twice."""

    async def body(index: MemorystoreIndex, lane: Lane) -> None:
        await index.reserve(lane, 1)
        async with valkey_index(services, a_config(acquire_timeout=0.05)) as hasty:
            await index._client.execute_command("CLIENT", "PAUSE", "200", "WRITE")
            with pytest.raises(IndexUnavailable):
                await hasty.reserve(lane, 1)
        await index._client.execute_command("CLIENT", "UNPAUSE")
        await asyncio.sleep(0)
        counted = int(
            await index._client.hget(lane.key, f"w:{(await index.reserve(lane, 1)).index}")
        )
        assert counted in (2, 3), "two by us, and one more at most by the one without an answer"

    with_index(services, body)
