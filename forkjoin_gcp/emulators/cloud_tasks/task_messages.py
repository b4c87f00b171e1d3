"""Between the API's Task and the emulator's, with the API's own validation.

Works on the raw protobuf classes below the client's proto-plus ones: a create costs a tenth.
"""

from __future__ import annotations

import re
import secrets
from typing import Any
from urllib.parse import urlsplit

from google.cloud import tasks_v2

from . import refusals
from .pacing import RetryPolicy
from .queues import Attempt, Task
from .resource_names import split_task_name_of
from .retry_messages import retry_from, set_retry
from .targets import DEFAULT_SCOPE, METHODS_WITH_BODY, Authorization, HttpRequest
from .times import moment_of, seconds_of, set_duration, set_time, shown

TaskMessage = tasks_v2.Task.pb()

MAX_TASK_BYTES = 1_048_576
MAX_HEADER_BYTES = 80 * 1_024
MAX_URL_CHARACTERS = 2_083
MAX_SCHEDULE_AHEAD = 30 * 86_400.0
MIN_DISPATCH_DEADLINE = 15.0
MAX_DISPATCH_DEADLINE = 1_800.0
DEFAULT_DISPATCH_DEADLINE = 600.0
_ALLOWANCE = 1.0  # a client that asks for exactly 30 days from its own clock is not refused

# proto-plus enums are enum.IntEnum at run time, which the type checker cannot see.
_METHOD_ENUM: Any = tasks_v2.HttpMethod
METHODS: dict[int, str] = {int(method): method.name for method in _METHOD_ENUM if method}
METHOD_NUMBERS = {name: number for number, name in METHODS.items()}
_UNSPECIFIED_VIEW = int(tasks_v2.Task.View.VIEW_UNSPECIFIED)
_BASIC_VIEW = int(tasks_v2.Task.View.BASIC)
FULL_VIEW = int(tasks_v2.Task.View.FULL)

_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HEADER_VALUE = re.compile(r"[^\x00-\x08\x0a-\x1f\x7f]*")
_UNFIT_FOR_URL = re.compile(r"[\s\x00-\x1f\x7f]")

# google.rpc.Code of the HTTP answers that have one; others are UNKNOWN.
_OK, _UNKNOWN, _DEADLINE_EXCEEDED, _UNAVAILABLE = 0, 2, 4, 14
_CODES = {400: 3, 401: 16, 403: 7, 404: 5, 409: 10, 429: 8, 499: 1, 500: 13, 501: 12}
_CODES |= {503: 14, 504: 4}


def task_from(message: Any, parent: str, now: float) -> Task:
    """A new task from the one in a CreateTask request, under a server-made id if it has no name.

    Raises Refusal INVALID_ARGUMENT, or UNIMPLEMENTED for what only the real service has.
    """
    if message.name:
        _, task_id = split_task_name_of(parent, message.name)
    else:
        task_id = str(secrets.randbits(63))
    if message.ByteSize() > MAX_TASK_BYTES:
        raise refusals.invalid("Task size too large")
    own_retry = message.HasField("retry_config")
    return Task(
        name=f"{parent}/tasks/{task_id}",
        task_id=task_id,
        request=_request_from(message),
        create_time=now,
        schedule_time=_schedule_time_from(message, now),
        dispatch_deadline=_dispatch_deadline_from(message),
        retry=retry_from(message.retry_config, RetryPolicy()) if own_retry else None,
    )


def check_view(view: int) -> int:
    """The view to answer in. Raises Refusal INVALID_ARGUMENT."""
    if view not in {_UNSPECIFIED_VIEW, _BASIC_VIEW, FULL_VIEW}:
        raise refusals.invalid(f"The response view {view} does not exist.")
    return view or _BASIC_VIEW


def check_headers(headers: dict[str, str], owner: str) -> dict[str, str]:
    """The headers themselves. Raises Refusal INVALID_ARGUMENT for what HTTP cannot send, and
    from 80 KB."""
    size = 0
    for name, value in headers.items():
        if not _HEADER_NAME.fullmatch(name):
            raise refusals.invalid(f"{owner} has an invalid header name: {name[:200]!r}")
        if not _HEADER_VALUE.fullmatch(value):
            raise refusals.invalid(f"{owner} has an invalid value of the header {name}.")
        size += len(name) + len(value.encode())
    if size >= MAX_HEADER_BYTES:
        raise refusals.invalid(f"The size of {owner} must be less than 80KB.")
    return headers


