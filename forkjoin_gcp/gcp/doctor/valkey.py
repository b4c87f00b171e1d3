"""Valkey: there, entered the right way, not to evict what must stay, and with our time."""

from __future__ import annotations

from time import time
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import AuthenticationError, MovedError

from forkjoin_gcp.config import VARIABLES, QueueConfig
from forkjoin_gcp.errors import ConfigurationError, IndexUnavailable
from forkjoin_gcp.gcp.doctor.findings import Finding, Status, Subject, one_line
from forkjoin_gcp.gcp.instance import FAILURES, Client, Endpoint, client_for, find

NAME = "valkey"
SECONDS = 3.0
OLDEST = (7, 0)
"""Memorystore's oldest version is 7.2."""

FULL = 0.9
DEFAULT_SKEW = float(QueueConfig.model_fields["max_clock_skew"].default)


async def check_valkey(subject: Subject) -> list[Finding]:
    """Reaches it as a queue would, runs a script, and reads what it says of itself."""
    variable = VARIABLES["memorystore"]
    if subject.services.memorystore is None:
        return [Finding(NAME, Status.SKIPPED, f"{variable} is not set")]
    try:
        endpoint = await find(subject.services)
    except ConfigurationError as error:
        return [Finding(NAME, Status.FAULT, one_line(error), f"Correct {variable}")]
    except IndexUnavailable as error:
        fix = "See whether memorystore.googleapis.com is enabled, and this network reaches it"
        return [Finding(NAME, Status.FAULT, one_line(error), fix)]
    client = client_for(endpoint, SECONDS)
    try:
        return await _look_at(client, endpoint, subject)
    except FAILURES as error:
        return [_unreachable(error, endpoint, subject)]
    finally:
        await client.aclose()


async def _look_at(client: Client, endpoint: Endpoint, subject: Subject) -> list[Finding]:
    key = "fj:{doctor}"
    script: Any = client.eval("return redis.call('TIME')", 1, key)
    before = time()
    seconds, micros = await script
    after = time()
    told = int(seconds) + int(micros) / 1e6
    info = await _info(client)
    where = f"{endpoint.host}:{endpoint.port}"
    found = _eviction(info, subject) + _memory(info) + _version(info)
    skew = max(before - told, told - after, 0)
    allowed = min((queue.max_clock_skew for queue in subject.queues), default=DEFAULT_SKEW)
    if skew > allowed:
        text = f"this machine's clock is {skew:.1f} s away from Valkey's; {allowed:g} s are allowed"
        found.append(Finding(NAME, Status.FAULT, text, "Set the clock, or raise max_clock_skew"))
    if not endpoint.clustered and info.get("cluster_enabled"):
        found.append(_clustered())
    return found or [Finding(NAME, Status.OK, f"{where} answers, and evicts nothing")]


async def _info(client: Client) -> dict[str, Any]:
    """Of one node of a cluster: they are set up alike."""
    if isinstance(client, Redis):
        return dict(await client.info("everything"))
    answer: Any = await client.info("everything", target_nodes=client.get_random_node())
    return dict(answer)


def _eviction(info: dict[str, Any], subject: Subject) -> list[Finding]:
    policy = str(info.get("maxmemory_policy", "unknown"))
    if policy == "noeviction":
        return []
    names = [queue.name for queue in subject.queues if queue.storage == "memorystore"]
    fix = "Set maxmemory-policy to noeviction (terraform: memorystore.engine_configs)"
    if names:
        text = f"its policy is {policy}: when it is full, items of {', '.join(names)} are lost"
        return [Finding(NAME, Status.FAULT, text, fix)]
    text = f"its policy is {policy}: when it is full, batches are cut short and items move"
    return [Finding(NAME, Status.WARNING, text, fix)]


def _memory(info: dict[str, Any]) -> list[Finding]:
    used, most = int(info.get("used_memory", 0)), int(info.get("maxmemory", 0))
    if not most or used < most * FULL:
        return []
    text = f"{used:,} of {most:,} bytes are in use"
    return [Finding(NAME, Status.WARNING, text, "Give it more memory, or more shards")]


def _version(info: dict[str, Any]) -> list[Finding]:
    text = str(info.get("valkey_version") or info.get("redis_version") or "")
    parts = tuple(int(part) for part in text.split(".")[:2] if part.isdigit())
    if not parts or parts >= OLDEST:
        return []
    fix = f"Use version {OLDEST[0]}.{OLDEST[1]} or newer"
    return [Finding(NAME, Status.FAULT, f"version {text} is too old", fix)]


def _clustered() -> Finding:
    text = "it is a cluster, and entered as if it were none: most lanes would be refused"
    return Finding(NAME, Status.FAULT, text, f"Add ?cluster=true to {VARIABLES['memorystore']}")


def _unreachable(error: Exception, endpoint: Endpoint, subject: Subject) -> Finding:
    where = f"{endpoint.host}:{endpoint.port}"
    text = f"{where}: {one_line(error)}"
    if isinstance(error, MovedError):
        return _clustered()
    if isinstance(error, AuthenticationError) or "NOAUTH" in text or "NOPERM" in text:
        fix = (
            "Grant this account roles/memorystore.dbConnectionUser"
            if endpoint.credentials is not None
            else f"Correct the user and password in {VARIABLES['memorystore']}"
        )
    elif "certificate verify failed" in text:
        fix = "Name its authority, ?ssl_ca_certs=FILE, or add ssl_check_hostname=false"
    elif "Cluster mode is not enabled" in text:
        fix = f"Take cluster=true out of {VARIABLES['memorystore']}"
    elif subject.local:
        fix = "forkjoin local up"
    else:
        fix = "See whether this service is in the instance's network (direct VPC egress)"
    return Finding(NAME, Status.FAULT, text, fix)
