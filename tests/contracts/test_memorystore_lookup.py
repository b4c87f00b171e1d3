"""Looking an instance up, by the real client of the Memorystore API."""

from __future__ import annotations

import asyncio
from typing import Any

import google.auth.exceptions
import grpc
import pytest
from google.auth.credentials import AnonymousCredentials
from google.cloud.memorystore_v1 import (
    CertificateAuthority,
    ConnectionType,
    Instance,
    MemorystoreAsyncClient,
    PscAutoConnection,
    types,
)
from google.cloud.memorystore_v1.services.memorystore.transports import (
    MemorystoreGrpcAsyncIOTransport,
)
from google.cloud.memorystore_v1.types import SharedRegionalCertificateAuthority

from forkjoin_gcp import ConfigurationError, IndexUnavailable, Services
from forkjoin_gcp.gcp import instance_lookup
from forkjoin_gcp.gcp.instance import Endpoint, find
from tests.contracts.google_api import GoogleApi

NAME = "projects/p/locations/l/instances/i"
GETS: dict[str, Any] = {
    "GetInstance": types.GetInstanceRequest,
    "GetCertificateAuthority": types.GetCertificateAuthorityRequest,
    "GetSharedRegionalCertificateAuthority": types.GetSharedRegionalCertificateAuthorityRequest,
}
Managed = CertificateAuthority.ManagedCertificateAuthority
Regional = SharedRegionalCertificateAuthority.RegionalManagedCertificateAuthority
AUTHORITY = CertificateAuthority(
    name=f"{NAME}/certificateAuthority",
    managed_server_ca=Managed(ca_certs=[Managed.CertChain(certificates=["leaf", "root"])]),
)
SHARED = SharedRegionalCertificateAuthority(
    name="projects/p/locations/l/sharedRegionalCertificateAuthority",
    managed_server_ca=Regional(ca_certs=[Regional.RegionalCertChain(certificates=["shared"])]),
)


def an_instance(**fields: Any) -> Instance:
    connection = PscAutoConnection(
        ip_address="10.0.0.3",
        port=6380,
        connection_type=ConnectionType.CONNECTION_TYPE_DISCOVERY,
    )
    detail = Instance.ConnectionDetail(psc_auto_connection=connection)
    given = {
        "name": NAME,
        "mode": Instance.Mode.CLUSTER,
        "endpoints": [Instance.InstanceEndpoint(connections=[detail])],
        "authorization_mode": Instance.AuthorizationMode.IAM_AUTH,
        "transit_encryption_mode": Instance.TransitEncryptionMode.SERVER_AUTHENTICATION,
    }
    return Instance(**given | fields)


def look_up(monkeypatch: pytest.MonkeyPatch, *has: Any, **refusals: Any) -> Endpoint:
    found = {message.name: message for message in has}
    if refusals:
        found[NAME] = (grpc.StatusCode[refusals["code"]], refusals.get("text", "no"))

    async def run() -> Endpoint:
        async with GoogleApi("google.cloud.memorystore.v1.Memorystore", GETS, found) as api:
            client = api.client(MemorystoreAsyncClient, MemorystoreGrpcAsyncIOTransport)
            monkeypatch.setattr(instance_lookup, "MemorystoreAsyncClient", client)
            monkeypatch.setattr("google.auth.default", lambda **_: (AnonymousCredentials(), "p"))
            return await find(Services(memorystore=NAME))

    return asyncio.run(run())


def test_an_instance_is_found_with_its_authority(monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint = look_up(monkeypatch, an_instance(), AUTHORITY)
    assert (endpoint.host, endpoint.port, endpoint.clustered) == ("10.0.0.3", 6380, True)
    assert endpoint.encrypted
    assert endpoint.certificates == "leaf\nroot"
    assert endpoint.credentials is not None


def test_a_shared_authority_is_asked_for_by_region(monkeypatch: pytest.MonkeyPatch) -> None:
    mode = Instance.ServerCaMode.SERVER_CA_MODE_GOOGLE_MANAGED_SHARED_CA
    endpoint = look_up(monkeypatch, an_instance(server_ca_mode=mode), SHARED)
    assert endpoint.certificates == "shared"


def test_without_encryption_no_authority_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = an_instance(
        transit_encryption_mode=Instance.TransitEncryptionMode.TRANSIT_ENCRYPTION_DISABLED,
        authorization_mode=Instance.AuthorizationMode.AUTH_DISABLED,
    )
    endpoint = look_up(monkeypatch, plain)
    assert (endpoint.encrypted, endpoint.certificates, endpoint.credentials) == (False, None, None)


@pytest.mark.parametrize(
    ("code", "kind", "expected"),
    [
        ("NOT_FOUND", ConfigurationError, "there is no such instance"),
        ("PERMISSION_DENIED", ConfigurationError, r"roles/memorystore\.viewer is needed"),
        ("UNAUTHENTICATED", ConfigurationError, r"roles/memorystore\.viewer is needed"),
        ("INVALID_ARGUMENT", ConfigurationError, "no"),
        ("INTERNAL", IndexUnavailable, "could not be looked up: no"),
        ("RESOURCE_EXHAUSTED", IndexUnavailable, "could not be looked up: no"),
    ],
)
def test_refusals_say_what_to_do(
    code: str, kind: type[Exception], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(kind, match=rf"FORKJOIN_MEMORYSTORE='{NAME}'.*{expected}"):
        look_up(monkeypatch, code=code)


def test_an_api_that_is_away_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(instance_lookup, "SECONDS", 0.3)
    with pytest.raises(IndexUnavailable, match="could not be looked up"):
        look_up(monkeypatch, code="UNAVAILABLE")


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (
            {"server_ca_mode": Instance.ServerCaMode.SERVER_CA_MODE_CUSTOMER_MANAGED_CAS_CA},
            r"ssl_ca_certs=FILE",
        ),
        ({"authorization_mode": Instance.AuthorizationMode.TOKEN_AUTH}, r"rediss://:PASSWORD@"),
        (
            {"endpoints": [], "state": Instance.State.CREATING},
            "the instance is CREATING and has no endpoint of type CONNECTION_TYPE_DISCOVERY",
        ),
        (
            {"endpoints": [], "mode": Instance.Mode.CLUSTER_DISABLED},
            "no endpoint of type CONNECTION_TYPE_PRIMARY",
        ),
    ],
)
def test_what_cannot_be_entered_says_why(
    fields: dict[str, Any], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigurationError, match=expected):
        look_up(monkeypatch, an_instance(**fields), AUTHORITY)


def test_an_authority_without_certificates_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    empty = CertificateAuthority(name=AUTHORITY.name)
    with pytest.raises(ConfigurationError, match="no certificates yet"):
        look_up(monkeypatch, an_instance(), empty)


def test_without_credentials_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(**_: Any) -> Any:
        raise google.auth.exceptions.DefaultCredentialsError("none here")

    monkeypatch.setattr("google.auth.default", missing)
    with pytest.raises(
        ConfigurationError, match=r"FORKJOIN_MEMORYSTORE.*no credentials.*none here"
    ):
        asyncio.run(find(Services(memorystore=NAME)))
