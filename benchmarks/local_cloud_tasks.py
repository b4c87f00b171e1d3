"""The Cloud Tasks emulator: creates, duplicates of a name, dispatches."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc.aio
from google.cloud import tasks_v2

from benchmarks.usage import cpu_seconds
from forkjoin_gcp.emulators.cloud_tasks_service import CloudTasksService

PARENT = "projects/bench/locations/here"
IN_FLIGHT = 64
NAMES, CREATES_OF_NAMES = 40, 4_000
BURST = 500
"""Dispatches that a queue of 500 a second begins with at once, as its limits allow."""

_SERVICE = "/google.cloud.tasks.v2.CloudTasks"
_DAY = 86_400

_CreateTask: Any = tasks_v2.CreateTaskRequest.pb()
_CreateQueue: Any = tasks_v2.CreateQueueRequest.pb()
_PauseQueue: Any = tasks_v2.PauseQueueRequest.pb()
_ResumeQueue: Any = tasks_v2.ResumeQueueRequest.pb()


@dataclass(frozen=True, slots=True)
class Created:
    """So many creates, in so many seconds, for so much of the emulator's processor time."""

    creates: int
    seconds: float
    cpu_seconds: float

    @property
    def rate(self) -> float:
        return self.creates / self.seconds

    @property
    def rate_a_core(self) -> float:
        """As many the emulator does with a core of its own."""
        return self.creates / self.cpu_seconds


@dataclass(frozen=True, slots=True)
class CloudTasksFigures:
    ready_seconds: float
    named: list[Created]
    unnamed: list[Created]
    wrong_names: int
    """Names of which not exactly one create of a hundred was granted."""
    dispatch_rate: float
    dispatch_cpu_us: float
    held_at_once: int


def measure_cloud_tasks(
    directory: Path, *, rounds: int, creates: int, dispatches: int, held: int
) -> CloudTasksFigures:
    """``rounds`` of ``creates`` with a name and without; a queue of ``dispatches`` tasks emptied
    at its default limit; ``held`` requests that are answered when all have arrived."""
    began = time.perf_counter()
    service = CloudTasksService(directory)
    with closing(contextlib.ExitStack()) as stack:
        stack.callback(service.stop)
        service.wait_ready()
        ready = time.perf_counter() - began
        return asyncio.run(_measure(service, ready, rounds, creates, dispatches, held))


async def _measure(
    service: CloudTasksService, ready: float, rounds: int, creates: int, dispatches: int, held: int
) -> CloudTasksFigures:
    async with grpc.aio.insecure_channel(service.address) as channel:
        emulator = _Emulator(service, channel)
        await emulator.new_queue("creates")
        named, unnamed = [], []
        for number in range(rounds):
            prefix = f"{number:02d}-"
            names = (f"{prefix}{n * 2654435761 % 2**32:08x}" for n in range(creates))
            named.append(await emulator.create("creates", names))
            unnamed.append(await emulator.create("creates", ("" for _ in range(creates))))
        wrong = await emulator.wrong_names()
        rate, cpu_us = await emulator.dispatch(dispatches)
        at_once = await emulator.hold(held)
    return CloudTasksFigures(ready, named, unnamed, wrong, rate, cpu_us, at_once)


