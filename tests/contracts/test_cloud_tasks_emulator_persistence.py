"""What the Cloud Tasks emulator keeps on disk, over restarts and kills."""

import asyncio
import contextlib
import json
import os
import signal
import sqlite3
import sys
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.api_core import exceptions
from google.cloud import tasks_v2
from google.cloud.tasks_v2.services.cloud_tasks.transports import CloudTasksGrpcAsyncIOTransport

from forkjoin_gcp.emulators.cloud_tasks import CloudTasksEmulator
from forkjoin_gcp.emulators.cloud_tasks.sqlite_journal import FILE_NAME
from forkjoin_gcp.emulators.cloud_tasks_service import CloudTasksService
from forkjoin_gcp.emulators.processes import free_port

from .cloud_tasks import (
    FULL,
    INVOKER,
    PARENT,
    QUEUE,
    TASK,
    Target,
    a_task,
    rig,
    running,
    said_by,
    serving,
    task_for,
    with_queue,
)


async def shown(
    emulator: CloudTasksEmulator, client: tasks_v2.CloudTasksAsyncClient, operation: str
) -> tuple[Any, ...]:
    signer = emulator.state.journal.secret("signing key")  # type: ignore[attr-defined]
    return (
        await client.get_queue(name=QUEUE),
        await client.get_task({"name": TASK, "response_view": FULL}),
        await client.get_operation({"name": operation}),
        signer,
    )


def test_everything_is_there_again_after_a_restart(tmp_path: Path) -> None:
    async def first() -> tuple[Any, ...]:
        async with running(data=tmp_path) as (emulator, client):
            queue = tasks_v2.Queue(
                name=QUEUE,
                rate_limits={"max_dispatches_per_second": 7},
                retry_config={"max_attempts": 3},
                http_target={"uri_override": {"host": "x.example", "port": 0}},
                stackdriver_logging_config={"sampling_ratio": 0.5},
            )
            await client.create_queue(parent=PARENT, queue=queue)
            await client.purge_queue(name=QUEUE)
            await client.pause_queue(name=QUEUE)
            request = tasks_v2.HttpRequest(
                url="https://a.example/b",
                http_method="PUT",
                headers={"X-mIxEd": "é"},
                body=b"\x00\xff",
                oidc_token={"service_account_email": INVOKER, "audience": "c"},
            )
            retry = {"max_attempts": 5, "min_backoff": {"seconds": 2}}
            task = a_task(TASK, http_request=request, retry_config=retry)
            await client.create_task(parent=QUEUE, task=task)
            await client.create_task(parent=QUEUE, task=a_task(TASK + "2"))
            await client.delete_task(name=TASK + "2")
            other = tasks_v2.Queue(name=QUEUE + "2")
            await client.create_queue(parent=PARENT, queue=other)
            await client.delete_queue(name=other.name)
            batch = {"parent": QUEUE, "names": [TASK + "2"], "request_id": "once"}
            operation = await client.batch_delete_tasks(batch)
            return await shown(emulator, client, operation.operation.name)

    async def second(before: tuple[Any, ...]) -> None:
        async with running(data=tmp_path) as (emulator, client):
            assert await shown(emulator, client, before[2].name) == before
            for name in (TASK, TASK + "2"):
                code, _ = await said_by(client.create_task(parent=QUEUE, task=a_task(name)))
                assert code == "ALREADY_EXISTS"
            deleted = tasks_v2.Queue(name=QUEUE + "2")
            code, _ = await said_by(client.create_queue(parent=PARENT, queue=deleted))
            assert code == "FAILED_PRECONDITION"
            await client.delete_queue(name=QUEUE)

    async def third() -> None:
        async with running(data=tmp_path) as (_, client):
            assert (await said_by(client.get_queue(name=QUEUE)))[0] == "NOT_FOUND"

    before = asyncio.run(first())
    asyncio.run(second(before))
    asyncio.run(third())


def test_attempts_go_on_where_they_were(tmp_path: Path) -> None:
    async def scenario() -> None:
        options = {"data": tmp_path}
        retry = {"min_backoff": {"seconds": 60}}
        async with rig(retry=retry, options=options) as (emulator, client, target):
            target.statuses = [404]
            await client.create_task(parent=QUEUE, task=task_for(target.url, "t"))
            await target.next()
            await emulator.quiet()
            before = await client.get_task(name=TASK)
            target.gate = asyncio.Event()
            await client.create_task(parent=QUEUE, task=task_for(target.url, "in-flight"))
            await target.next()
            await emulator.__aexit__(None, None, None)
            target.gate.set()
            target.gate = None
            async with running(**options) as (again, client):
                assert await client.get_task(name=TASK) == before
                await client.run_task(name=TASK)
                seen = {}
                for _ in range(2):
                    headers = (await target.next())[0].headers
                    seen[headers["X-CloudTasks-TaskName"]] = [
                        headers["X-CloudTasks-TaskRetryCount"],
                        headers["X-CloudTasks-TaskExecutionCount"],
                        headers.get("X-CloudTasks-TaskPreviousResponse"),
                    ]
                # What was in flight is sent again, and counted as sent twice.
                assert seen == {"t": ["1", "1", "404"], "in-flight": ["1", "0", None]}
                await again.quiet()
            async with running(**options) as (_, client):
                with pytest.raises(exceptions.NotFound, match="existed recently"):
                    await client.get_task(name=TASK)

    asyncio.run(scenario())


