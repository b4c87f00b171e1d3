"""Memorystore as it is deployed: behind TLS, with a password or IAM tokens, alone or a cluster."""

from __future__ import annotations

import asyncio
import gc
import os
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from google.auth.credentials import Credentials
from google.cloud.memorystore_v1 import ConnectionType, Instance, PscAutoConnection
from redis.crc import key_slot
from redis.exceptions import TimeoutError as RedisTimeoutError

from forkjoin_gcp import IndexUnavailable, QueueConfig, Services, StoreUnavailable
from forkjoin_gcp.gcp.instance import IamTokens, client_for, open_client
from forkjoin_gcp.gcp.instance_lookup import endpoint_of
from forkjoin_gcp.gcp.memorystore import MemorystoreIndex
from forkjoin_gcp.gcp.memorystore_store import MemorystoreStore
from forkjoin_gcp.names import Batch, Lane
from forkjoin_gcp.ports import Counters, Release
from forkjoin_gcp.testing import index_contract, store_contract
from tests.contracts.encrypted_valkey import (
    HOST,
    PASSWORD,
    EncryptedValkey,
    Kind,
    encrypted_valkey,
    server_of,
)

# redis-py does not wait for TLS to end on a connection whose login was refused.
pytestmark = pytest.mark.filterwarnings(
    r"ignore:Exception ignored in. <(function _SelectorTransport|socket\.socket)"
    ":pytest.PytestUnraisableExceptionWarning"
)

CONFIG = QueueConfig(
    "checks",
    batch_size=index_contract.BATCH_SIZE,
    max_batch_items=index_contract.MAX_BATCH_ITEMS,
    acquire_timeout=10,  # sixty handshakes at once take their time on a busy machine
)


def a_lane() -> Lane:
    return Lane("checks", uuid.uuid4().hex[:12])


@pytest.fixture(
    scope="module",
    params=[("front", 0), ("front", 3), ("built in", 0), ("built in", 3)],
    ids=["alone", "cluster", "alone, TLS built in", "cluster, TLS built in"],
)
def valkey(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[EncryptedValkey]:
    kind, nodes = request.param
    if server_of(kind) is None:
        message = "no valkey-server or redis-server with TLS on the PATH (Debian: redis-server)"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    with encrypted_valkey(tmp_path_factory.mktemp("valkey"), kind, nodes=nodes) as made:
        yield made


@asynccontextmanager
async def an_index(where: str, config: QueueConfig = CONFIG) -> AsyncIterator[MemorystoreIndex]:
    index = MemorystoreIndex(
        await open_client(Services(memorystore=where), config.acquire_timeout), config, Counters()
    )
    try:
        yield index
    finally:
        await index.close()


@pytest.mark.parametrize("check", index_contract.CHECKS, ids=lambda check: check.__name__)
def test_the_index_keeps_its_contract(check: index_contract.Check, valkey: EncryptedValkey) -> None:
    async def run() -> None:
        async with an_index(valkey.url()) as index:
            await check(index, a_lane())

    asyncio.run(run())


def test_the_store_keeps_its_contract(valkey: EncryptedValkey) -> None:
    async def run() -> None:
        client = await open_client(Services(memorystore=valkey.url()), 5)
        store = MemorystoreStore(client, 3_600, Counters())
        for check in store_contract.CHECKS:
            await check(store, a_lane())
        await store.close()

    asyncio.run(run())


class Token(Credentials):  # type: ignore[misc]
    """Google credentials whose access token is the server's password."""

    def __init__(self, text: str = PASSWORD, refreshes: list[float] | None = None) -> None:
        super().__init__()
        self._text = text
        self.refreshes = [] if refreshes is None else refreshes

    def refresh(self, _request: Any) -> None:
        self.refreshes.append(time.monotonic())
        self.token = self._text


def an_instance(valkey: EncryptedValkey) -> Instance:
    """What the Memorystore API would say of it."""
    mode = Instance.Mode.CLUSTER if valkey.clustered else Instance.Mode.CLUSTER_DISABLED
    kind = (
        ConnectionType.CONNECTION_TYPE_DISCOVERY
        if valkey.clustered
        else ConnectionType.CONNECTION_TYPE_PRIMARY
    )
    connection = PscAutoConnection(ip_address=HOST, port=valkey.ports[0], connection_type=kind)
    detail = Instance.ConnectionDetail(psc_auto_connection=connection)
    return Instance(
        name="projects/p/locations/l/instances/i",
        mode=mode,
        endpoints=[Instance.InstanceEndpoint(connections=[detail])],
        authorization_mode=Instance.AuthorizationMode.IAM_AUTH,
        transit_encryption_mode=Instance.TransitEncryptionMode.SERVER_AUTHENTICATION,
    )


def test_an_instance_is_entered_with_an_access_token(valkey: EncryptedValkey) -> None:
    credentials = Token()
    endpoint = endpoint_of(an_instance(valkey), [valkey.authority.pem], credentials)

    async def run() -> None:
        index = MemorystoreIndex(client_for(endpoint, 1), CONFIG, Counters())
        lanes = [a_lane() for _ in range(20)]
        held = await asyncio.gather(*(index.reserve(lane, 3) for lane in lanes))
        assert [one.start for one in held] == [0] * 20
        await index.close()

    asyncio.run(run())
    assert len(credentials.refreshes) == 1, "one token for all connections"


def test_a_token_that_is_refused_says_so(valkey: EncryptedValkey) -> None:
    endpoint = endpoint_of(an_instance(valkey), [valkey.authority.pem], Token("another"))

    async def run() -> None:
        index = MemorystoreIndex(client_for(endpoint, 1), CONFIG, Counters())
        with pytest.raises(IndexUnavailable, match="invalid username-password pair"):
            await index.reserve(a_lane(), 1)
        await index.close()

    asyncio.run(run())


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"ssl_ca_certs": "/etc/ssl/certs/ca-certificates.crt"}, "certificate verify failed"),
        ({"password": "wrong"}, "invalid username-password pair"),
        ({"scheme": "redis"}, "Connection closed|reset|lost|Redis Cluster cannot be connected"),
    ],
    ids=["another authority", "another password", "no TLS"],
)
def test_what_is_wrong_with_the_url_is_said(
    options: dict[str, str], expected: str, valkey: EncryptedValkey, tmp_path: Path
) -> None:
    where = valkey.url()
    if "ssl_ca_certs" in options:
        other = tmp_path / "other.crt"
        other.write_text(type(valkey.authority)().pem)
        where = valkey.url(ssl_ca_certs=str(other))
    elif "password" in options:
        where = where.replace(where.partition("//:")[2].partition("@")[0], "wrong")
    else:
        tail = "?cluster=true" if valkey.clustered else ""
        where = f"redis://{HOST}:{valkey.ports[0]}{tail}"

    async def run() -> None:
        async with an_index(where) as index:
            with pytest.raises(IndexUnavailable, match=rf"(?s)({expected}).*FORKJOIN_MEMORYSTORE"):
                await index.reserve(a_lane(), 1)
        store = MemorystoreStore(
            await open_client(Services(memorystore=where), 1), 3_600, Counters()
        )
        with pytest.raises(StoreUnavailable, match=rf"(?s)({expected}).*FORKJOIN_MEMORYSTORE"):
            await store.listing(Batch(a_lane(), 1))
        await store.close()

    asyncio.run(run())
    gc.collect()


