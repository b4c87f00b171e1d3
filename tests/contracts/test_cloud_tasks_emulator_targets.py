"""What the Cloud Tasks emulator makes of targets that are down, slow, silent or answer rubbish."""

import asyncio
import contextlib
import resource
import time
from collections.abc import AsyncIterator, Iterator

import pytest
from aiohttp import web
from google.cloud import tasks_v2

from forkjoin_gcp.emulators.cloud_tasks.dispatcher import Dispatcher
from forkjoin_gcp.emulators.cloud_tasks.faults import Faults
from forkjoin_gcp.emulators.cloud_tasks.ledger import Ledger
from forkjoin_gcp.emulators.cloud_tasks.pacing import RetryPolicy
from forkjoin_gcp.emulators.cloud_tasks.queues import QueueSettings, Task
from forkjoin_gcp.emulators.cloud_tasks.sender import Sender
from forkjoin_gcp.emulators.cloud_tasks.state import CloudTasksState
from forkjoin_gcp.emulators.cloud_tasks.targets import HttpRequest
from forkjoin_gcp.emulators.cloud_tasks.tokens import TokenSigner

from .cloud_tasks import (
    PARENT,
    PATIENCE,
    QUEUE,
    QUICK,
    Target,
    rig,
    serving,
    task_for,
)


@pytest.fixture
def many_files() -> Iterator[None]:
    """Both ends of every connection are in this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 4_096), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("many_files")
def test_a_thousand_are_in_flight_at_once() -> None:
    async def scenario() -> None:
        async with rig() as (emulator, client, target):
            target.gate = asyncio.Event()
            names = [f"{QUEUE}-{number}" for number in range(10)]
            for name in names:
                await client.create_queue(parent=PARENT, queue=tasks_v2.Queue(name=name))
            task = task_for(target.url)
            await asyncio.gather(
                *(client.create_task(parent=name, task=task) for name in names for _ in range(100))
            )
            await target.count(1_000)
            assert target.most_present == 1_000
            target.gate.set()
            await emulator.quiet()
            assert emulator.stats()["responses"] == {"200": 1_000}

    asyncio.run(scenario())


class RawTarget:
    """A target that reads the head of a request, sends `answer` and hangs up; with None it hangs
    up at once."""

    def __init__(self, answer: bytes | None) -> None:
        self._answer = answer
        self._calls: asyncio.Queue[None] = asyncio.Queue()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._answer is not None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(self._answer)
            with contextlib.suppress(ConnectionError):
                await writer.drain()
        writer.close()
        self._calls.put_nowait(None)

    async def count(self, number: int) -> None:
        """Returns when that many more calls have come."""
        async with asyncio.timeout(PATIENCE):
            for _ in range(number):
                await self._calls.get()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[int]:
        """Serves; the port."""
        server = await asyncio.start_server(self.serve, "127.0.0.1", 0)
        async with server:
            yield server.sockets[0].getsockname()[1]


@pytest.mark.parametrize(
    "answer",
    [
        None,
        b"",
        b"\x00\xff rubbish \r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nbroken off",
        b"HTTP/1.1 2000 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X-Long: " + b"x" * 100_000 + b"\r\n\r\n",
    ],
)
def test_rubbish_is_a_failed_attempt_and_the_emulator_goes_on(answer: bytes | None) -> None:
    async def scenario() -> None:
        async with rig(retry={"max_attempts": 2, **QUICK}) as (emulator, client, target):
            raw = RawTarget(answer)
            async with raw.running() as port:
                task = task_for(f"http://127.0.0.1:{port}/", "bad")
                await client.create_task(parent=QUEUE, task=task)
                await raw.count(2)
                await emulator.quiet()
            stats = emulator.stats()
            assert stats["exhausted"] == 1
            assert stats["responses"] == {"error": 2}
            assert stats["recent"][0]["error"]
            await client.create_task(parent=QUEUE, task=task_for(target.url, "good"))
            await target.next()

    asyncio.run(scenario())


def test_a_target_that_comes_up_later_gets_its_task() -> None:
    async def scenario() -> None:
        async with rig() as (_, client, target):
            raw = RawTarget(None)
            async with raw.running() as port:
                task = task_for(f"http://127.0.0.1:{port}/", "t")
                await client.create_task(parent=QUEUE, task=task)
                await raw.count(2)
            # Now its port refuses connections.
            async with serving(target.handle, port):
                request, _, _ = await target.next()
            assert int(request.headers["X-CloudTasks-TaskRetryCount"]) >= 2
            # Nobody answered the tries before.
            assert request.headers["X-CloudTasks-TaskExecutionCount"] == "0"

    asyncio.run(scenario())


def test_a_process_that_dies_of_a_task_gets_it_again() -> None:
    """On a connection that is in use already, as a request is not sent anew without being counted:
    the target has seen it, and may have died of it."""

    async def scenario() -> None:
        deaths = {("dies", "0"), ("dies", "1")}
        calls: asyncio.Queue[list[str]] = asyncio.Queue()

        async def handle(request: web.Request) -> web.Response:
            names = ("TaskName", "TaskRetryCount", "TaskExecutionCount", "TaskPreviousResponse")
            told = [request.headers.get(f"X-CloudTasks-{name}", "") for name in names]
            if (told[0], told[1]) in deaths:
                assert request.transport is not None
                request.transport.abort()
            calls.put_nowait(told)
            return web.Response()

        async with (
            serving(handle) as url,
            rig() as (emulator, client, _),
            asyncio.timeout(PATIENCE),
        ):
            await client.create_task(parent=QUEUE, task=task_for(url, "lives"))
            assert await calls.get() == ["lives", "0", "0", ""]
            await emulator.quiet()
            await client.create_task(parent=QUEUE, task=task_for(url, "dies"))
            for count in ("0", "1", "2"):
                assert await calls.get() == ["dies", count, "0", ""]
            await emulator.quiet()
            stats = emulator.stats()
            assert (stats["retried"], stats["completed"]) == (2, 2)
            assert stats["responses"] == {"200": 2, "error": 2}

    asyncio.run(scenario())


def test_an_answer_after_the_dispatch_deadline_is_none() -> None:
    """Below the API, which takes no deadline under 15 s."""

    async def scenario() -> None:
        target = Target()
        target.gate = asyncio.Event()
        state = CloudTasksState(time.time)
        ledger = Ledger()
        signer = TokenSigner(time.time)
        queue = state.create_queue(QUEUE, QueueSettings(retry=RetryPolicy(max_attempts=1)))
        faults = Faults(state.forget_tombstones_after)
        async with (
            serving(target.handle) as url,
            Sender(signer) as sender,
            Dispatcher(state, sender, ledger, faults) as dispatcher,
        ):
            now = time.time()
            task = Task(f"{QUEUE}/tasks/t", "t", HttpRequest(url), now, now, 0.05)
            queue.add(task, now)
            dispatcher.wake(queue)
            await target.next()
            await dispatcher.quiet()
            assert ledger.counters()["responses"] == {"error": 1}
            assert task.last_attempt is not None
            assert task.last_attempt.outcome is not None
            assert task.last_attempt.outcome.deadline_exceeded
            target.gate.set()

    asyncio.run(scenario())


def test_the_emulator_ends_while_targets_are_silent() -> None:
    async def scenario() -> float:
        async with rig() as (emulator, client, target):
            target.gate = asyncio.Event()
            await client.create_task(parent=QUEUE, task=task_for(target.url))
            await target.next()
            started = time.monotonic()
            await emulator.__aexit__(None, None, None)
            took = time.monotonic() - started
            target.gate.set()
            return took

    assert asyncio.run(scenario()) < 2