def authorization_from(message: Any) -> Authorization | None:
    """Of a message with the fields oauth_token and oidc_token. Raises Refusal INVALID_ARGUMENT."""
    kind = message.WhichOneof("authorization_header")
    if kind is None:
        return None
    oauth = kind == "oauth_token"
    token = message.oauth_token if oauth else message.oidc_token
    if not token.service_account_email:
        name = "OAuthToken" if oauth else "OidcToken"
        raise refusals.invalid(f"{name}.service_account_email is required.")
    purpose = token.scope if oauth else token.audience
    return Authorization(token.service_account_email, purpose, oauth)


def set_authorization(message: Any, authorization: Authorization | None) -> None:
    """Writes it into a message with the fields oauth_token and oidc_token."""
    if authorization is None:
        return
    if authorization.oauth:
        message.oauth_token.service_account_email = authorization.email
        message.oauth_token.scope = authorization.purpose or DEFAULT_SCOPE
    else:
        message.oidc_token.service_account_email = authorization.email
        message.oidc_token.audience = authorization.purpose


def _request_from(message: Any) -> HttpRequest:
    kind = message.WhichOneof("message_type")
    if kind == "app_engine_http_request":
        raise refusals.not_emulated("App Engine targets (Task.app_engine_http_request)")
    if kind is None:
        raise refusals.invalid("Task.http_request or Task.app_engine_http_request must be set.")
    request = message.http_request
    _check_url(request.url)
    if request.http_method and request.http_method not in METHODS:
        raise refusals.invalid(f"The HTTP method {request.http_method} does not exist.")
    method = METHODS.get(request.http_method, "POST")
    if request.body and method not in METHODS_WITH_BODY:
        raise refusals.invalid("HTTP body is only allowed with the methods POST, PUT and PATCH.")
    return HttpRequest(
        url=request.url,
        method=method,
        headers=check_headers(dict(request.headers), "HttpRequest.headers"),
        body=request.body,
        authorization=authorization_from(request),
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
    if not valid or len(url) > MAX_URL_CHARACTERS or _UNFIT_FOR_URL.search(url):
        raise refusals.invalid(f"HttpRequest.url is not a valid URL: {url[:200]!r}")


def _schedule_time_from(message: Any, now: float) -> float:
    if not message.HasField("schedule_time"):
        return now
    asked = moment_of(message.schedule_time, "Task.scheduleTime")
    if asked > now + MAX_SCHEDULE_AHEAD + _ALLOWANCE:
        raise refusals.invalid(
            f"The Task.scheduleTime, {shown(asked)}, is too far in the future. Schedule time must "
            "be no more than 720h in the future."
        )
    return max(now, asked)  # in the past means now


def _dispatch_deadline_from(message: Any) -> float:
    if not message.HasField("dispatch_deadline"):
        return DEFAULT_DISPATCH_DEADLINE
    deadline = seconds_of(message.dispatch_deadline, "Task.dispatchDeadline")
    if not MIN_DISPATCH_DEADLINE <= deadline <= MAX_DISPATCH_DEADLINE:
        raise refusals.invalid("Task.dispatchDeadline must be between [15s, 30m].")
    return deadline


def task_message(task: Task, view: int = _BASIC_VIEW) -> Any:
    """The task as the API shows it; the body only in the FULL view."""
    full = view == FULL_VIEW
    message = TaskMessage(
        name=task.name,
        view=FULL_VIEW if full else _BASIC_VIEW,
        dispatch_count=task.dispatch_count,
        response_count=task.response_count,
    )
    set_time(message.schedule_time, task.schedule_time)
    message.create_time.seconds = int(task.create_time)  # documented: truncated to the second
    set_duration(message.dispatch_deadline, task.dispatch_deadline)
    request, given = message.http_request, task.request
    request.url = given.url
    request.http_method = METHOD_NUMBERS[given.method]
    if given.headers:
        request.headers.update(given.headers)
    if full:
        request.body = given.body
    set_authorization(request, given.authorization)
    if task.retry is not None:
        set_retry(message.retry_config, task.retry)
    if task.first_dispatch is not None:
        set_time(message.first_attempt.dispatch_time, task.first_dispatch)
    if task.last_attempt is not None:
        _set_attempt(message.last_attempt, task.last_attempt)
    return message


def _set_attempt(message: Any, attempt: Attempt) -> None:
    set_time(message.schedule_time, attempt.schedule_time)
    set_time(message.dispatch_time, attempt.dispatch_time)
    outcome = attempt.outcome
    if attempt.response_time is None or outcome is None:
        return
    set_time(message.response_time, attempt.response_time)
    if outcome.status is None:
        code = _DEADLINE_EXCEEDED if outcome.deadline_exceeded else _UNAVAILABLE
        text = outcome.error
    else:
        code = _OK if outcome.succeeded else _CODES.get(outcome.status, _UNKNOWN)
        text = f"HTTP status code {outcome.status}"
    message.response_status.code = code
    message.response_status.message = text
