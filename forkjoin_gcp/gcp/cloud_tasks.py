"""TaskScheduler on Cloud Tasks: named HTTP tasks that carry an OIDC token."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import grpc.aio
from google.api_core import exceptions as google
from google.auth.exceptions import GoogleAuthError
from google.cloud.tasks_v2 import CloudTasksAsyncClient, CreateTaskRequest
from google.cloud.tasks_v2.services.cloud_tasks.transports import CloudTasksGrpcAsyncIOTransport
from tenacity import (
    AsyncRetrying,
    retry_if_exception_type,
    stop_after_attempt,
    wait_random_exponential,
)

from forkjoin_gcp.config import LOCAL_HINT, VARIABLES, Services
from forkjoin_gcp.errors import (
    ConfigurationError,
    SchedulerRefused,
    SchedulerUnavailable,
    TaskQueueNotFound,
)
from forkjoin_gcp.ports import Counters, TaskRequest

TRY_SECONDS = 3.0
"""Limit of one create: the client's own default of 20 s is longer than a reader waits for us."""

TRIES = 3
FIRST_WAIT = 0.1
"""Seconds, at most, before the second try."""

_PASSING = (
    google.ServiceUnavailable,
    google.DeadlineExceeded,
    google.TooManyRequests,
    google.InternalServerError,
    google.Unknown,
    google.Aborted,
    google.Cancelled,
)

_again = AsyncRetrying(
    stop=stop_after_attempt(TRIES - 1),
    wait=wait_random_exponential(2 * FIRST_WAIT, max=1),
    retry=retry_if_exception_type(_PASSING),
    reraise=True,
)


class CloudTasksScheduler:
    """Creates tasks in ``projects/P/locations/L/queues/Q``, aimed at ``services.join_url``.

    A name that exists, or did lately, is not an error: ``create`` says False. Calls are counted as
    ``cloud_tasks.create_task``. Must be made on the event loop that uses it.
    """

    def __init__(self, services: Services, counters: Counters) -> None:
        self._counters = counters
        self._parent = (
            f"projects/{services.need('project')}/locations/{services.need('location')}/queues/"
        )
        self._url = services.need("join_url")
        self._account = services.invoker or ""
        if not self._account and not services.allow_unauthenticated:
            services.need("invoker")
        self._audience = services.token_audience()
        self._client = connect_client(services)

    async def create(self, task: TaskRequest) -> bool:
        request = self._request(task)
        try:
            await self._call_until_answered(request)
        except google.AlreadyExists:
            return False
        except google.NotFound:
            raise TaskQueueNotFound(
                f"Cloud Tasks queue {self._parent}{task.queue} does not exist: create it "
                f"(a queue with shards=N needs name-1 to name-N), or correct "
                f"{VARIABLES['project']} or {VARIABLES['location']}. A queue just created may take "
                "a minute to be seen"
            ) from None
        except _PASSING as error:
            raise SchedulerUnavailable(
                f"Cloud Tasks did not create a task in {task.queue}: {error.message}. Check "
                f"{VARIABLES['cloud_tasks_emulator_host']}, if set. {LOCAL_HINT}"
            ) from error
        except google.GoogleAPICallError as error:
            raise SchedulerRefused(
                f"Cloud Tasks refused a task in {task.queue}: {error.message}"
            ) from error
        return True

    async def close(self) -> None:
        transport: Any = self._client.transport
        await transport.close()

    async def _call_until_answered(self, request: CreateTaskRequest) -> None:
        try:
            # Nearly always the only try: the machinery of further ones costs as much as a call.
            await self._call(request)
        except _PASSING:
            await asyncio.sleep(random.uniform(0, FIRST_WAIT))
            # A copy: what a retrying object keeps of a call is not for two at once. And no lambda:
            # tenacity awaits only what it sees to be a coroutine function.
            await _again.copy()(self._call, request)

    async def _call(self, request: CreateTaskRequest) -> None:
        self._counters["cloud_tasks.create_task"] += 1
        await self._client.create_task(request, timeout=TRY_SECONDS)

    def _request(self, task: TaskRequest) -> CreateTaskRequest:
        # Raw protobuf: building the same through the wrapper classes costs several times as much.
        raw: Any = CreateTaskRequest.pb(CreateTaskRequest())
        raw.parent = self._parent + task.queue
        raw.task.name = f"{raw.parent}/tasks/{task.task_id}"
        if task.at is not None:
            raw.task.schedule_time.FromMicroseconds(round(task.at * 1e6))
        raw.task.dispatch_deadline.FromMicroseconds(round(task.dispatch_deadline * 1e6))
        raw.task.http_request.url = self._url
        raw.task.http_request.headers["Content-Type"] = "application/json"
        raw.task.http_request.body = task.body
        if self._account:
            raw.task.http_request.oidc_token.service_account_email = self._account
            raw.task.http_request.oidc_token.audience = self._audience
        request: CreateTaskRequest = CreateTaskRequest.wrap(raw)
        return request


def connect_client(services: Services) -> CloudTasksAsyncClient:
    """A client of Cloud Tasks or of its emulator, for the loop that calls this.

    Raises ConfigurationError where there are no credentials.
    """
    host = services.cloud_tasks_emulator_host
    if host is None:
        try:
            return CloudTasksAsyncClient()
        except GoogleAuthError as error:
            raise ConfigurationError(
                f"no credentials for Cloud Tasks: {error}. {LOCAL_HINT}"
            ) from error
    channel = grpc.aio.insecure_channel(host)
    return CloudTasksAsyncClient(transport=CloudTasksGrpcAsyncIOTransport(channel=channel))