def test_a_certificate_for_another_host_is_taken_only_where_asked_for(tmp_path: Path) -> None:
    with encrypted_valkey(tmp_path, "front", named="valkey.example") as valkey:

        async def run() -> None:
            async with an_index(valkey.url()) as index:
                with pytest.raises(IndexUnavailable, match="certificate verify failed"):
                    await index.reserve(a_lane(), 1)
            async with an_index(valkey.url(ssl_check_hostname="false")) as index:
                assert (await index.reserve(a_lane(), 1)).start == 0

        asyncio.run(run())


@pytest.fixture(params=["front", "built in"])
def cluster(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[EncryptedValkey]:
    """A cluster of the test's own, to be spoilt."""
    kind: Kind = request.param
    if server_of(kind) is None:
        pytest.skip("no server with TLS built in")
    with encrypted_valkey(tmp_path, kind, nodes=3) as made:
        yield made


def test_lanes_spread_over_the_shards_and_survive_the_loss_of_one(
    cluster: EncryptedValkey,
) -> None:
    async def run() -> None:
        async with an_index(cluster.url()) as index:
            lanes = [a_lane() for _ in range(60)]
            held = {lane: await index.reserve(lane, 1) for lane in lanes}
            homes = {
                lane: number
                for number in range(3)
                for lane in lanes
                if cluster.node(number).execute_command("CLUSTER", "COUNTKEYSINSLOT", _slot(lane))
            }
            assert set(homes.values()) == {0, 1, 2}

            # The scripts are gone on one node alone: the others are not asked about it.
            cluster.node(2).script_flush()
            cluster.nodes[1].stop()
            for lane in lanes:
                if homes[lane] == 1:
                    continue
                for _ in range(3):  # the first call may still find the cluster as it was
                    try:
                        again = await index.reserve(lane, 1)
                        break
                    except IndexUnavailable:
                        continue
                assert again.index == held[lane].index
                assert await index.release(lane, again.index, scheduled=True) is Release.OPEN
            lost = next(lane for lane in lanes if homes[lane] == 1)
            began = time.monotonic()
            with pytest.raises(IndexUnavailable):
                await index.reserve(lost, 1)
            assert time.monotonic() - began < 5

    asyncio.run(run())


def _slot(lane: Lane) -> int:
    return key_slot(lane.key.encode())


def test_a_token_that_does_not_come_is_a_failed_connection_and_asked_for_once() -> None:
    release, asked = asyncio.Event(), []

    class Slow(Token):
        def refresh(self, request: Any) -> None:
            asked.append(request)
            asyncio.run_coroutine_threadsafe(release.wait(), loop).result(10)
            super().refresh(request)

    async def run() -> None:
        nonlocal loop
        loop = asyncio.get_running_loop()
        provider = IamTokens(Slow(), 0.05)
        for _ in range(3):
            with pytest.raises(RedisTimeoutError, match=r"no access token within 0\.05 s"):
                await provider.get_credentials_async()
        release.set()
        assert provider._refreshing is not None
        await provider._refreshing
        assert await provider.get_credentials_async() == ("default", PASSWORD)
        assert len(asked) == 1

    loop: asyncio.AbstractEventLoop
    asyncio.run(run())
