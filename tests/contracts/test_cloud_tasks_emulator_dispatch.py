"""What the Cloud Tasks emulator sends to targets, when, and what it makes of their answers."""

import asyncio
import json
import time

import aiohttp
import grpc
import pytest
from google.api_core import exceptions
from google.cloud import tasks_v2

from .cloud_tasks import (
    PARENT,
    QUEUE,
    at,
    rig,
    task_for,
)


def test_the_request_is_the_one_asked_for_with_the_services_headers() -> None:
    async def scenario() -> None:
        async with rig() as (_, client, target):
            given = {
                "headers": {
                    "Content-Type": "application/json",
                    "X-Mine": "kept",
                    "User-Agent": "replaced",
                    "Host": "replaced.example",
                    "x-cloudtasks-taskname": "replaced",
                    "X-Google-Thing": "dropped",
                },
                "body": b'{"a": 1}',
                "http_method": "PUT",
            }
            task = task_for(target.url + "?x=1", "t", request=given)
            created = await client.create_task(parent=QUEUE, task=task)
            request, body, _ = await target.next()
            assert (request.method, request.path_qs, body) == ("PUT", "/join?x=1", b'{"a": 1}')
            headers = request.headers
            assert headers["Content-Type"] == "application/json"
            assert headers["X-Mine"] == "kept"
            assert headers["User-Agent"] == "Google-Cloud-Tasks"
            assert headers["Host"] in target.url
            assert "X-Google-Thing" not in headers
            assert headers.getall("X-CloudTasks-TaskName") == ["t"]
            assert headers["X-CloudTasks-QueueName"] == "q"
            assert headers["X-CloudTasks-TaskRetryCount"] == "0"
            assert headers["X-CloudTasks-TaskExecutionCount"] == "0"
            due = created.schedule_time.timestamp_pb()
            eta = f"{due.seconds}.{due.nanos // 1_000:06}"
            assert headers["X-CloudTasks-TaskETA"] == eta
            assert "X-CloudTasks-TaskPreviousResponse" not in headers
            assert "X-CloudTasks-TaskRetryReason" not in headers
            assert "Authorization" not in headers

    asyncio.run(scenario())


def test_no_content_type_is_made_up() -> None:
    async def scenario() -> None:
        async with rig() as (_, client, target):
            task = task_for(target.url, request={"body": b"x"})
            await client.create_task(parent=QUEUE, task=task)
            request, _, _ = await target.next()
            assert "Content-Type" not in request.headers

    asyncio.run(scenario())


def test_retries_carry_counts_and_the_last_answer() -> None:
    async def scenario() -> None:
        async with rig() as (emulator, client, target):
            target.statuses = [404, 503, 302, 204]
            await client.create_task(parent=QUEUE, task=task_for(target.url, "t"))
            seen = []
            for _ in range(4):
                request, _, _ = await target.next()
                headers = request.headers
                seen.append(
                    [
                        headers["X-CloudTasks-TaskRetryCount"],
                        headers["X-CloudTasks-TaskExecutionCount"],
                        headers.get("X-CloudTasks-TaskPreviousResponse"),
                        headers.get("X-CloudTasks-TaskRetryReason"),
                    ]
                )
            assert seen == [
                ["0", "0", None, None],
                ["1", "1", "404", ""],
                ["2", "1", "503", ""],  # an answer 5xx is no execution
                ["3", "2", "302", ""],
            ]
            await emulator.quiet()
            stats = emulator.stats()
            assert stats["responses"] == {"404": 1, "503": 1, "302": 1, "204": 1}
            assert (stats["retried"], stats["completed"]) == (3, 1)
            assert [one["retry_count"] for one in stats["recent"]] == [3, 2, 1, 0]
            with pytest.raises(exceptions.AlreadyExists):
                await client.create_task(parent=QUEUE, task=task_for(target.url, "t"))

    asyncio.run(scenario())