def test_one_emulator_at_a_time_uses_the_data(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with with_queue(data=tmp_path):
            with pytest.raises(OSError, match="locked"):
                await CloudTasksEmulator(data=tmp_path).__aenter__()
        with contextlib.closing(sqlite3.connect(tmp_path / FILE_NAME)) as database:
            database.execute("PRAGMA user_version = 99")
        with pytest.raises(OSError, match="it has version 99 of the data"):
            await CloudTasksEmulator(data=tmp_path).__aenter__()
        (tmp_path / FILE_NAME).write_bytes(b"no database" * 1_000)
        with pytest.raises(OSError, match="not a database"):
            await CloudTasksEmulator(data=tmp_path).__aenter__()

    asyncio.run(scenario())


def test_no_call_succeeds_that_cannot_be_kept(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with with_queue(data=tmp_path) as (emulator, client):
            database = emulator.state.journal._database  # type: ignore[attr-defined]
            database.execute("PRAGMA query_only = ON")
            for _ in range(2):
                code, said = await said_by(client.create_task(parent=QUEUE, task=a_task()))
                assert (code, "cannot write" in said) == ("INTERNAL", True)

    asyncio.run(scenario())


@contextlib.asynccontextmanager
async def process(data: Path) -> AsyncIterator[tuple[int, tasks_v2.CloudTasksAsyncClient]]:
    """An emulator as a process that is killed in the end: its id, and a client of it."""
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "forkjoin_gcp.emulators.cloud_tasks", "--data", str(data)),
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert child.stdout is not None
        addresses = json.loads(await child.stdout.readline())
        async with grpc.aio.insecure_channel(addresses["grpc_address"]) as channel:
            transport = CloudTasksGrpcAsyncIOTransport(channel=channel)
            yield child.pid, tasks_v2.CloudTasksAsyncClient(transport=transport)
    finally:
        with contextlib.suppress(ProcessLookupError):
            child.kill()
        await child.wait()


def test_a_service_that_was_killed_is_found_again_where_it_was(tmp_path: Path) -> None:
    port = free_port()

    async def make_queue(address: str) -> None:
        async with grpc.aio.insecure_channel(address) as channel:
            transport = CloudTasksGrpcAsyncIOTransport(channel=channel)
            client = tasks_v2.CloudTasksAsyncClient(transport=transport)
            await client.create_queue(parent=PARENT, queue=tasks_v2.Queue(name=QUEUE))

    certificates = []
    for killed in (True, False):
        service = CloudTasksService(tmp_path, data=tmp_path, port=port)
        try:
            service.wait_ready()
            assert service.address == f"127.0.0.1:{port}"
            with urllib.request.urlopen(service.certs_url) as answer:
                certificates.append(json.load(answer))
            if killed:
                asyncio.run(make_queue(service.address))
                os.killpg(service.process.pid, signal.SIGKILL)
            else:
                with pytest.raises(exceptions.AlreadyExists):
                    asyncio.run(make_queue(service.address))
        finally:
            service.stop()
    assert certificates[0] == certificates[1]


class Callers:
    """50 callers at a time that create and delete tasks until there is nobody to answer.

    By the number at the end of its name modulo 3 a task goes out at once (0), is deleted (1) or
    waits (2).
    """

    def __init__(self, client: tasks_v2.CloudTasksAsyncClient, url: str) -> None:
        self._client = client
        self._request = tasks_v2.HttpRequest(url=url)
        self.created: set[str] = set()
        """The names of which a caller was told that they are created."""
        self.deleted: set[str] = set()
        self.enough = asyncio.Event()

    async def run(self) -> None:
        callers = [asyncio.create_task(self._call(number)) for number in range(50)]
        ends = await asyncio.gather(*callers, return_exceptions=True)
        assert all(isinstance(end, exceptions.GoogleAPICallError) for end in ends), ends

    async def _call(self, number: int) -> None:
        for turn in range(10_000):
            name = f"{QUEUE}/tasks/{number}-{turn}"
            task = a_task(name, http_request=self._request)
            if turn % 3 == 0:
                task.schedule_time = None
            await self._client.create_task(parent=QUEUE, task=task)
            self.created.add(name)
            if turn % 3 == 1:
                await self._client.delete_task(name=name, retry=None)
                self.deleted.add(name)
            if len(self.created) >= 500:
                self.enough.set()

    def created_of_kind(self, kind: int) -> set[str]:
        return {name for name in self.created if int(name.rpartition("-")[2]) % 3 == kind}


async def still_free(client: tasks_v2.CloudTasksAsyncClient, names: set[str]) -> list[str]:
    """Those of the names under which a task can be created."""
    found = []
    for name in names:
        try:
            await client.create_task(parent=QUEUE, task=a_task(name))
            found.append(name)
        except exceptions.AlreadyExists:
            pass
    return found


def test_a_kill_under_load_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    async def scenario() -> None:
        target = Target()
        async with serving(target.handle) as url:
            async with process(tmp_path) as (pid, client):
                await client.create_queue(parent=PARENT, queue=tasks_v2.Queue(name=QUEUE))
                callers = Callers(client, url)
                loading = asyncio.create_task(callers.run())
                await callers.enough.wait()
                os.kill(pid, signal.SIGKILL)
                await loading
            async with process(tmp_path) as (_, client):
                pager = await client.list_tasks(parent=QUEUE)
                alive = {task.name async for task in pager}
                assert callers.created_of_kind(2) <= alive
                assert callers.deleted
                assert not callers.deleted & alive  # no name comes back to life
                assert await still_free(client, callers.created) == []
                # What was to go out at once has gone before the kill or goes after it.
                due = callers.created_of_kind(0)
                while due:
                    request, _, _ = await target.next()
                    due.discard(f"{QUEUE}/tasks/{request.headers['X-CloudTasks-TaskName']}")

    asyncio.run(scenario())
