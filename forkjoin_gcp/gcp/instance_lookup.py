"""Where an instance of Memorystore for Valkey is, as google-cloud-memorystore says: its address,
whether it wants IAM tokens and TLS, and whose certificates to trust."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import google.auth
from google.api_core.exceptions import (
    Forbidden,
    GoogleAPICallError,
    GoogleAPIError,
    InvalidArgument,
    NotFound,
    Unauthenticated,
)
from google.auth.exceptions import GoogleAuthError
from google.cloud.memorystore_v1 import ConnectionType, Instance, MemorystoreAsyncClient
from google.cloud.memorystore_v1.types import PscConnectionStatus

from forkjoin_gcp.config import VARIABLES
from forkjoin_gcp.errors import ConfigurationError, IndexUnavailable
from forkjoin_gcp.gcp.instance import DEFAULT_PORT, Endpoint

SECONDS = 15.0
"""Limit of a look-up; the client's own retries would take a minute."""

SCOPES = ("https://www.googleapis.com/auth/cloud-platform",)

ENCRYPTED = Instance.TransitEncryptionMode.SERVER_AUTHENTICATION
_UNCLUSTERED = (Instance.Mode.CLUSTER_DISABLED, Instance.Mode.STANDALONE)
_Authority = Instance.ServerCaMode
_Authorization = Instance.AuthorizationMode


async def look_up(name: str) -> Endpoint:
    """The endpoint of ``projects/P/locations/L/instances/I``.

    Raises ConfigurationError where it is not there, not ready or not to be entered from here, and
    IndexUnavailable where the API did not answer.
    """
    try:
        # Finding credentials may ask the metadata server, and blocks.
        credentials, _ = await asyncio.to_thread(google.auth.default, scopes=SCOPES)
    except GoogleAuthError as error:
        raise ConfigurationError(
            f"{_given(name)}: no credentials to look it up: {error}"
        ) from error
    client = MemorystoreAsyncClient(credentials=credentials)
    transport: Any = client.transport
    try:
        async with asyncio.timeout(SECONDS):
            instance = await get_instance(client, name)
            certificates = await get_certificates(client, instance)
    except TimeoutError as error:
        raise IndexUnavailable(
            f"{_given(name)} could not be looked up: no answer in {SECONDS:g} s"
        ) from error
    finally:
        await transport.close()
    return endpoint_of(instance, certificates, credentials)


async def get_instance(client: MemorystoreAsyncClient, name: str) -> Instance:
    """The instance. Raises as ``look_up``."""
    with _Refusals(name):
        instance: Instance = await client.get_instance(name=name)
        return instance


async def get_certificates(client: MemorystoreAsyncClient, instance: Instance) -> list[str]:
    """The certificates (PEM) of the authorities that sign the instance's. Raises as ``look_up``."""
    if instance.transit_encryption_mode != ENCRYPTED:
        return []
    authority: Any
    if instance.server_ca_mode == _Authority.SERVER_CA_MODE_CUSTOMER_MANAGED_CAS_CA:
        raise ConfigurationError(
            f"{_given(instance.name)}: its certificates are signed by an authority of your own, "
            "which the API does not give out: use rediss://HOST:PORT?ssl_ca_certs=FILE"
        )
    with _Refusals(instance.name):
        if instance.server_ca_mode == _Authority.SERVER_CA_MODE_GOOGLE_MANAGED_SHARED_CA:
            location = instance.name.partition("/instances/")[0]
            authority = await client.get_shared_regional_certificate_authority(
                name=f"{location}/sharedRegionalCertificateAuthority"
            )
        else:
            authority = await client.get_certificate_authority(
                name=f"{instance.name}/certificateAuthority"
            )
    chains = authority.managed_server_ca.ca_certs
    return [text for chain in chains for text in chain.certificates]


def endpoint_of(instance: Instance, certificates: Sequence[str], credentials: Any) -> Endpoint:
    """Where to connect first, and how, by what the API says of an instance.

    That is the discovery endpoint of a cluster, else the primary. Raises ConfigurationError.
    """
    if instance.authorization_mode == _Authorization.TOKEN_AUTH:
        raise ConfigurationError(
            f"{_given(instance.name)}: it asks for a password, which the API does not give out: "
            "use a URL, rediss://:PASSWORD@HOST:PORT?ssl_ca_certs=FILE"
        )
    encrypted = instance.transit_encryption_mode == ENCRYPTED
    if encrypted and not certificates:
        raise ConfigurationError(f"{_given(instance.name)}: its authority has no certificates yet")
    host, port = address_of(instance)
    return Endpoint(
        host=host,
        port=port,
        clustered=instance.mode not in _UNCLUSTERED,
        credentials=credentials if instance.authorization_mode == _Authorization.IAM_AUTH else None,
        encrypted=encrypted,
        certificates="\n".join(certificates) or None,
        # What is entered is an address of the network's own, which no certificate names.
        check_hostname=False,
    )


def address_of(instance: Instance) -> tuple[str, int]:
    """The host and port that ``endpoint_of`` gives."""
    wanted = (
        ConnectionType.CONNECTION_TYPE_PRIMARY
        if instance.mode in _UNCLUSTERED
        else ConnectionType.CONNECTION_TYPE_DISCOVERY
    )
    for endpoint in instance.endpoints:
        for connection in endpoint.connections:
            for made in (connection.psc_auto_connection, connection.psc_connection):
                gone = made.psc_connection_status == PscConnectionStatus.NOT_FOUND
                if made.ip_address and made.connection_type == wanted and not gone:
                    return made.ip_address, made.port or DEFAULT_PORT
    state, kind = Instance.State(instance.state).name, ConnectionType(wanted).name
    raise ConfigurationError(
        f"{_given(instance.name)}: the instance is {state} and has no endpoint of type {kind}; is "
        "it ready, and does a service connection policy cover this network?"
    )


class _Refusals:
    """Turns what the API raises into our errors."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, _traceback: Any) -> None:
        given = _given(self._name)
        if isinstance(error, NotFound):
            raise ConfigurationError(f"{given}: there is no such instance") from error
        if isinstance(error, Forbidden | Unauthenticated):
            raise ConfigurationError(
                f"{given}: looking it up was refused; the role roles/memorystore.viewer is needed "
                f"({error.message})"
            ) from error
        if isinstance(error, InvalidArgument):
            raise ConfigurationError(f"{given}: {error.message}") from error
        if isinstance(error, GoogleAPIError | GoogleAuthError):
            text = error.message if isinstance(error, GoogleAPICallError) else str(error)
            raise IndexUnavailable(f"{given} could not be looked up: {text}") from error


def _given(name: str) -> str:
    return f"{VARIABLES['memorystore']}={name!r}"