def test_a_task_goes_when_it_is_due_and_soon_after() -> None:
    async def scenario() -> None:
        async with rig() as (_, client, target):
            due = time.time() + 0.3
            await client.create_task(
                parent=QUEUE, task=task_for(target.url, "later", schedule_time=at(due))
            )
            await client.create_task(parent=QUEUE, task=task_for(target.url, "now"))
            request, _, _ = await target.next()
            assert request.headers["X-CloudTasks-TaskName"] == "now"
            request, _, came = await target.next()
            assert request.headers["X-CloudTasks-TaskName"] == "later"
            assert 0 <= came - due < 0.2  # generous: the machine may be loaded

    asyncio.run(scenario())


def test_a_later_task_does_not_delay_an_earlier_one() -> None:
    async def scenario() -> None:
        async with rig() as (_, client, target):
            for name, wait in (("c", 3_600.0), ("b", 0.2), ("a", 0.1)):
                task = task_for(target.url, name, schedule_time=at(time.time() + wait))
                await client.create_task(parent=QUEUE, task=task)
            names = [(await target.next())[0].headers["X-CloudTasks-TaskName"] for _ in range(2)]
            assert names == ["a", "b"]

    asyncio.run(scenario())


def test_attempts_are_given_up_and_shown_while_they_last() -> None:
    async def scenario() -> None:
        retry = {"max_attempts": 2, "min_backoff": {"seconds": 0, "nanos": 1_000_000}}
        async with rig(retry=retry) as (emulator, client, target):
            target.statuses = [500, 429]
            target.gate = asyncio.Event()
            created = await client.create_task(parent=QUEUE, task=task_for(target.url))
            await target.next()
            shown = await client.get_task(name=created.name)
            assert (shown.dispatch_count, shown.response_count) == (1, 0)
            assert shown.first_attempt.dispatch_time == shown.last_attempt.dispatch_time
            target.gate.set()
            await target.next()
            await emulator.quiet()
            assert emulator.stats()["exhausted"] == 1
            with pytest.raises(exceptions.NotFound, match="existed recently"):
                await client.get_task(name=created.name)

    asyncio.run(scenario())


def test_a_failed_attempt_shows_its_status() -> None:
    async def scenario() -> None:
        retry = {"min_backoff": {"seconds": 60}, "max_backoff": {"seconds": 60}}
        async with rig(retry=retry) as (emulator, client, target):
            target.statuses = [503]
            created = await client.create_task(parent=QUEUE, task=task_for(target.url))
            await target.next()
            await emulator.quiet()
            shown = await client.get_task(name=created.name)
            assert shown.response_count == 1
            assert shown.last_attempt.response_status.code == grpc.StatusCode.UNAVAILABLE.value[0]
            assert shown.last_attempt.response_status.message == "HTTP status code 503"
            waits = shown.schedule_time - shown.last_attempt.response_time
            assert waits.total_seconds() == pytest.approx(60)

    asyncio.run(scenario())


def test_run_sends_a_task_at_once_and_deleting_takes_it_out() -> None:
    async def scenario() -> None:
        async with rig(max_concurrent_dispatches=1) as (emulator, client, target):
            target.gate = asyncio.Event()
            await client.create_task(parent=QUEUE, task=task_for(target.url, "first"))
            await target.next()
            later = at(time.time() + 3_600)
            for name in ("run", "deleted"):
                task = task_for(target.url, name, schedule_time=later)
                await client.create_task(parent=QUEUE, task=task)
            run = await client.run_task(name=f"{QUEUE}/tasks/run")
            assert run.dispatch_count == 1
            request, _, _ = await target.next()  # though another is in flight
            assert request.headers["X-CloudTasks-TaskName"] == "run"
            await client.delete_task(name=f"{QUEUE}/tasks/deleted")
            target.gate.set()
            await emulator.quiet()
            assert emulator.stats()["queues"][QUEUE]["tasks"] == 0
            with pytest.raises(exceptions.NotFound, match="existed recently"):
                await client.run_task(name=f"{QUEUE}/tasks/run")

    asyncio.run(scenario())


