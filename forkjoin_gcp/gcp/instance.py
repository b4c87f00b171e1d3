"""A client for Memorystore for Valkey, from a URL or from an instance's name."""

from __future__ import annotations

import asyncio
import os
import re
import ssl
from dataclasses import dataclass
from typing import Any
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from google.auth.exceptions import GoogleAuthError, TransportError
from redis.asyncio import ConnectionPool, Redis, RedisCluster, SSLConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.credentials import CredentialProvider
from redis.exceptions import (
    AuthenticationError,
    RedisClusterException,
    RedisError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from forkjoin_gcp.config import VARIABLES, Services, without_password
from forkjoin_gcp.errors import ConfigurationError
from forkjoin_gcp.importing import one_at_a_time

Client = Redis | RedisCluster

FAILURES = (RedisError, RedisClusterException, OSError)
"""What a client raises where a call failed. A cluster's own exceptions are no RedisError."""

DEFAULT_PORT = 6379
MAX_CONNECTIONS = 1_000
"""Of a process: one for each request that waits for writers, and Cloud Run sends no more at once.
redis-py's own limit is 100."""

URL_OPTIONS = ("cluster", "ssl_ca_certs", "ssl_check_hostname")
"""What may stand behind the ``?`` of a URL."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where Valkey is, and how to enter.

    ``credentials`` are Google's, for an instance that asks for IAM tokens. ``certificates`` is the
    text of the authorities' certificates, ``certificates_file`` a file of them; with neither the
    system's are trusted.
    """

    host: str
    port: int = DEFAULT_PORT
    database: int = 0
    clustered: bool = False
    username: str | None = None
    password: str | None = None
    credentials: Any = None
    encrypted: bool = False
    certificates: str | None = None
    certificates_file: str | None = None
    check_hostname: bool = True


class _Encrypted(SSLConnection):
    """A connection in a TLS context that all share. redis-py makes one for each, which takes 20 ms,
    and trusts the system's authorities beside the instance's own."""

    def __init__(self, *, context: ssl.SSLContext, **options: Any) -> None:
        super().__init__(**options)
        self.ssl_context.context = context


class _Cluster(RedisCluster):
    """redis-py's client of a cluster, with three of its faults (as of 8.1) mended."""

    def __init__(self, *, context: ssl.SSLContext | None, **options: Any) -> None:
        # Otherwise the fifth call that is told of a moved slot closes the connections of all calls.
        super().__init__(reinitialize_steps=0, **options)
        if context is not None:
            nodes = self.nodes_manager
            nodes.connection_kwargs |= {"connection_class": _Encrypted, "context": context}
            for node in nodes.startup_nodes.values():
                node.connection_class = _Encrypted
                node.connection_kwargs["context"] = context

    async def execute_command(self, *args: Any, **kwargs: Any) -> Any:
        # It would send what is called before it knows the slots to any node, and be told MOVED.
        await self.initialize()
        return await super().execute_command(*args, **kwargs)

    async def aclose(self) -> None:
        if self._initialize:  # as after a failed call: it would leave all connections open
            await self.nodes_manager.aclose()
            await self.nodes_manager.aclose("startup_nodes")
        else:
            await super().aclose()


class IamTokens(CredentialProvider):
    """Gives each new connection an access token as its password; Valkey asks for it at AUTH only.

    Needs the role ``roles/memorystore.dbConnectionUser``. A token that does not come within
    ``seconds`` is a failed connection; the next one finds it, if it has come by then.
    """

    def __init__(self, credentials: Any, seconds: float) -> None:
        self._credentials = credentials
        self._seconds = seconds
        self._refreshing: asyncio.Task[None] | None = None

    def get_credentials(self) -> tuple[str, str]:
        if not self._credentials.valid:
            self._refresh()
        return "default", str(self._credentials.token)

    async def get_credentials_async(self) -> tuple[str, str]:
        if not self._credentials.valid:
            if self._refreshing is None or self._refreshing.done():
                self._refreshing = asyncio.create_task(asyncio.to_thread(self._refresh))
                # It may fail when nobody waits for it any more.
                self._refreshing.add_done_callback(
                    lambda task: task.cancelled() or task.exception()
                )
            try:
                async with asyncio.timeout(self._seconds):
                    await asyncio.shield(self._refreshing)
            except TimeoutError:
                raise RedisTimeoutError(
                    f"no access token within {self._seconds:g} s for the IAM login"
                ) from None
        return "default", str(self._credentials.token)

    def _refresh(self) -> None:
        with one_at_a_time:
            from google.auth.transport.requests import Request

        try:
            self._credentials.refresh(Request())
        except TransportError as error:
            raise RedisConnectionError(f"no access token for the IAM login: {error}") from error
        except GoogleAuthError as error:
            raise AuthenticationError(f"no access token for the IAM login: {error}") from error


async def open_client(services: Services, seconds: float) -> Client:
    """A client that gives up a call after ``seconds`` and never repeats one by itself.

    Raises ConfigurationError, and IndexUnavailable where the instance cannot be looked up.
    """
    return client_for(await find(services), seconds)


async def find(services: Services) -> Endpoint:
    """Where ``services.memorystore`` is: as its URL says, or as the Memorystore API does.

    Raises as ``open_client``.
    """
    where = services.need("memorystore")
    if not where.startswith("projects/"):
        return endpoint_of_url(where)
    # Only here: it is slow to import, and who gives a URL does not need it.
    with one_at_a_time:
        from forkjoin_gcp.gcp.instance_lookup import look_up

    return await look_up(where)


def client_for(endpoint: Endpoint, seconds: float) -> Client:
    """A client for ``endpoint``. It connects at its first call. See ``open_client``."""
    options: dict[str, Any] = {
        "host": endpoint.host,
        "port": endpoint.port,
        "socket_timeout": seconds,
        "socket_connect_timeout": seconds,
        "max_connections": MAX_CONNECTIONS,
        # redis-py's own retries would run a script again whose answer was lost, and count a writer
        # twice.
        "retry": Retry(NoBackoff(), 0),
        # So that it logs in by AUTH, which is what Memorystore documents for IAM tokens.
        "protocol": 2,
    }
    if endpoint.credentials is not None:
        options["credential_provider"] = IamTokens(endpoint.credentials, seconds)
    else:
        options |= {"username": endpoint.username, "password": endpoint.password}
    context = _context(endpoint) if endpoint.encrypted else None
    if endpoint.clustered:
        # Lanes of the shards that are up go on while another is away.
        return _Cluster(context=context, require_full_coverage=False, **options)
    if context is not None:
        options |= {"connection_class": _Encrypted, "context": context}
    return Redis.from_pool(ConnectionPool(db=endpoint.database, **options))


def _context(endpoint: Endpoint) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = endpoint.check_hostname
    if endpoint.certificates or endpoint.certificates_file:
        context.load_verify_locations(endpoint.certificates_file, cadata=endpoint.certificates)
    else:
        context.load_default_certs()
    return context


def endpoint_of_url(url: str) -> Endpoint:
    """What a ``redis://`` or ``rediss://`` URL says. Raises ConfigurationError.

    ``?cluster=true`` for a cluster, entered by this node; with ``rediss://`` also
    ``ssl_ca_certs=FILE`` and ``ssl_check_hostname=false``.
    """
    try:
        return _endpoint(urlsplit(url))
    except ValueError as error:
        raise ConfigurationError(
            f"{VARIABLES['memorystore']}={without_password(url)!r}: {error}"
        ) from None


def _endpoint(parts: SplitResult) -> Endpoint:
    """Raises ValueError."""
    if parts.scheme not in ("redis", "rediss"):
        raise ValueError("must begin with redis:// or rediss://")
    if not parts.hostname:
        raise ValueError("names no host")
    given = dict(parse_qsl(parts.query, keep_blank_values=True))
    for name in given:
        if name not in URL_OPTIONS:
            raise ValueError(f"unknown option {name!r}; there are {', '.join(URL_OPTIONS)}")
        if name.startswith("ssl_") and parts.scheme != "rediss":
            raise ValueError(f"{name} is for rediss:// only")
    file = given.get("ssl_ca_certs")
    if file is not None and not os.path.isfile(file):
        raise ValueError(f"ssl_ca_certs={file!r}: no such file")
    clustered = _truth(given, "cluster", default=False)
    database = parts.path.strip("/")
    if not re.fullmatch(r"\d{0,4}", database):
        raise ValueError(f"database {database!r}: must be a number")
    if clustered and int(database or 0):
        raise ValueError(f"database {database}: a cluster has 0 only")
    return Endpoint(
        host=parts.hostname,
        port=parts.port or DEFAULT_PORT,
        database=int(database or 0),
        clustered=clustered,
        username=unquote(parts.username) if parts.username else None,
        password=unquote(parts.password) if parts.password else None,
        encrypted=parts.scheme == "rediss",
        certificates_file=file,
        check_hostname=_truth(given, "ssl_check_hostname", default=True),
    )


def _truth(given: dict[str, str], name: str, *, default: bool) -> bool:
    text = given.get(name)
    if text is None:
        return default
    if text not in ("true", "false"):
        raise ValueError(f"{name}={text!r}: must be true or false")
    return text == "true"
