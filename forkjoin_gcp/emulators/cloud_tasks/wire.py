"""Between the API's messages and the emulator's state, with the API's own validation.

Works on the raw protobuf classes below the client's proto-plus ones: a create costs a tenth.
"""

from __future__ import annotations

import datetime
import re
import secrets
from typing import Any
from urllib.parse import urlsplit

from google.cloud import tasks_v2

from . import refusals
from .pacing import MAX_CONCURRENT_DISPATCHES, MAX_DISPATCHES_PER_SECOND, RateLimits, RetryPolicy
from .queues import Attempt, HttpRequest, Queue, Task, microseconds

QueueMessage = tasks_v2.Queue.pb()
TaskMessage = tasks_v2.Task.pb()

MAX_TASK_BYTES = 1_048_576
MAX_URL_CHARACTERS = 2_083
MAX_SCHEDULE_AHEAD = 30 * 86_400.0
MIN_DISPATCH_DEADLINE = 15.0
MAX_DISPATCH_DEADLINE = 1_800.0
DEFAULT_DISPATCH_DEADLINE = 600.0
_ALLOWANCE = 1.0  # a client that asks for exactly 30 days from its own clock is not refused

_LOCATION = r"projects/[A-Za-z0-9:.-]+/locations/[A-Za-z0-9-]+"
_LOCATION_NAME = re.compile(_LOCATION)
_QUEUE_NAME = re.compile(_LOCATION + r"/queues/[A-Za-z0-9-]{1,100}")
_TASK_NAME = re.compile(f"({_LOCATION}/queues/[^/]+)/tasks/([^/]*)")
_TASK_ID = re.compile(r"[A-Za-z0-9_-]{1,500}")

# proto-plus enums are enum.IntEnum at run time, which the type checker cannot see.
_METHOD_ENUM: Any = tasks_v2.HttpMethod
_METHODS: dict[int, str] = {int(method): method.name for method in _METHOD_ENUM if method}
_METHOD_NUMBERS = {name: number for number, name in _METHODS.items()}
_METHODS_WITH_BODY = frozenset({"POST", "PUT", "PATCH"})
_FULL_VIEW = int(tasks_v2.Task.View.FULL)
_BASIC_VIEW = int(tasks_v2.Task.View.BASIC)
_RUNNING = int(tasks_v2.Queue.State.RUNNING)

# google.rpc.Code of the HTTP answers that have one; others are UNKNOWN.
_OK, _UNKNOWN, _DEADLINE_EXCEEDED, _UNAVAILABLE = 0, 2, 4, 14
_CODES = {400: 3, 401: 16, 403: 7, 404: 5, 409: 10, 429: 8, 499: 1, 500: 13, 501: 12}
_CODES |= {503: 14, 504: 4}


def check_location(name: str) -> str:
    """The name itself. Raises Refusal INVALID_ARGUMENT unless it is projects/P/locations/L."""
    if not _LOCATION_NAME.fullmatch(name):
        raise refusals.invalid("Invalid resource field value in the request.")
    return name


def check_queue_name(name: str) -> str:
    """The name itself. Raises Refusal INVALID_ARGUMENT for what is no queue name."""
    if not _QUEUE_NAME.fullmatch(name):
        raise refusals.invalid(
            "Queue name must be formatted: "
            '"projects/<PROJECT_ID>/locations/<LOCATION_ID>/queues/<QUEUE_ID>".'
        )
    return name


def split_task_name(name: str) -> tuple[str, str]:
    """(queue name, task id). Raises Refusal INVALID_ARGUMENT for what is no task name."""
    match = _TASK_NAME.fullmatch(name)
    if match is None:
        raise refusals.invalid(
            'Task name must be formatted: "projects/<PROJECT_ID>/locations/<LOCATION_ID>/'
            'queues/<QUEUE_ID>/tasks/<TASK_ID>"'
        )
    queue_name, task_id = match.groups()
    if not _TASK_ID.fullmatch(task_id):
        raise refusals.invalid(
            f'Task ID "{task_id}" can contain only letters ([A-Za-z]), numbers ([0-9]), hyphens '
            "(-), or underscores (_). Task ID must between 1 and 500 characters."
        )
    return queue_name, task_id


def task_from(message: Any, parent: str, now: float) -> Task:
    """A new task from the one in a CreateTask request, under a server-made id if it has no name.

    Raises Refusal INVALID_ARGUMENT, or UNIMPLEMENTED for what only the real service has.
    """
    if message.name:
        queue_name, task_id = split_task_name(message.name)
        if queue_name != parent:
            raise refusals.invalid(
                f"The queue name from request ('{parent}') must be the same as the queue name in "
                f"the named task ('{queue_name}')."
            )
    else:
        task_id = str(secrets.randbits(63))
    if message.ByteSize() > MAX_TASK_BYTES:
        raise refusals.invalid("Task size too large")
    return Task(
        name=f"{parent}/tasks/{task_id}",
        task_id=task_id,
        request=_request_from(message),
        create_time=now,
        schedule_time=_schedule_time_from(message, now),
        dispatch_deadline=_dispatch_deadline_from(message),
        retry=_retry_from(message.retry_config, RetryPolicy())
        if message.HasField("retry_config")
        else None,
    )


