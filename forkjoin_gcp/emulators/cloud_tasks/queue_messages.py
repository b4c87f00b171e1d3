"""Between the API's Queue and the emulator's: settings, update masks, HTTP targets."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from google.cloud import tasks_v2

from . import refusals
from .pacing import MAX_CONCURRENT_DISPATCHES, MAX_DISPATCHES_PER_SECOND, RateLimits, RetryPolicy
from .queues import Queue, QueueSettings
from .retry_messages import retry_from, set_retry
from .targets import HttpTarget
from .task_messages import (
    METHOD_NUMBERS,
    METHODS,
    authorization_from,
    check_headers,
    set_authorization,
)
from .times import set_time

QueueMessage = tasks_v2.Queue.pb()
_UriOverride = tasks_v2.UriOverride.pb()
_RUNNING = int(tasks_v2.Queue.State.RUNNING)
_PAUSED = int(tasks_v2.Queue.State.PAUSED)
_HTTP = int(tasks_v2.UriOverride.Scheme.HTTP)
_HTTPS = int(tasks_v2.UriOverride.Scheme.HTTPS)
_IF_NOT_EXISTS = int(tasks_v2.UriOverride.UriOverrideEnforceMode.IF_NOT_EXISTS)
_ALWAYS = int(tasks_v2.UriOverride.UriOverrideEnforceMode.ALWAYS)
_OUTPUT_ONLY = frozenset({"name", "state", "purge_time"})
_HOST = re.compile(r"[A-Za-z0-9._-]+|\[?[0-9A-Fa-f:.]+\]?")
_MAX_PORT = 65_535


def settings_from(message: Any) -> QueueSettings:
    """The settings of a Queue message. Raises Refusal."""
    if message.HasField("app_engine_routing_override"):
        raise refusals.not_emulated("App Engine targets (Queue.app_engine_routing_override)")
    ratio = message.stackdriver_logging_config.sampling_ratio
    if not 0 <= ratio <= 1:
        raise refusals.invalid("StackdriverLoggingConfig.samplingRatio must be between 0 and 1.")
    target = message.http_target
    return QueueSettings(
        limits=limits_from(message.rate_limits, RateLimits()),
        retry=retry_from(message.retry_config, RetryPolicy()),
        http_target=_target_from(target) if message.HasField("http_target") else None,
        logging_ratio=ratio,
    )


def limits_from(message: Any, default: RateLimits) -> RateLimits:
    """RateLimits with `default` for what is unset. Raises Refusal INVALID_ARGUMENT."""
    rate, concurrent = message.max_dispatches_per_second, message.max_concurrent_dispatches
    for name, value, most in (
        ("maxDispatchesPerSecond", rate, MAX_DISPATCHES_PER_SECOND),
        ("maxConcurrentDispatches", concurrent, MAX_CONCURRENT_DISPATCHES),
    ):
        if value < 0:
            raise refusals.invalid(f"RateLimits.{name} cannot be negative.")
        if not value <= most:  # so that NaN is refused too
            raise refusals.invalid(f"RateLimits.{name} must be less than or equal to {most:g}.")
    return RateLimits(
        rate or default.max_dispatches_per_second, concurrent or default.max_concurrent_dispatches
    )


def updated_settings(queue: Queue, message: Any, paths: Sequence[str]) -> QueueSettings:
    """The settings of `queue` with those fields of `message` that `paths` (a field mask) names;
    an empty mask, or "*", names all. Raises Refusal."""
    if not paths or list(paths) == ["*"]:
        return settings_from(message)
    merged = queue_message(queue)
    for path in paths:
        first, *_ = fields = path.split(".")
        _check_path(path, fields)
        if first not in _OUTPUT_ONLY:  # those are ignored, as documented
            _copy_field(message, merged, fields)
    return settings_from(merged)


def _check_path(path: str, fields: Sequence[str]) -> None:
    descriptor = QueueMessage.DESCRIPTOR
    for position, name in enumerate(fields):
        field = descriptor.fields_by_name.get(name) if descriptor is not None else None
        last = position == len(fields) - 1
        if field is None or (field.is_repeated and not last):
            raise refusals.invalid(f"Invalid field mask path: {path}")
        descriptor = field.message_type


def _copy_field(source: Any, target: Any, fields: Sequence[str]) -> None:
    """Makes the field at that path of `target` what it is in `source`: unset, if it is there."""
    *parents, name = fields
    for parent in parents:
        if not source.HasField(parent) and not target.HasField(parent):
            return
        source, target = getattr(source, parent), getattr(target, parent)
    field = source.DESCRIPTOR.fields_by_name[name]
    target.ClearField(name)
    if field.is_repeated:
        getattr(target, name).extend(getattr(source, name))
    elif field.message_type is not None:
        if source.HasField(name):
            getattr(target, name).CopyFrom(getattr(source, name))
            getattr(target, name).SetInParent()
    elif not field.has_presence or source.HasField(name):
        setattr(target, name, getattr(source, name))


def _target_from(message: Any) -> HttpTarget:
    uri = message.uri_override
    if uri.HasField("host") and not _HOST.fullmatch(uri.host):
        raise refusals.invalid("UriOverride.host must be a host name and cannot be empty.")
    if not 0 <= uri.port <= _MAX_PORT:
        raise refusals.invalid(f"UriOverride.port must be between 0 and {_MAX_PORT}.")
    if message.http_method and message.http_method not in METHODS:
        raise refusals.invalid(f"The HTTP method {message.http_method} does not exist.")
    scheme = None
    if uri.HasField("scheme"):
        scheme = "http" if uri.scheme == _HTTP else "https"
    headers = [(each.header.key, each.header.value) for each in message.header_overrides]
    check_headers(dict(headers), "HttpTarget.headerOverrides")
    authorization = authorization_from(message)
    if authorization is not None and not authorization.purpose:
        name = "OAuthToken.scope" if authorization.oauth else "OidcToken.audience"
        raise refusals.invalid(f"{name} is required in a queue-level override.")
    return HttpTarget(
        scheme=scheme,
        host=uri.host or None,
        port=uri.port if uri.HasField("port") else None,
        path=uri.path_override.path if uri.HasField("path_override") else None,
        query=uri.query_override.query_params if uri.HasField("query_override") else None,
        always=uri.uri_override_enforce_mode != _IF_NOT_EXISTS,
        method=METHODS.get(message.http_method),
        headers=tuple(headers),
        authorization=authorization,
    )


def queue_message(queue: Queue) -> Any:
    """The queue as the API shows it, defaults filled in."""
    message = QueueMessage(name=queue.name, state=_PAUSED if queue.paused else _RUNNING)
    settings = queue.settings
    limits = settings.limits
    message.rate_limits.max_dispatches_per_second = limits.max_dispatches_per_second
    message.rate_limits.max_burst_size = limits.max_burst_size
    message.rate_limits.max_concurrent_dispatches = limits.max_concurrent_dispatches
    set_retry(message.retry_config, settings.retry)
    if queue.purge_time is not None:
        set_time(message.purge_time, queue.purge_time)
    if settings.logging_ratio:
        message.stackdriver_logging_config.sampling_ratio = settings.logging_ratio
    if settings.http_target is not None:
        _set_target(message.http_target, settings.http_target)
    return message


def _set_target(message: Any, target: HttpTarget) -> None:
    message.SetInParent()
    uri = _UriOverride()
    if target.scheme is not None:
        uri.scheme = _HTTP if target.scheme == "http" else _HTTPS
    if target.host is not None:
        uri.host = target.host
    if target.port is not None:
        uri.port = target.port
    if target.path is not None:
        uri.path_override.path = target.path
        uri.path_override.SetInParent()
    if target.query is not None:
        uri.query_override.query_params = target.query
        uri.query_override.SetInParent()
    if uri.ByteSize() or not target.always:
        uri.uri_override_enforce_mode = _ALWAYS if target.always else _IF_NOT_EXISTS
        message.uri_override.CopyFrom(uri)
    if target.method is not None:
        message.http_method = METHOD_NUMBERS[target.method]
    for key, value in target.headers:
        header = message.header_overrides.add().header
        header.key, header.value = key, value
    set_authorization(message, target.authorization)