def test_a_paused_queue_sends_only_what_is_run_by_hand() -> None:
    async def scenario() -> None:
        async with rig() as (emulator, client, target):
            await client.pause_queue(name=QUEUE)
            for name in ("waits", "run"):
                await client.create_task(parent=QUEUE, task=task_for(target.url, name))
            await client.run_task(name=f"{QUEUE}/tasks/run")
            request, _, _ = await target.next()
            assert request.headers["X-CloudTasks-TaskName"] == "run"
            await emulator.quiet()
            assert emulator.stats()["dispatches"] == 1
            await client.resume_queue(name=QUEUE)
            request, _, _ = await target.next()
            assert request.headers["X-CloudTasks-TaskName"] == "waits"

    asyncio.run(scenario())


def test_purging_takes_out_what_is_in_flight() -> None:
    async def scenario() -> None:
        async with rig() as (emulator, client, target):
            target.gate = asyncio.Event()
            target.statuses = [500]
            await client.create_task(parent=QUEUE, task=task_for(target.url, "t"))
            await target.next()
            await client.purge_queue(name=QUEUE)
            target.gate.set()
            await emulator.quiet()
            stats = emulator.stats()
            assert (stats["gone"], stats["retried"], stats["dispatches"]) == (1, 0, 1)

    asyncio.run(scenario())


def test_no_more_are_in_flight_than_allowed() -> None:
    async def scenario() -> None:
        async with rig(max_concurrent_dispatches=5) as (emulator, client, target):
            target.gate = asyncio.Event()
            for _ in range(20):
                await client.create_task(parent=QUEUE, task=task_for(target.url))
            await target.count(5)
            assert emulator.stats()["queues"][QUEUE]["in_flight"] == 5
            target.gate.set()
            await target.count(15)
            assert target.most_present == 5

    asyncio.run(scenario())


def test_dispatches_keep_to_the_rate() -> None:
    async def scenario() -> None:
        async with rig(max_dispatches_per_second=50) as (_, client, target):
            started = time.time()
            await asyncio.gather(
                *(client.create_task(parent=QUEUE, task=task_for(target.url)) for _ in range(75))
            )
            await target.count(75)
            # 50 of the bucket, then 25 at 50 a second.
            assert 0.45 < time.time() - started < 5

    asyncio.run(scenario())


def test_the_http_side_tells_keys_health_and_figures() -> None:
    async def scenario() -> None:
        async with rig() as (emulator, client, target), aiohttp.ClientSession() as session:
            async with session.get(emulator.certs_url) as response:
                assert response.headers["Cache-Control"] == "public, max-age=3600"
                (key,) = (await response.json())["keys"]
                assert (key["alg"], key["use"], key["kty"]) == ("RS256", "sig", "RSA")
                assert "d" not in key  # the private part
            async with session.get(emulator.http_url + "/health") as response:
                assert response.status == 200
            for name in "abc":
                await client.create_task(parent=QUEUE, task=task_for(target.url, name))
            await target.count(3)
            await emulator.quiet()
            async with session.get(emulator.http_url + "/stats?recent=2") as response:
                stats = json.loads(await response.text())
            assert (stats["creates"], stats["dispatches"]) == (3, 3)
            assert stats["queues"][QUEUE]["tombstones"] == 3
            assert [one["name"].rpartition("/")[2] for one in stats["recent"]] == ["c", "b"]
            newest = stats["recent"][0]
            assert newest["started"] <= newest["finished"]
            assert (newest["status"], newest["retry_count"]) == (200, 0)
            async with session.get(emulator.http_url + "/stats?tombstones=x") as response:
                assert response.status == 400

    asyncio.run(scenario())


def test_deleting_a_queue_takes_its_tasks_along() -> None:
    async def scenario() -> None:
        async with rig() as (emulator, client, target):
            soon = at(time.time() + 0.2)
            task = task_for(target.url, "t", schedule_time=soon)
            await client.create_task(parent=QUEUE, task=task)
            await client.delete_queue(name=QUEUE)
            other = tasks_v2.Queue(name=f"{PARENT}/queues/other")
            await client.create_queue(parent=PARENT, queue=other)
            later = tasks_v2.Task(
                http_request=tasks_v2.HttpRequest(url=target.url),
                schedule_time=at(time.time() + 0.3),
            )
            await client.create_task(parent=other.name, task=later)
            request, _, _ = await target.next()
            assert request.headers["X-CloudTasks-QueueName"] == "other"
            assert emulator.stats()["dispatches"] == 1

    asyncio.run(scenario())
