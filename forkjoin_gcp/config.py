"""Every setting, its unit and its limits: how a queue behaves, and where its services are."""

from __future__ import annotations

import difflib
import json
import logging
import os
import re
from collections.abc import Mapping
from typing import Any, Literal, Self, TypedDict, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic.fields import FieldInfo

from forkjoin_gcp.errors import MAX_RETRY_AFTER, ConfigurationError
from forkjoin_gcp.names import check_queue_name, check_version

logger = logging.getLogger(__name__)

MAX_PAYLOAD_BYTES = 900_000
"""A payload's encoded size, at most: a Firestore document holds 1 MiB (1,048,576 bytes) with its
field names and the rest of the segment, and a segment holds at least one item."""

LOCAL_HINT = 'To use local services: forkjoin local up --detach, then eval "$(forkjoin local env)".'


ORDERED = {
    "batch_size": "max_batch_items",
    "retry_min_backoff": "retry_max_backoff",
    "writer_timeout": "dispatch_deadline",
    "sweep_after": "expire_after",
}
"""Settings that may not be more than another."""


class Settings(TypedDict, total=False):
    """The keyword arguments of a queue; QueueConfig says what each one means."""

    batch_period: float
    batch_size: int
    max_batch_items: int
    shards: int
    lanes: int
    writer_timeout: float
    max_clock_skew: float
    acquire_timeout: float
    acquire_attempts: int
    max_pending_items: int
    max_pending_bytes: int
    enqueue_timeout: float
    concurrency: int
    max_attempts: int
    crash_limit: int
    retry_min_backoff: float
    retry_max_backoff: float
    dispatch_deadline: float
    on_success: Literal["delete", "keep"]
    expire_after: float
    sweep_after: float
    version: str
    storage: Literal["firestore", "memorystore"]


def _seconds(default: float, low: float, high: float, description: str) -> Any:
    return Field(default, ge=low, le=high, json_schema_extra={"unit": "s"}, description=description)


def _count(default: int, low: int, high: int, unit: str, description: str) -> Any:
    return Field(
        default, ge=low, le=high, json_schema_extra={"unit": unit}, description=description
    )