def _request_from(message: Any) -> HttpRequest:
    kind = message.WhichOneof("message_type")
    if kind == "app_engine_http_request":
        raise refusals.not_emulated("App Engine targets")
    if kind is None:
        raise refusals.invalid("Task.http_request or Task.app_engine_http_request must be set.")
    request = message.http_request
    if request.HasField("oauth_token"):
        raise refusals.not_emulated("OAuth tokens (HttpRequest.oauth_token); use oidc_token")
    _check_url(request.url)
    method = _METHODS.get(request.http_method, "POST")
    if request.body and method not in _METHODS_WITH_BODY:
        raise refusals.invalid("HTTP body is only allowed with the methods POST, PUT and PATCH.")
    if request.HasField("oidc_token") and not request.oidc_token.service_account_email:
        raise refusals.invalid("OidcToken.service_account_email is required.")
    return HttpRequest(
        url=request.url,
        method=method,
        headers=dict(request.headers),
        body=request.body,
        oidc_email=request.oidc_token.service_account_email,
        oidc_audience=request.oidc_token.audience,
    )


def _check_url(url: str) -> None:
    if not url:
        raise refusals.invalid("HttpRequest.url is required.")
    if not url.startswith(("http://", "https://")):
        raise refusals.invalid("HttpTarget.url must start with 'http://' or 'https://'.")
    try:
        parts = urlsplit(url)
        valid = bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        valid = False
    if not valid or len(url) > MAX_URL_CHARACTERS or re.search(r"[\s\x00-\x1f\x7f]", url):
        raise refusals.invalid(f"HttpRequest.url is not a valid URL: {url[:200]!r}")


def _schedule_time_from(message: Any, now: float) -> float:
    if not message.HasField("schedule_time"):
        return now
    # Truncated to the microsecond, as the API documents; in the past means now.
    asked = message.schedule_time.seconds + message.schedule_time.nanos // 1_000 / 1e6
    if asked > now + MAX_SCHEDULE_AHEAD + _ALLOWANCE:
        moment = datetime.datetime.fromtimestamp(asked, datetime.UTC).isoformat(timespec="seconds")
        raise refusals.invalid(
            f"The Task.scheduleTime, {moment}, is too far in the future. Schedule time must be "
            "no more than 720h in the future."
        )
    return max(now, float(asked))


def _dispatch_deadline_from(message: Any) -> float:
    if not message.HasField("dispatch_deadline"):
        return DEFAULT_DISPATCH_DEADLINE
    deadline = _seconds(message.dispatch_deadline)
    if not MIN_DISPATCH_DEADLINE <= deadline <= MAX_DISPATCH_DEADLINE:
        raise refusals.invalid("Task.dispatchDeadline must be between [15s, 30m].")
    return deadline


def limits_from(message: Any, default: RateLimits) -> RateLimits:
    """RateLimits with `default` for what is unset. Raises Refusal INVALID_ARGUMENT."""
    rate, concurrent = message.max_dispatches_per_second, message.max_concurrent_dispatches
    for name, value, most in (
        ("maxDispatchesPerSecond", rate, MAX_DISPATCHES_PER_SECOND),
        ("maxConcurrentDispatches", concurrent, MAX_CONCURRENT_DISPATCHES),
    ):
        if value < 0:
            raise refusals.invalid(f"RateLimits.{name} cannot be negative.")
        if value > most:
            raise refusals.invalid(f"RateLimits.{name} must be less than or equal to {most:g}.")
    return RateLimits(
        rate or default.max_dispatches_per_second, concurrent or default.max_concurrent_dispatches
    )


def _retry_from(message: Any, default: RetryPolicy) -> RetryPolicy:
    if message.max_attempts < -1:
        raise refusals.invalid("RetryConfig.maxAttempts must be greater or equal to -1.")
    if message.max_doublings < 0:
        raise refusals.invalid("RetryConfig.maxDoublings cannot be negative.")
    durations = {}
    for field in ("max_retry_duration", "min_backoff", "max_backoff"):
        value = _seconds(getattr(message, field))
        if value < 0:
            head, *rest = field.split("_")
            camel = head + "".join(word.capitalize() for word in rest)
            raise refusals.invalid(f"RetryConfig.{camel} cannot be negative.")
        # Unset takes the default; an explicit 0 is a value. The API documents truncation to the
        # second, but its own default min_backoff is 0.1 s: fractions are kept.
        durations[field] = value if message.HasField(field) else getattr(default, field)
    if durations["min_backoff"] > durations["max_backoff"]:
        raise refusals.invalid(
            "RetryConfig.minBackoff must be less than or equal to RetryConfig.maxBackoff."
        )
    return RetryPolicy(
        max_attempts=message.max_attempts or default.max_attempts,
        max_doublings=message.max_doublings or default.max_doublings,
        **durations,
    )


