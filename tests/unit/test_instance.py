"""Finding Memorystore, on the Memorystore API's real message types."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from google.cloud.memorystore_v1 import (
    ConnectionType,
    Instance,
    PscAutoConnection,
    PscConnection,
)
from redis.asyncio import Redis, RedisCluster

from forkjoin_gcp import ConfigurationError, Services
from forkjoin_gcp.gcp import instance as finding
from forkjoin_gcp.gcp.instance import address_of, client_for, open_client

NAME = "projects/p/locations/l/instances/i"
PRIMARY = ConnectionType.CONNECTION_TYPE_PRIMARY
DISCOVERY = ConnectionType.CONNECTION_TYPE_DISCOVERY


def an_instance(mode: Instance.Mode, *connections: Any, **fields: Any) -> Instance:
    details = [
        Instance.ConnectionDetail(psc_auto_connection=one)
        if isinstance(one, PscAutoConnection)
        else Instance.ConnectionDetail(psc_connection=one)
        for one in connections
    ]
    endpoint = Instance.InstanceEndpoint(connections=details)
    return Instance(name=NAME, mode=mode, endpoints=[endpoint], **fields)


def auto(address: str, kind: ConnectionType, port: int = 6379) -> PscAutoConnection:
    return PscAutoConnection(ip_address=address, connection_type=kind, port=port)


def test_a_cluster_is_entered_by_its_discovery_endpoint() -> None:
    found = an_instance(
        Instance.Mode.CLUSTER, auto("10.0.0.1", PRIMARY), auto("10.0.0.2", DISCOVERY, 6380)
    )
    assert address_of(found) == ("10.0.0.2", 6380)
    assert isinstance(client_for(found, []), RedisCluster)


def test_without_cluster_mode_the_primary_is_used() -> None:
    made_by_hand = PscConnection(ip_address="10.0.0.3", connection_type=PRIMARY)
    found = an_instance(Instance.Mode.CLUSTER_DISABLED, made_by_hand)
    assert address_of(found) == ("10.0.0.3", 6379)
    assert isinstance(client_for(found, []), Redis)


def test_an_instance_without_an_endpoint_is_named() -> None:
    found = an_instance(Instance.Mode.CLUSTER, auto("10.0.0.1", PRIMARY))
    with pytest.raises(ConfigurationError, match=r"instances/i.*CONNECTION_TYPE_DISCOVERY"):
        address_of(found)


def test_encryption_and_iam_are_taken_from_the_instance(monkeypatch: pytest.MonkeyPatch) -> None:
    class Token:
        valid = False
        token = ""

        def refresh(self, request: object) -> None:
            self.valid, self.token = True, "ya29"

    monkeypatch.setattr("google.auth.default", lambda **_: (Token(), "p"))
    found = an_instance(
        Instance.Mode.CLUSTER_DISABLED,
        auto("10.0.0.1", PRIMARY),
        authorization_mode=Instance.AuthorizationMode.IAM_AUTH,
        transit_encryption_mode=Instance.TransitEncryptionMode.SERVER_AUTHENTICATION,
    )
    client = client_for(found, ["one", "two"])
    assert isinstance(client, Redis)
    options = client.connection_pool.connection_kwargs
    assert options["ssl_ca_data"] == "one\ntwo"
    provider = options["credential_provider"]
    assert asyncio.run(provider.get_credentials_async()) == ("default", "ya29")


def test_a_plain_instance_gets_neither() -> None:
    found = an_instance(Instance.Mode.CLUSTER_DISABLED, auto("10.0.0.1", PRIMARY))
    client = client_for(found, [])
    assert isinstance(client, Redis)
    assert client.connection_pool.connection_kwargs["credential_provider"] is None
    assert "ssl_ca_data" not in client.connection_pool.connection_kwargs


def test_a_name_is_looked_up_and_a_url_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    async def look_up(name: str) -> tuple[Instance, list[str]]:
        asked.append(name)
        return an_instance(Instance.Mode.CLUSTER_DISABLED, auto("10.0.0.1", PRIMARY)), []

    monkeypatch.setattr(finding, "_look_up", look_up)

    async def run() -> None:
        for where in (NAME, "redis://127.0.0.1:1", "rediss://127.0.0.1:1"):
            client = await open_client(Services(memorystore=where), 0.5)
            assert isinstance(client, Redis)
            options = client.connection_pool.connection_kwargs
            assert options["socket_timeout"] == options["socket_connect_timeout"] == 0.5
            assert options["retry"].get_retries() == 0, "a script must never be repeated unseen"

    asyncio.run(run())
    assert asked == [NAME]


def test_a_url_that_is_none_is_named() -> None:
    with pytest.raises(ConfigurationError, match="FORKJOIN_MEMORYSTORE"):
        asyncio.run(open_client(Services(memorystore="redis://127.0.0.1:port"), 1))