class QueueConfig(BaseModel):
    """How one queue behaves. Times are seconds.

    Raises ConfigurationError, naming the setting, the value and what is allowed, for a setting that
    is unknown, of the wrong type, out of its range, or at odds with another.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    name: str = Field(description="the queue's name: in every key, path and task id")
    version: str = Field("v1", description="keeps deployments apart: in every key and name")
    storage: Literal["firestore", "memorystore"] = Field(
        "firestore", description="where segments are kept; `memorystore` is faster and not durable"
    )
    batch_period: float = _seconds(
        0.5, 0, 60, "how long a batch gathers items; 0: no wait, one batch per burst"
    )
    batch_size: int = _count(100, 1, 1_000, "items", "items that one request handles")
    max_batch_items: int = _count(
        10_000, 1, 1_000_000, "items", "size at which a batch is closed early and run at once"
    )
    shards: int = _count(
        1, 1, 100, "queues", "Cloud Tasks queues `name-1` … `name-N`, 500 dispatches/s each"
    )
    lanes: int = _count(1, 1, 100, "lanes", "work indexes open at once")
    writer_timeout: float = _seconds(10, 0.1, 300, "how long a reader waits for writers")
    max_clock_skew: float = _seconds(
        5, 0, 300, "how far a clock may be off Cloud Tasks' and the workers', for the clock lane"
    )
    acquire_timeout: float = _seconds(
        1, 0.05, 30, "how long Memorystore may take to answer before it counts as away"
    )
    acquire_attempts: int = _count(
        3, 1, 20, "tries", "tries to reserve, where Memorystore fails at once, before it is away"
    )
    max_pending_items: int = _count(
        100_000, 1, 100_000_000, "items", "items that may be pending in a process"
    )
    max_pending_bytes: int = _count(
        200_000_000, 1_000_000, 1_000_000_000_000, "bytes", "payload bytes that may be pending"
    )
    enqueue_timeout: float = _seconds(
        30, 0, 3_600, "how long an `enqueue` waits for room among the pending; 0: not at all"
    )
    concurrency: int = _count(50, 1, 10_000, "items", "items in progress at once in a request")
    max_attempts: int = _count(5, 1, 100, "tries", "tries of an item before it is dead-lettered")
    crash_limit: int = _count(
        3, 1, 100, "runs", "runs of a chunk that may vanish with their process before it is split"
    )
    retry_min_backoff: float = _seconds(
        10, 0, MAX_RETRY_AFTER, "wait before the first retry of an item; doubles with each"
    )
    retry_max_backoff: float = _seconds(600, 0, MAX_RETRY_AFTER, "longest wait before a retry")
    dispatch_deadline: float = _seconds(
        600, 15, 1800, "how long one request may take (Cloud Tasks' limits for HTTP targets)"
    )
    on_success: Literal["delete", "keep"] = Field(
        "delete", description="what becomes of a handled item: `keep` holds it until it expires"
    )
    expire_after: float = _seconds(
        604_800, 3_600, 31_536_000, "age at which a stored item is deleted, handled or not"
    )
    sweep_after: float = _seconds(
        1_800, 60, 604_800, "how long a batch is untouched before the sweeper schedules it again"
    )

    def __init__(self, name: str, **settings: Any) -> None:
        try:
            super().__init__(name=name, **settings)
        except ValidationError as error:
            raise ConfigurationError(_explain(error, type(self))) from None

    _check_name = field_validator("name")(check_queue_name)
    _check_version = field_validator("version")(check_version)

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        for low, high in ORDERED.items():
            if getattr(self, low) > getattr(self, high):
                raise ConfigurationError(
                    f"{low}={getattr(self, low):g} is more than {high}={getattr(self, high):g}"
                )
        return self

    @classmethod
    def deployed(
        cls, name: str, settings: Mapping[str, Any], environ: Mapping[str, str] | None = None
    ) -> QueueConfig:
        """A queue's configuration where it runs: ``settings``, as the code gives them, and what the
        variable FORKJOIN_SETTINGS says of this queue, which counts for more.

        The variable is JSON, ``{"feeds": {"shards": 4}}``. Raises ConfigurationError.
        """
        text = (os.environ if environ is None else environ).get(SETTINGS_VARIABLE, "")
        given = _read_settings(text).get(name, {})
        try:
            return cls(name, **{**settings, **given})
        except ConfigurationError as error:
            if not given:
                raise
            raise ConfigurationError(f"{SETTINGS_VARIABLE}, queue {name!r}: {error}") from None

    def task_queue(self, shard: int) -> str:
        """The short id of the Cloud Tasks queue that serves ``shard`` (from 1)."""
        return f"{self.name}-{shard}"


VARIABLES: dict[str, str] = {
    "project": "FORKJOIN_PROJECT",
    "location": "FORKJOIN_LOCATION",
    "database": "FORKJOIN_DATABASE",
    "memorystore": "FORKJOIN_MEMORYSTORE",
    "join_url": "FORKJOIN_JOIN_URL",
    "invoker": "FORKJOIN_INVOKER",
    "audience": "FORKJOIN_AUDIENCE",
    "sweep_invoker": "FORKJOIN_SWEEP_INVOKER",
    "sweep_audience": "FORKJOIN_SWEEP_AUDIENCE",
    "certs_url": "FORKJOIN_CERTS_URL",
    "allow_unauthenticated": "FORKJOIN_ALLOW_UNAUTHENTICATED",
    "firestore_emulator_host": "FIRESTORE_EMULATOR_HOST",
    "cloud_tasks_emulator_host": "CLOUD_TASKS_EMULATOR_HOST",
}
"""Which environment variable gives which field of Services."""

SETTINGS_VARIABLE = "FORKJOIN_SETTINGS"

OTHER_VARIABLES = frozenset({"FORKJOIN_FIRESTORE", "FORKJOIN_QUEUE", SETTINGS_VARIABLE})
"""``FORKJOIN_*`` variables that something other than Services reads: LocalServices,
functions/main.py and the command line, and each queue."""


class Services(BaseModel):
    """Where a queue's services are, and who may call its join endpoint.

    Raises ConfigurationError for a field that is unknown or of the wrong form. Nothing is required
    until it is used: ``need`` then raises with the name of the variable to set.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    project: str | None = Field(None, min_length=1, description="the Google Cloud project id")
    location: str | None = Field(
        None, min_length=1, description="the region of the Cloud Tasks queues, as `us-central1`"
    )
    database: str = Field("(default)", min_length=1, description="the Firestore database's id")
    memorystore: str | None = Field(
        None,
        pattern=r"^(rediss?://.+|projects/[^/]+/locations/[^/]+/instances/[^/]+)$",
        repr=False,  # a URL may hold a password
        description="`projects/P/locations/L/instances/I`, or a `redis://` or `rediss://` URL",
    )
    join_url: str | None = Field(
        None, pattern=r"^https?://.+", description="the URL of the join endpoint, with its path"
    )
    invoker: str | None = Field(
        None,
        pattern=r"^[^@\s]+@[^@\s]+$",
        description="the service account whose OIDC token the tasks carry",
    )
    audience: str | None = Field(
        None, min_length=1, description="the audience of that token; the join URL unless set"
    )
    sweep_invoker: str | None = Field(
        None,
        pattern=r"^[^@\s]+@[^@\s]+$",
        description="the service account whose OIDC token opens the sweep function",
    )
    sweep_audience: str | None = Field(
        None,
        min_length=1,
        description="the audience of that token, as Cloud Scheduler's job has it",
    )
    certs_url: str | None = Field(
        None,
        pattern=r"^https?://.+",
        description="where the keys that sign tokens are; Google's unless set (local services)",
    )
    allow_unauthenticated: bool = Field(
        False, description="`true` lets anyone call the endpoints; for tests only"
    )
    firestore_emulator_host: str | None = Field(
        None, pattern=r"^[^/\s]+:\d+$", description="`host:port` of a Firestore emulator"
    )
    cloud_tasks_emulator_host: str | None = Field(
        None, pattern=r"^[^/\s]+:\d+$", description="`host:port` of a Cloud Tasks emulator"
    )

    def __init__(self, **fields: Any) -> None:
        try:
            super().__init__(**fields)
        except ValidationError as error:
            raise ConfigurationError(_explain(error, type(self))) from None

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> Services:
        """Read the variables named in VARIABLES from ``environ`` (default: the process's).

        An empty variable counts as unset; GOOGLE_CLOUD_PROJECT stands in for FORKJOIN_PROJECT. A
        ``FORKJOIN_*`` variable that nothing reads is logged as a warning, with the nearest name.
        """
        env = os.environ if environ is None else environ
        for name, nearest in unknown_variables(env).items():
            logger.warning("unknown variable %s is ignored%s", name, nearest)
        given = {field: env[name] for field, name in VARIABLES.items() if env.get(name)}
        if "project" not in given and env.get("GOOGLE_CLOUD_PROJECT"):
            given["project"] = env["GOOGLE_CLOUD_PROJECT"]
        return cls(**given)

    def need(self, field: str) -> str:
        """The value of ``field``; ConfigurationError, saying how to set it, where it is unset."""
        value = getattr(self, field)
        if value is None:
            description = type(self).model_fields[field].description
            raise ConfigurationError(
                f"{field} is not set ({description}): set {VARIABLES[field]}, "
                f"or pass Services({field}=...). {LOCAL_HINT}"
            )
        return str(value)

    def token_audience(self) -> str:
        """The audience that tasks' tokens carry and the join endpoint asks for."""
        return self.audience or self.need("join_url")