class _Emulator:
    def __init__(self, service: CloudTasksService, channel: Any) -> None:
        self._service = service
        self._channel = channel
        self._create = channel.unary_unary(f"{_SERVICE}/CreateTask")

    async def new_queue(self, name: str, at_once: int = 0) -> None:
        request = _CreateQueue(parent=PARENT)
        request.queue.name = f"{PARENT}/queues/{name}"
        if at_once:
            request.queue.rate_limits.max_concurrent_dispatches = at_once
        await self._call("CreateQueue", request)

    async def create(self, queue: str, names: Iterable[str]) -> Created:
        """Tasks that are due in a day; those with an empty name are given one."""
        requests = [_task(queue, name, time.time() + _DAY) for name in names]
        left = iter(requests)

        async def one() -> None:
            for request in left:
                await self._create(request)

        used, began = cpu_seconds(self._service.process), time.perf_counter()
        await asyncio.gather(*(one() for _ in range(IN_FLIGHT)))
        seconds = time.perf_counter() - began
        return Created(len(requests), seconds, cpu_seconds(self._service.process) - used)

    async def wrong_names(self) -> int:
        await self.new_queue("names")
        granted: Counter[str] = Counter()

        async def one(name: str) -> None:
            try:
                await self._create(_task("names", name, time.time() + _DAY))
            except grpc.aio.AioRpcError as refused:
                if refused.code() is not grpc.StatusCode.ALREADY_EXISTS:
                    raise
            else:
                granted[name] += 1

        names = [f"name-{number % NAMES}" for number in range(CREATES_OF_NAMES)]
        await asyncio.gather(*map(one, names))
        return sum(granted[name] != 1 for name in set(names))

    async def dispatch(self, count: int) -> tuple[float, float]:
        """Dispatches a second, and microseconds of the emulator's processor for each."""
        await self.new_queue("fast")
        await self._call("PauseQueue", _PauseQueue(name=f"{PARENT}/queues/fast"))
        async with _target(count) as target:
            for number in range(count):
                await self._create(_task("fast", f"t{number}", 0.0, target.url))
            used, began = cpu_seconds(self._service.process), time.perf_counter()
            await self._call("ResumeQueue", _ResumeQueue(name=f"{PARENT}/queues/fast"))
            await target.all_came.wait()
            used = cpu_seconds(self._service.process) - used
        return (count - BURST) / (target.last - began), used / count * 1e6

    async def hold(self, count: int) -> int:
        await self.new_queue("held", at_once=count)
        async with _target(count, hold=True) as target:
            for number in range(count):
                await self._create(_task("held", f"t{number}", 0.0, target.url))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(target.all_came.wait(), 60)
        return target.most_open

    async def _call(self, method: str, request: Any) -> None:
        await self._channel.unary_unary(f"{_SERVICE}/{method}")(request.SerializeToString())


def _task(queue: str, name: str, at: float, url: str = "http://127.0.0.1:9/") -> bytes:
    request = _CreateTask(parent=f"{PARENT}/queues/{queue}")
    request.task.http_request.url = url
    if name:
        request.task.name = f"{PARENT}/queues/{queue}/tasks/{name}"
    if at:
        request.task.schedule_time.seconds = int(at)
    made: bytes = request.SerializeToString()
    return made


class _Target:
    """Answers 200 to whatever comes; with ``hold`` to nothing before all have come."""

    def __init__(self, count: int, *, hold: bool) -> None:
        self.url = ""
        self.came, self.last = 0, 0.0
        self.most_open = 0
        self.all_came = asyncio.Event()
        self._count = count
        self._hold = hold
        self._open: list[asyncio.Transport] = []

    def take(self, transport: asyncio.Transport) -> None:
        self.came += 1
        self.last = time.perf_counter()
        self._open.append(transport)
        self.most_open = max(self.most_open, len(self._open))
        if self.came == self._count:
            self.all_came.set()
        if not self._hold or self.all_came.is_set():
            for each in self._open:
                each.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
            self._open.clear()


class _Connection(asyncio.Protocol):
    """Requests have a head and no body."""

    def __init__(self, target: _Target) -> None:
        self._target = target
        self._head = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._head += data
        if self._head.endswith(b"\r\n\r\n"):
            self._head = b""
            self._target.take(self._transport)


@contextlib.asynccontextmanager
async def _target(count: int, *, hold: bool = False) -> AsyncIterator[_Target]:
    target = _Target(count, hold=hold)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Connection(target), "127.0.0.1", 0)
    target.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    async with server:
        yield target
