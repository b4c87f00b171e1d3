"""A client for Memorystore for Valkey, from a URL or from an instance's name.

With a name, google-cloud-memorystore says where the instance is, whether it wants IAM tokens and
TLS, and whose certificates to trust.
"""

from __future__ import annotations

import asyncio
from typing import Any

import google.auth
import google.auth.transport.requests
from google.api_core.exceptions import GoogleAPICallError
from google.cloud.memorystore_v1 import (
    ConnectionType,
    Instance,
    MemorystoreAsyncClient,
)
from redis.asyncio import Redis, RedisCluster
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.credentials import CredentialProvider

from forkjoin_gcp.config import VARIABLES, Services
from forkjoin_gcp.errors import ConfigurationError, IndexUnavailable

Client = Redis | RedisCluster

ENCRYPTED = Instance.TransitEncryptionMode.SERVER_AUTHENTICATION
SCOPE = "https://www.googleapis.com/auth/cloud-platform"


class IamTokens(CredentialProvider):
    """Gives each new connection an access token as its password; Valkey asks for it at AUTH only.

    Needs the role ``roles/memorystore.dbConnectionUser``.
    """

    def __init__(self) -> None:
        self._credentials: Any = google.auth.default(scopes=[SCOPE])[0]

    def get_credentials(self) -> tuple[str, str]:
        if not self._credentials.valid:
            self._credentials.refresh(google.auth.transport.requests.Request())
        return "default", str(self._credentials.token)

    async def get_credentials_async(self) -> tuple[str, str]:
        return await asyncio.to_thread(self.get_credentials)


async def open_client(services: Services, seconds: float) -> Client:
    """A client that gives up a call after ``seconds`` and never repeats one by itself.

    redis-py's own retries would run a script again whose answer was lost, and count a writer twice.
    Raises ConfigurationError, and IndexUnavailable where the instance cannot be looked up.
    """
    where = services.need("memorystore")
    options: dict[str, Any] = {
        "socket_timeout": seconds,
        "socket_connect_timeout": seconds,
        "retry": Retry(NoBackoff(), 0),
    }
    if not where.startswith("projects/"):
        try:
            return Redis.from_url(where, **options)
        except ValueError as error:
            raise ConfigurationError(f"{VARIABLES['memorystore']}={where!r}: {error}") from None
    try:
        instance, certificates = await _look_up(where)
    except GoogleAPICallError as error:
        raise IndexUnavailable(
            f"{VARIABLES['memorystore']}={where!r} could not be looked up: {error.message}"
        ) from error
    return client_for(instance, certificates, **options)


def client_for(instance: Instance, certificates: list[str], **options: Any) -> Client:
    """A client for an instance as the Memorystore API describes it."""
    clustered = instance.mode == Instance.Mode.CLUSTER
    host, port = address_of(instance)
    if instance.authorization_mode == Instance.AuthorizationMode.IAM_AUTH:
        options["credential_provider"] = IamTokens()
    if instance.transit_encryption_mode == ENCRYPTED:
        # The authority is the instance's own, and its certificates name no address we could check.
        options |= {
            "ssl": True,
            "ssl_ca_data": "\n".join(certificates),
            "ssl_check_hostname": False,
        }
    if clustered:
        return RedisCluster(host=host, port=port, **options)
    return Redis(host=host, port=port, **options)


def address_of(instance: Instance) -> tuple[str, int]:
    """Where to connect first: the discovery endpoint of a cluster, else the primary.

    Raises ConfigurationError where the instance has no such endpoint yet.
    """
    wanted = (
        ConnectionType.CONNECTION_TYPE_DISCOVERY
        if instance.mode == Instance.Mode.CLUSTER
        else ConnectionType.CONNECTION_TYPE_PRIMARY
    )
    for endpoint in instance.endpoints:
        for connection in endpoint.connections:
            for made in (connection.psc_auto_connection, connection.psc_connection):
                if made.ip_address and made.connection_type == wanted:
                    return made.ip_address, made.port or 6379
    raise ConfigurationError(
        f"{VARIABLES['memorystore']}={instance.name!r}: the instance has no endpoint of type "
        f"{ConnectionType(wanted).name}; is it ready, and does a service connection policy cover "
        "this network?"
    )


async def _look_up(name: str) -> tuple[Instance, list[str]]:
    client = MemorystoreAsyncClient()
    try:
        instance = await client.get_instance(name=name)
        if instance.transit_encryption_mode != ENCRYPTED:
            return instance, []
        authority = await client.get_certificate_authority(name=f"{name}/certificateAuthority")
        chains = authority.managed_server_ca.ca_certs
        return instance, [text for chain in chains for text in chain.certificates]
    finally:
        transport: Any = client.transport
        await transport.close()
