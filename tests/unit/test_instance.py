"""Finding Memorystore: by URL, and by what the API's real messages say."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path
from typing import Any

import pytest
from google.auth.exceptions import RefreshError, TransportError
from google.cloud.memorystore_v1 import (
    ConnectionType,
    Instance,
    PscAutoConnection,
    PscConnection,
)
from google.cloud.memorystore_v1.types import PscConnectionStatus
from redis.asyncio import Redis, RedisCluster
from redis.exceptions import AuthenticationError
from redis.exceptions import ConnectionError as RedisConnectionError

from forkjoin_gcp import ConfigurationError, Services
from forkjoin_gcp.gcp.instance import (
    MAX_CONNECTIONS,
    Endpoint,
    IamTokens,
    client_for,
    endpoint_of_url,
    open_client,
)
from forkjoin_gcp.gcp.instance_lookup import address_of, endpoint_of

NAME = "projects/p/locations/l/instances/i"
PRIMARY = ConnectionType.CONNECTION_TYPE_PRIMARY
DISCOVERY = ConnectionType.CONNECTION_TYPE_DISCOVERY
READER = ConnectionType.CONNECTION_TYPE_READER


def an_instance(mode: Instance.Mode, *connections: Any, **fields: Any) -> Instance:
    details = [
        Instance.ConnectionDetail(psc_auto_connection=one)
        if isinstance(one, PscAutoConnection)
        else Instance.ConnectionDetail(psc_connection=one)
        for one in connections
    ]
    endpoint = Instance.InstanceEndpoint(connections=details)
    return Instance(name=NAME, mode=mode, endpoints=[endpoint], **fields)


def auto(address: str, kind: ConnectionType, port: int = 6379, **fields: Any) -> PscAutoConnection:
    return PscAutoConnection(ip_address=address, connection_type=kind, port=port, **fields)


def test_a_cluster_is_entered_by_its_discovery_endpoint() -> None:
    found = an_instance(
        Instance.Mode.CLUSTER, auto("10.0.0.1", PRIMARY), auto("10.0.0.2", DISCOVERY, 6380)
    )
    assert address_of(found) == ("10.0.0.2", 6380)
    endpoint = endpoint_of(found, [], None)
    assert endpoint.clustered
    assert isinstance(client_for(endpoint, 1), RedisCluster)


@pytest.mark.parametrize("mode", [Instance.Mode.CLUSTER_DISABLED, Instance.Mode.STANDALONE])
def test_without_cluster_mode_the_primary_is_used(mode: Instance.Mode) -> None:
    made_by_hand = PscConnection(ip_address="10.0.0.3", connection_type=PRIMARY)
    found = an_instance(mode, auto("10.0.0.2", READER), made_by_hand)
    endpoint = endpoint_of(found, [], None)
    assert endpoint == Endpoint("10.0.0.3", 6379, check_hostname=False)
    assert isinstance(client_for(endpoint, 1), Redis)


def test_a_connection_that_is_gone_is_passed_over() -> None:
    gone = auto("10.0.0.1", DISCOVERY, psc_connection_status=PscConnectionStatus.NOT_FOUND)
    there = auto("10.0.0.2", DISCOVERY, psc_connection_status=PscConnectionStatus.ACTIVE)
    assert address_of(an_instance(Instance.Mode.CLUSTER, gone, there)) == ("10.0.0.2", 6379)


def test_an_instance_without_an_endpoint_is_named() -> None:
    found = an_instance(Instance.Mode.CLUSTER, auto("10.0.0.1", PRIMARY))
    with pytest.raises(ConfigurationError, match=r"instances/i.*CONNECTION_TYPE_DISCOVERY"):
        address_of(found)


def test_encryption_and_iam_are_taken_from_the_instance() -> None:
    found = an_instance(
        Instance.Mode.CLUSTER_DISABLED,
        auto("10.0.0.1", PRIMARY),
        authorization_mode=Instance.AuthorizationMode.IAM_AUTH,
        transit_encryption_mode=Instance.TransitEncryptionMode.SERVER_AUTHENTICATION,
    )
    credentials = object()
    endpoint = endpoint_of(found, ["one", "two"], credentials)
    assert (endpoint.encrypted, endpoint.certificates) == (True, "one\ntwo")
    assert endpoint.credentials is credentials


def test_a_plain_instance_gets_neither() -> None:
    found = an_instance(Instance.Mode.CLUSTER_DISABLED, auto("10.0.0.1", PRIMARY))
    endpoint = endpoint_of(found, [], object())
    assert (endpoint.encrypted, endpoint.credentials) == (False, None)


# URLs


def test_a_url_says_all_of_it(tmp_path: Path) -> None:
    file = tmp_path / "authority.crt"
    file.touch()
    assert endpoint_of_url("redis://10.0.0.1") == Endpoint("10.0.0.1", 6379)
    assert endpoint_of_url("redis://10.0.0.1:1/2") == Endpoint("10.0.0.1", 1, database=2)
    url = f"rediss://u:p%40ss@valkey:1?cluster=true&ssl_ca_certs={file}&ssl_check_hostname=false"
    assert endpoint_of_url(url) == Endpoint(
        "valkey", 1, clustered=True, username="u", password="p@ss",
        encrypted=True, certificates_file=str(file), check_hostname=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://127.0.0.1:port", "port"),
        ("redis://127.0.0.1:70000", "out of range"),
        ("redis:///0", "names no host"),
        ("redis://h/zero", "database 'zero': must be a number"),
        ("redis://h/1?cluster=true", "database 1: a cluster has 0 only"),
        ("redis://h?cluster=yes", "cluster='yes': must be true or false"),
        ("redis://h?retry_on_timeout=true", "unknown option 'retry_on_timeout'; there are cluster"),
        ("redis://h?ssl_ca_certs=/f", "ssl_ca_certs is for rediss:// only"),
        ("rediss://h?ssl_ca_certs=/none.crt", "ssl_ca_certs='/none.crt': no such file"),
        ("http://h", "must begin with redis:// or rediss://"),
    ],
)
def test_a_url_that_is_none_is_named_and_no_password_is_shown(url: str, expected: str) -> None:
    secret = url.replace("//", "//:hunter2@", 1) if "names no host" not in expected else url
    with pytest.raises(ConfigurationError, match="FORKJOIN_MEMORYSTORE") as raised:
        endpoint_of_url(secret)
    assert expected in str(raised.value)
    assert "hunter2" not in str(raised.value)


def test_settings_show_no_password() -> None:
    with pytest.raises(ConfigurationError, match="FORKJOIN_MEMORYSTORE") as raised:
        Services(memorystore="http://:hunter2@h")
    assert "hunter2" not in str(raised.value)
    assert "hunter2" not in repr(Services(memorystore="redis://:hunter2@h"))


# The client


def test_a_client_repeats_nothing_and_has_limits() -> None:
    async def run() -> None:
        client = await open_client(Services(memorystore="rediss://:p@127.0.0.1:1"), 0.5)
        assert isinstance(client, Redis)
        assert client.connection_pool.max_connections == MAX_CONNECTIONS
        options = client.connection_pool.connection_kwargs
        assert options["socket_timeout"] == options["socket_connect_timeout"] == 0.5
        assert options["retry"].get_retries() == 0, "a script must never be repeated unseen"
        assert options["password"] == "p"
        cluster = await open_client(Services(memorystore="redis://127.0.0.1:1?cluster=true"), 0.5)
        assert isinstance(cluster, RedisCluster)
        assert cluster.retry.get_retries() == 0
        assert cluster.connection_kwargs["socket_timeout"] == 0.5

    asyncio.run(run())


def test_connections_share_a_context_that_trusts_the_instances_authority_alone() -> None:
    file = ssl.get_default_verify_paths().cafile
    text = _one_certificate(file) if file and Path(file).exists() else ""
    if not text:
        pytest.skip("no certificates on this machine to take one of")
    one = Endpoint("10.0.0.1", encrypted=True, certificates=text, check_hostname=False)
    client = client_for(one, 1)
    assert isinstance(client, Redis)
    pool = client.connection_pool
    contexts = {pool.make_connection().ssl_context.get() for _ in range(3)}  # type: ignore[attr-defined]
    assert len(contexts) == 1
    (context,) = contexts
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert not context.check_hostname
    assert len(context.get_ca_certs()) == 1


def _one_certificate(file: str) -> str:
    text = Path(file).read_text("utf-8")
    end = "-----END CERTIFICATE-----"
    return text.partition(end)[0] + end if end in text else ""


@pytest.mark.parametrize(
    ("raised", "expected"),
    [(TransportError("away"), RedisConnectionError), (RefreshError("no"), AuthenticationError)],
)
def test_a_token_that_cannot_be_had_fails_the_connection(
    raised: Exception, expected: type[Exception]
) -> None:
    class Failing:
        valid = False

        def refresh(self, _request: object) -> None:
            raise raised

    with pytest.raises(expected, match="no access token"):
        asyncio.run(IamTokens(Failing(), 5).get_credentials_async())