def settings_from(message: Any) -> tuple[RateLimits, RetryPolicy]:
    """The settings of a Queue message. Raises Refusal."""
    if message.HasField("http_target"):
        raise refusals.not_emulated("queue-level HTTP targets (Queue.http_target)")
    return (
        limits_from(message.rate_limits, RateLimits()),
        _retry_from(message.retry_config, RetryPolicy()),
    )


def updated_settings(
    queue: Queue, message: Any, paths: list[str]
) -> tuple[RateLimits, RetryPolicy]:
    """The settings of `queue` with those fields of `message` that `paths` (a field mask) names;
    an empty mask names all. Raises Refusal."""
    if not paths:
        return settings_from(message)
    merged = queue_message(queue)
    for path in paths:
        parent, _, field = path.partition(".")
        if parent not in {"rate_limits", "retry_config"}:
            if parent in {"name", "state", "purge_time"}:
                continue  # output only: ignored, as documented
            raise refusals.not_emulated(f"an update of Queue.{path}")
        target, source = getattr(merged, parent), getattr(message, parent)
        if not field:
            target.CopyFrom(source)
        elif field not in source.DESCRIPTOR.fields_by_name:
            raise refusals.invalid(f"Invalid field mask path: {path}")
        elif source.DESCRIPTOR.fields_by_name[field].message_type is None:
            setattr(target, field, getattr(source, field))
        elif source.HasField(field):
            getattr(target, field).CopyFrom(getattr(source, field))
        else:
            target.ClearField(field)
    return settings_from(merged)


def queue_message(queue: Queue) -> Any:
    """The queue as the API shows it, defaults filled in."""
    message = QueueMessage(name=queue.name, state=_RUNNING)
    limits, retry = queue.limits, queue.retry
    message.rate_limits.max_dispatches_per_second = limits.max_dispatches_per_second
    message.rate_limits.max_burst_size = limits.max_burst_size
    message.rate_limits.max_concurrent_dispatches = limits.max_concurrent_dispatches
    _set_retry(message.retry_config, retry)
    return message


def task_message(task: Task, view: int = _BASIC_VIEW) -> Any:
    """The task as the API shows it; the body only in the FULL view."""
    full = view == _FULL_VIEW
    message = TaskMessage(
        name=task.name,
        view=_FULL_VIEW if full else _BASIC_VIEW,
        dispatch_count=task.dispatch_count,
        response_count=task.response_count,
    )
    _set_time(message.schedule_time, task.schedule_time)
    message.create_time.seconds = int(task.create_time)  # documented: truncated to the second
    _set_seconds(message.dispatch_deadline, task.dispatch_deadline)
    request, given = message.http_request, task.request
    request.url = given.url
    request.http_method = _METHOD_NUMBERS[given.method]
    if given.headers:
        request.headers.update(given.headers)
    if full:
        request.body = given.body
    if given.oidc_email:
        request.oidc_token.service_account_email = given.oidc_email
        request.oidc_token.audience = given.oidc_audience
    if task.retry is not None:
        _set_retry(message.retry_config, task.retry)
    if task.first_dispatch is not None:
        _set_time(message.first_attempt.dispatch_time, task.first_dispatch)
    if task.last_attempt is not None:
        _set_attempt(message.last_attempt, task.last_attempt)
    return message


def _set_attempt(message: Any, attempt: Attempt) -> None:
    _set_time(message.schedule_time, attempt.schedule_time)
    _set_time(message.dispatch_time, attempt.dispatch_time)
    outcome = attempt.outcome
    if attempt.response_time is None or outcome is None:
        return
    _set_time(message.response_time, attempt.response_time)
    if outcome.status is None:
        code = _DEADLINE_EXCEEDED if outcome.deadline_exceeded else _UNAVAILABLE
        text = outcome.error
    else:
        code = _OK if outcome.succeeded else _CODES.get(outcome.status, _UNKNOWN)
        text = f"HTTP status code {outcome.status}"
    message.response_status.code = code
    message.response_status.message = text


def _set_retry(message: Any, retry: RetryPolicy) -> None:
    message.max_attempts = retry.max_attempts
    message.max_doublings = retry.max_doublings
    _set_seconds(message.min_backoff, retry.min_backoff)
    _set_seconds(message.max_backoff, retry.max_backoff)
    if retry.max_retry_duration:
        _set_seconds(message.max_retry_duration, retry.max_retry_duration)


def _set_time(message: Any, moment: float) -> None:
    message.seconds, micros = divmod(microseconds(moment), 1_000_000)
    message.nanos = micros * 1_000


def _set_seconds(message: Any, seconds: float) -> None:
    whole, nanos = divmod(round(seconds * 1e9), 1_000_000_000)
    message.seconds, message.nanos = whole, nanos


def _seconds(duration: Any) -> float:
    return float(duration.seconds + duration.nanos / 1e9)
