"""The Cloud Tasks emulator as the unmodified google-cloud-tasks clients see it: codes, messages,
names, times, queue settings."""

import asyncio
import datetime
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.api_core import exceptions
from google.cloud import tasks_v2
from google.cloud.tasks_v2.services.cloud_tasks.transports import (
    CloudTasksGrpcTransport,
)
from google.protobuf import duration_pb2, timestamp_pb2

from forkjoin_gcp.emulators.cloud_tasks import CloudTasksEmulator

from .cloud_tasks import (
    DAY,
    FULL,
    PARENT,
    QUEUE,
    TARGET,
    TASK,
    SettableClock,
    a_task,
    later,
    said_by,
    with_queue,
)


@pytest.fixture
def sync_client() -> Iterator[tasks_v2.CloudTasksClient]:
    """The blocking client, of an emulator on a loop of its own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    emulator = CloudTasksEmulator()
    try:
        asyncio.run_coroutine_threadsafe(emulator.__aenter__(), loop).result(10)
        with grpc.insecure_channel(emulator.grpc_address) as channel:
            yield tasks_v2.CloudTasksClient(transport=CloudTasksGrpcTransport(channel=channel))
    finally:
        ending = emulator.__aexit__(None, None, None)
        asyncio.run_coroutine_threadsafe(ending, loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


def test_the_blocking_client_makes_a_queue_and_tasks(
    sync_client: tasks_v2.CloudTasksClient,
) -> None:
    sync_client.create_queue(parent=PARENT, queue=tasks_v2.Queue(name=QUEUE))
    sync_client.create_task(parent=QUEUE, task=a_task(TASK))
    with pytest.raises(exceptions.AlreadyExists, match="Requested entity already exists"):
        sync_client.create_task(parent=QUEUE, task=a_task(TASK))
    assert [task.name for task in sync_client.list_tasks(parent=QUEUE)] == [TASK]
    again = tasks_v2.CreateTaskRequest(parent=QUEUE, task=a_task(f"{TASK}-2"))
    batch = sync_client.batch_create_tasks(parent=QUEUE, requests=[again])
    assert [task.name for task in batch.result(10).tasks] == [f"{TASK}-2"]
    sync_client.delete_task(name=TASK)
    with pytest.raises(exceptions.NotFound, match="existed recently"):
        sync_client.get_task(name=TASK)


def test_a_created_task_comes_back_complete() -> None:
    async def scenario() -> None:
        async with with_queue() as (_, client):
            before = int(time.time())
            when = timestamp_pb2.Timestamp(seconds=before + 60, nanos=123_456_789)
            request = tasks_v2.HttpRequest(
                url=TARGET,
                headers={"X-mIxEd": "as given"},
                body=b"\x00body",
                oidc_token=tasks_v2.OidcToken(service_account_email="a@b", audience="c"),
            )
            task = a_task(
                TASK,
                http_request=request,
                schedule_time=when,
                dispatch_deadline=duration_pb2.Duration(seconds=15, nanos=500_000_000),
            )
            created = await client.create_task(parent=QUEUE, task=task)
            assert created.name == TASK
            # Truncated to the microsecond, as documented.
            assert created.schedule_time.timestamp_pb().nanos == 123_456_000
            assert before <= created.create_time.timestamp() <= time.time()
            assert created.create_time.nanosecond == 0
            assert created.dispatch_deadline == datetime.timedelta(seconds=15.5)
            assert dict(created.http_request.headers) == {"X-mIxEd": "as given"}
            assert created.http_request.http_method == tasks_v2.HttpMethod.POST
            assert created.http_request.oidc_token.audience == "c"
            assert created.view == tasks_v2.Task.View.BASIC
            assert created.http_request.body == b""
            full = await client.get_task(request={"name": TASK, "response_view": FULL})
            assert full.http_request.body == b"\x00body"

    asyncio.run(scenario())


def test_a_task_without_a_name_gets_one_and_without_a_time_goes_now() -> None:
    async def scenario() -> None:
        async with with_queue() as (_, client):
            unnamed = tasks_v2.Task(http_request=tasks_v2.HttpRequest(url=TARGET))
            names = set()
            for _ in range(20):
                created = await client.create_task(parent=QUEUE, task=unnamed)
                assert re.fullmatch(re.escape(QUEUE) + r"/tasks/\d+", created.name)
                assert abs(created.schedule_time.timestamp() - time.time()) < 5
                names.add(created.name)
            assert len(names) == 20

    asyncio.run(scenario())


def test_a_time_in_the_past_means_now() -> None:
    async def scenario() -> None:
        async with with_queue() as (_, client):
            past = a_task(schedule_time=later(-3_600))
            created = await client.create_task(parent=QUEUE, task=past)
            assert abs(created.schedule_time.timestamp() - time.time()) < 5

    asyncio.run(scenario())


def test_names_stay_taken_for_a_day_after_a_deletion() -> None:
    async def scenario() -> None:
        clock = SettableClock()
        async with with_queue(clock=clock) as (emulator, client):
            await client.create_task(parent=QUEUE, task=a_task(TASK))
            again = client.create_task(parent=QUEUE, task=a_task(TASK))
            assert await said_by(again) == ("ALREADY_EXISTS", "Requested entity already exists")
            await client.delete_task(name=TASK)
            code, _ = await said_by(client.create_task(parent=QUEUE, task=a_task(TASK)))
            assert code == "ALREADY_EXISTS"
            assert await said_by(client.get_task(name=TASK)) == (
                "NOT_FOUND",
                "The task no longer exists, though a task with this name existed recently. The "
                "task either successfully completed or was deleted.",
            )
            clock.ahead = DAY + 1.0
            assert await said_by(client.get_task(name=TASK)) == (
                "NOT_FOUND",
                "Requested entity was not found.",
            )
            await client.create_task(parent=QUEUE, task=a_task(TASK))
            assert emulator.stats()["duplicates"] == 2

    asyncio.run(scenario())


@pytest.mark.parametrize("kept", [False, True])
def test_of_4000_concurrent_creates_of_40_names_exactly_40_succeed(
    tmp_path: Path, kept: bool
) -> None:
    async def scenario() -> None:
        async with with_queue(data=tmp_path if kept else None) as (emulator, client):

            async def create(number: int) -> str:
                task = a_task(f"{QUEUE}/tasks/t{number % 40}")
                try:
                    return (await client.create_task(parent=QUEUE, task=task)).name
                except exceptions.AlreadyExists:
                    return ""

            made = await asyncio.gather(*(create(number) for number in range(4_000)))
            assert sorted(filter(None, made)) == sorted(
                f"{QUEUE}/tasks/t{number}" for number in range(40)
            )
            stats = emulator.stats()
            assert (stats["creates"], stats["duplicates"]) == (40, 3_960)
            assert stats["queues"][QUEUE]["tasks"] == 40

    asyncio.run(scenario())


def request(**fields: Any) -> tasks_v2.HttpRequest:
    return tasks_v2.HttpRequest(**{"url": TARGET, **fields})


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (a_task(f"{QUEUE}/tasks/a.b"), 'Task ID "a.b" can contain only letters'),
        (a_task(f"{QUEUE}/tasks/{'x' * 501}"), "between 1 and 500 characters"),
        (a_task(f"{QUEUE}/tasks/"), 'Task ID "" can contain only'),
        (a_task("t"), "Task name must be formatted:"),
        (
            a_task(f"{PARENT}/queues/other/tasks/t"),
            f"The queue name from request ('{QUEUE}') must be the same as the queue name in the "
            f"named task ('{PARENT}/queues/other').",
        ),
        (a_task(schedule_time=later(31 * DAY)), "is too far in the future"),
        (
            a_task(dispatch_deadline=duration_pb2.Duration(seconds=14, nanos=999_999_999)),
            "Task.dispatchDeadline must be between [15s, 30m].",
        ),
        (
            a_task(dispatch_deadline=duration_pb2.Duration(seconds=1_801)),
            "Task.dispatchDeadline must be between [15s, 30m].",
        ),
        (a_task(http_request=request(body=b"x" * 1_048_576)), "Task size too large"),
        (a_task(http_request=request(url="")), "HttpRequest.url is required."),
        (a_task(http_request=request(url="ftp://a/")), "must start with 'http://' or 'https://'."),
        (a_task(http_request=request(url="http://")), "not a valid URL"),
        (a_task(http_request=request(url="http://a:x/")), "not a valid URL"),
        (a_task(http_request=request(url="http://a/ b")), "not a valid URL"),
        (a_task(http_request=request(url="http://a/" + "b" * 2_083)), "not a valid URL"),
        (a_task(http_request=request(body=b"x", http_method="GET")), "body is only allowed"),
        (a_task(http_request=request(body=b"x", http_method="DELETE")), "body is only allowed"),
        (a_task(http_request=request(http_method=99)), "The HTTP method 99 does not exist."),
        (
            a_task(http_request=request(headers={"a": "b" * 81_920})),
            "The size of HttpRequest.headers must be less than 80KB.",
        ),
        (a_task(http_request=request(headers={"a:": "b"})), "an invalid header name: 'a:'"),
        (
            a_task(http_request=request(headers={"a": "b\r\nc: d"})),
            "HttpRequest.headers has an invalid value of the header a.",
        ),
        (
            a_task(schedule_time=timestamp_pb2.Timestamp(nanos=-1)),
            "Task.scheduleTime is not a valid timestamp.",
        ),
        (
            a_task(dispatch_deadline=duration_pb2.Duration(seconds=20, nanos=-1)),
            "Task.dispatchDeadline is not a valid duration.",
        ),
        (
            a_task(http_request=request(oauth_token=tasks_v2.OAuthToken(scope="a"))),
            "OAuthToken.service_account_email is required.",
        ),
        (a_task(retry_config=tasks_v2.RetryConfig(max_attempts=-2)), "greater or equal to -1"),
        (
            a_task(http_request=request(oidc_token=tasks_v2.OidcToken(audience="a"))),
            "OidcToken.service_account_email is required.",
        ),
        (tasks_v2.Task(), "must be set"),
    ],
)
def test_what_is_wrong_with_a_task_is_said(task: tasks_v2.Task, message: str) -> None:
    async def scenario() -> None:
        async with with_queue() as (emulator, client):
            code, said = await said_by(client.create_task(parent=QUEUE, task=task))
            assert code == "INVALID_ARGUMENT"
            assert message in said
            assert emulator.stats()["queues"][QUEUE]["tasks"] == 0
            assert emulator.stats()["refusals"] == {"INVALID_ARGUMENT": 1}

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "task",
    [
        a_task(f"{QUEUE}/tasks/" + "aZ09_-" * 83 + "ab"),  # 500 characters
        a_task(schedule_time=later(30 * DAY)),
        a_task(dispatch_deadline=duration_pb2.Duration(seconds=15)),
        a_task(dispatch_deadline=duration_pb2.Duration(seconds=1_800)),
        a_task(http_request=request(body=b"x" * 1_048_000)),
        a_task(http_request=request(url="https://[::1]:8080/a?b=c#d")),
        a_task(http_request=request(headers={"a": "b" * 81_918})),
    ],
)
def test_what_is_just_within_the_limits_is_taken(task: tasks_v2.Task) -> None:
    async def scenario() -> str:
        async with with_queue() as (_, client):
            return str((await client.create_task(parent=QUEUE, task=task)).name)

    assert asyncio.run(scenario()).startswith(QUEUE)


@pytest.mark.parametrize(
    "task", [tasks_v2.Task(app_engine_http_request=tasks_v2.AppEngineHttpRequest())]
)
def test_what_is_not_emulated_is_refused_not_ignored(task: tasks_v2.Task) -> None:
    async def scenario() -> None:
        async with with_queue() as (_, client):
            code, message = await said_by(client.create_task(parent=QUEUE, task=task))
            assert code == "UNIMPLEMENTED"
            assert "App Engine" in message
            routed = tasks_v2.Queue(
                name=QUEUE, app_engine_routing_override=tasks_v2.AppEngineRouting(service="s")
            )
            code, message = await said_by(client.update_queue(queue=routed))
            assert code == "UNIMPLEMENTED"
            assert "App Engine" in message

    asyncio.run(scenario())


def test_two_emulators_cannot_share_a_port() -> None:
    async def scenario() -> None:
        async with CloudTasksEmulator() as first:
            port = int(first.grpc_address.rpartition(":")[2])
            with pytest.raises(OSError, match=str(port)):
                await CloudTasksEmulator(grpc_port=port).__aenter__()
            http_port = int(first.http_address.rpartition(":")[2])
            with pytest.raises(OSError, match=str(http_port)):
                await CloudTasksEmulator(http_port=http_port).__aenter__()

    asyncio.run(scenario())
