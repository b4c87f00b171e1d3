"""What the tests of the Cloud Tasks emulator share: a running one, a client of it, a target."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import pytest
from aiohttp import web
from google.api_core import exceptions
from google.cloud import tasks_v2
from google.cloud.tasks_v2.services.cloud_tasks.transports import CloudTasksGrpcAsyncIOTransport
from google.protobuf import duration_pb2, timestamp_pb2

from forkjoin_gcp.emulators.cloud_tasks import CloudTasksEmulator

PARENT = "projects/p/locations/l"
QUEUE = f"{PARENT}/queues/q"
TASK = f"{QUEUE}/tasks/t"
DAY = 86_400
# Nothing listens there, and nothing is sent: such tasks are scheduled for later.
TARGET = "http://127.0.0.1:9/"
FULL = tasks_v2.Task.View.FULL
INVOKER = "invoker@p.iam.gserviceaccount.com"
QUICK = {"min_backoff": duration_pb2.Duration(nanos=10_000_000)}
PATIENCE = 10.0

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class SettableClock:
    """Real time, plus what a test adds."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead


@contextlib.asynccontextmanager
async def running(
    **options: Any,
) -> AsyncIterator[tuple[CloudTasksEmulator, tasks_v2.CloudTasksAsyncClient]]:
    """An emulator and a client of it."""
    async with (
        CloudTasksEmulator(**options) as emulator,
        grpc.aio.insecure_channel(emulator.grpc_address) as channel,
    ):
        transport = CloudTasksGrpcAsyncIOTransport(channel=channel)
        yield emulator, tasks_v2.CloudTasksAsyncClient(transport=transport)


@contextlib.asynccontextmanager
async def with_queue(
    **options: Any,
) -> AsyncIterator[tuple[CloudTasksEmulator, tasks_v2.CloudTasksAsyncClient]]:
    async with running(**options) as (emulator, client):
        await client.create_queue(parent=PARENT, queue=tasks_v2.Queue(name=QUEUE))
        yield emulator, client


def at(moment: float) -> timestamp_pb2.Timestamp:
    return timestamp_pb2.Timestamp(seconds=int(moment), nanos=int(moment % 1 * 1e9))


def later(seconds: float = 3_600) -> timestamp_pb2.Timestamp:
    return at(time.time() + seconds)


def a_task(name: str = "", **fields: Any) -> tasks_v2.Task:
    fields.setdefault("http_request", tasks_v2.HttpRequest(url=TARGET))
    fields.setdefault("schedule_time", later())
    return tasks_v2.Task(name=name, **fields)


async def said_by(call: Any) -> tuple[str, str]:
    """Code and message of the error a call ends with."""
    with pytest.raises(exceptions.GoogleAPICallError) as raised:
        await call
    code = raised.value.grpc_status_code
    assert code is not None
    return code.name, raised.value.message


class Target:
    """An HTTP server that keeps what it is sent and answers what it is told: the next of
    `statuses`, then 200."""

    def __init__(self) -> None:
        self.url = ""
        self.statuses: list[int] = []
        self.headers: dict[str, str] = {}
        self.gate: asyncio.Event | None = None
        self.present = self.most_present = 0
        self._received: asyncio.Queue[tuple[web.Request, bytes, float]] = asyncio.Queue()

    async def handle(self, request: web.Request) -> web.Response:
        self.present += 1
        self.most_present = max(self.present, self.most_present)
        try:
            self._received.put_nowait((request, await request.read(), time.time()))
            if self.gate is not None:
                await self.gate.wait()
        finally:
            self.present -= 1
        return web.Response(
            status=self.statuses.pop(0) if self.statuses else 200, headers=self.headers
        )

    async def next(self) -> tuple[web.Request, bytes, float]:
        """The next request, its body and when it came."""
        async with asyncio.timeout(PATIENCE):
            return await self._received.get()

    async def count(self, number: int) -> None:
        """Returns when that many more requests have come."""
        for _ in range(number):
            await self.next()


@contextlib.asynccontextmanager
async def serving(handler: Handler, port: int = 0) -> AsyncIterator[str]:
    """The URL of a server with one handler for everything."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", port, backlog=2_048).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/join"
    finally:
        await runner.cleanup()


@contextlib.asynccontextmanager
async def rig(
    *,
    retry: dict[str, Any] | None = None,
    options: dict[str, Any] | None = None,
    **limits: Any,
) -> AsyncIterator[tuple[CloudTasksEmulator, tasks_v2.CloudTasksAsyncClient, Target]]:
    """An emulator with one queue, a client of it and a target."""
    target = Target()
    async with (
        serving(target.handle) as target.url,
        running(**(options or {})) as (emulator, client),
    ):
        queue = tasks_v2.Queue(name=QUEUE, rate_limits=limits, retry_config=retry or QUICK)
        await client.create_queue(parent=PARENT, queue=queue)
        yield emulator, client, target


def task_for(url: str, name: str = "", **fields: Any) -> tasks_v2.Task:
    request = {"url": url, **fields.pop("request", {})}
    return tasks_v2.Task(
        name=f"{QUEUE}/tasks/{name}" if name else "",
        http_request=tasks_v2.HttpRequest(**request),
        **fields,
    )