def unknown_variables(environ: Mapping[str, str]) -> dict[str, str]:
    """The ``FORKJOIN_*`` variables that nothing reads; for each "", or which one may be meant."""
    known = {*VARIABLES.values(), *OTHER_VARIABLES}
    return {
        name: _nearest(name, known)
        for name in sorted(environ)
        if name.startswith("FORKJOIN_") and name not in known
    }


def without_password(url: str) -> str:
    """The URL as it may be shown: what stands before its host is left out."""
    return re.sub(r"//.*@", "//***@", url)


def _read_settings(text: str) -> dict[str, dict[str, Any]]:
    """FORKJOIN_SETTINGS by queue; ConfigurationError where it is not of that form."""
    if not text.strip():
        return {}
    try:
        read = json.loads(text)
    except ValueError as error:
        raise ConfigurationError(f"{SETTINGS_VARIABLE} is not JSON: {error}") from None
    if not isinstance(read, dict) or not all(isinstance(one, dict) for one in read.values()):
        raise ConfigurationError(
            f'{SETTINGS_VARIABLE} must be settings by queue, as {{"feeds": {{"shards": 4}}}}'
        )
    for queue, settings in read.items():
        if "name" in settings:
            raise ConfigurationError(
                f"{SETTINGS_VARIABLE}, queue {queue!r}: unknown setting 'name'"
            )
    return read


def _explain(error: ValidationError, model: type[BaseModel]) -> str:
    """One sentence a wrong field: its name, the value, and what is allowed."""
    sentences = []
    for found in error.errors(include_url=False):
        name = str(found["loc"][0]) if found["loc"] else ""
        raised = found.get("ctx", {}).get("error")
        if isinstance(raised, ConfigurationError):
            sentences.append(str(raised))
        elif found["type"] == "extra_forbidden":
            sentences.append(f"unknown setting {name!r}{_nearest(name, model.model_fields)}")
        elif found["type"] == "missing":
            sentences.append(f"{name} is missing")
        else:
            allowed = _allowed(model.model_fields[name])
            shown = VARIABLES[name] + ", " if model is Services else ""
            given = found["input"]
            given = without_password(given) if isinstance(given, str) else given
            sentences.append(f"{shown}{name}={given!r}: {allowed}")
    return "; ".join(sentences)


def _allowed(field: FieldInfo) -> str:
    limits = {type(limit).__name__: limit for limit in field.metadata}
    extra = field.json_schema_extra
    if isinstance(extra, dict):
        low, high = getattr(limits["Ge"], "ge", 0), getattr(limits["Le"], "le", 0)
        kind = "seconds" if extra["unit"] == "s" else f"a whole number ({extra['unit']})"
        return f"must be {kind}, from {low:,} to {high:,}"
    choices = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
    return "must be " + (" or ".join(map(repr, choices)) or str(field.description))


def _nearest(name: str, known: Any) -> str:
    matches = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {matches[0]!r}?" if matches else ""
