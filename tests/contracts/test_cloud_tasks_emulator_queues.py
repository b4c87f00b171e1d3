"""Queues of the Cloud Tasks emulator as the unmodified client sees them."""

import asyncio
import datetime
import time
from typing import Any

import pytest
from google.cloud import tasks_v2
from google.protobuf import duration_pb2, field_mask_pb2

from .cloud_tasks import (
    DAY,
    PARENT,
    QUEUE,
    TARGET,
    TASK,
    SettableClock,
    a_task,
    running,
    said_by,
    with_queue,
)


def test_a_missing_queue_is_not_found() -> None:
    async def scenario() -> None:
        missing = (
            "NOT_FOUND",
            "Queue does not exist. If you just created the queue, wait at least a minute for the "
            "queue to initialize.",
        )
        async with running() as (_, client):
            assert await said_by(client.create_task(parent=QUEUE, task=a_task(TASK))) == missing
            assert await said_by(client.get_queue(name=QUEUE)) == missing
            assert await said_by(client.list_tasks(parent=QUEUE)) == missing
            code, _ = await said_by(client.delete_queue(name=QUEUE))
            assert code == "NOT_FOUND"
        async with running(auto_create_queues=True) as (_, client):
            await client.create_task(parent=QUEUE, task=a_task(TASK))

    asyncio.run(scenario())


def test_a_new_queue_has_the_services_defaults() -> None:
    async def scenario() -> None:
        async with with_queue() as (_, client):
            queue = await client.get_queue(name=QUEUE)
            assert queue.state == tasks_v2.Queue.State.RUNNING
            assert queue.rate_limits.max_dispatches_per_second == 500
            assert queue.rate_limits.max_concurrent_dispatches == 1_000
            assert queue.retry_config.max_attempts == 100
            assert queue.retry_config.min_backoff == datetime.timedelta(seconds=0.1)
            assert queue.retry_config.max_backoff == datetime.timedelta(hours=1)
            assert queue.retry_config.max_doublings == 16

    asyncio.run(scenario())


def test_a_queue_is_updated_field_by_field() -> None:
    async def scenario() -> None:
        async with with_queue() as (_, client):
            change = tasks_v2.Queue(
                name=QUEUE,
                rate_limits=tasks_v2.RateLimits(max_dispatches_per_second=7),
                retry_config=tasks_v2.RetryConfig(
                    max_attempts=3, min_backoff=duration_pb2.Duration(seconds=2)
                ),
            )
            mask = field_mask_pb2.FieldMask(paths=["rate_limits.max_dispatches_per_second"])
            queue = await client.update_queue(queue=change, update_mask=mask)
            assert queue.rate_limits.max_dispatches_per_second == 7
            assert queue.rate_limits.max_burst_size == 7
            assert queue.retry_config.max_attempts == 100
            mask = field_mask_pb2.FieldMask(paths=["retry_config"])
            queue = await client.update_queue(queue=change, update_mask=mask)
            assert queue.retry_config.max_attempts == 3
            assert queue.retry_config.min_backoff == datetime.timedelta(seconds=2)
            assert queue.retry_config.max_doublings == 16
            assert queue.rate_limits.max_dispatches_per_second == 7
            queue = await client.update_queue(queue=tasks_v2.Queue(name=QUEUE))
            assert queue.rate_limits.max_dispatches_per_second == 500
            other = f"{PARENT}/queues/made-by-update"
            assert (await client.update_queue(queue=tasks_v2.Queue(name=other))).name == other

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"rate_limits": {"max_dispatches_per_second": 501}},
            "RateLimits.maxDispatchesPerSecond must be less than or equal to 500.",
        ),
        (
            {"rate_limits": {"max_concurrent_dispatches": 5_001}},
            "RateLimits.maxConcurrentDispatches must be less than or equal to 5000.",
        ),
        (
            {"rate_limits": {"max_dispatches_per_second": -1}},
            "RateLimits.maxDispatchesPerSecond cannot be negative.",
        ),
        (
            {"retry_config": {"max_attempts": -2}},
            "RetryConfig.maxAttempts must be greater or equal to -1.",
        ),
        (
            {"retry_config": {"min_backoff": {"seconds": 3_601}}},
            "RetryConfig.minBackoff must be less than or equal to RetryConfig.maxBackoff.",
        ),
        (
            {"rate_limits": {"max_dispatches_per_second": float("nan")}},
            "RateLimits.maxDispatchesPerSecond must be less than or equal to 500.",
        ),
        (
            {"retry_config": {"max_doublings": -1}},
            "RetryConfig.maxDoublings cannot be negative.",
        ),
        (
            {"retry_config": {"max_backoff": {"seconds": 1, "nanos": -1}}},
            "RetryConfig.maxBackoff is not a valid duration.",
        ),
        (
            {"stackdriver_logging_config": {"sampling_ratio": 1.5}},
            "StackdriverLoggingConfig.samplingRatio must be between 0 and 1.",
        ),
        (
            {"retry_config": {"max_retry_duration": {"seconds": -1}}},
            "RetryConfig.maxRetryDuration cannot be negative.",
        ),
    ],
)
def test_what_is_wrong_with_a_queue_is_said(settings: dict[str, Any], message: str) -> None:
    async def scenario() -> None:
        async with running() as (_, client):
            queue = tasks_v2.Queue(name=QUEUE, **settings)
            said = await said_by(client.create_queue(parent=PARENT, queue=queue))
            assert said == ("INVALID_ARGUMENT", message)

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "name",
    [
        f"{PARENT}/queues/a_b",
        f"{PARENT}/queues/{'q' * 101}",
        "q",
        "projects/o/locations/l/queues/q",
    ],
)
def test_a_queue_name_must_be_well_formed_and_of_its_parent(name: str) -> None:
    async def scenario() -> tuple[str, str]:
        async with running() as (_, client):
            return await said_by(
                client.create_queue(parent=PARENT, queue=tasks_v2.Queue(name=name))
            )

    assert asyncio.run(scenario())[0] == "INVALID_ARGUMENT"


def test_queues_cannot_be_made_twice_nor_soon_after_their_end() -> None:
    async def scenario() -> None:
        clock = SettableClock()
        async with with_queue(clock=clock) as (_, client):
            queue = tasks_v2.Queue(name=QUEUE)
            again = await said_by(client.create_queue(parent=PARENT, queue=queue))
            assert again == ("ALREADY_EXISTS", "Queue already exists")
            await client.delete_queue(name=QUEUE)
            assert await said_by(client.create_queue(parent=PARENT, queue=queue)) == (
                "FAILED_PRECONDITION",
                "The queue cannot be created because a queue with this name existed too recently.",
            )
            clock.ahead = 3.0 * DAY + 1
            await client.create_queue(parent=PARENT, queue=queue)

    asyncio.run(scenario())


def test_lists_are_paged() -> None:
    async def scenario() -> None:
        async with with_queue() as (_, client):
            names = [f"{QUEUE}/tasks/t{number:02}" for number in range(25)]
            for name in names:
                await client.create_task(parent=QUEUE, task=a_task(name))
            pager = await client.list_tasks(request={"parent": QUEUE, "page_size": 10})
            assert [task.name async for task in pager] == names
            for letter in "abc":
                queue = tasks_v2.Queue(name=f"{PARENT}/queues/{letter}")
                await client.create_queue(parent=PARENT, queue=queue)
            other = tasks_v2.Queue(name="projects/p/locations/m/queues/z")
            await client.create_queue(parent="projects/p/locations/m", queue=other)
            pages = await client.list_queues(request={"parent": PARENT, "page_size": 3})
            assert [queue.name.rpartition("/")[2] async for queue in pages] == list("abcq")

    asyncio.run(scenario())


def test_lists_show_bodies_only_in_full() -> None:
    async def scenario() -> None:
        async with with_queue() as (_, client):
            http = tasks_v2.HttpRequest(url=TARGET, headers={"X-mIxEd": "1"}, body=b"body")
            await client.create_task(parent=QUEUE, task=a_task(TASK, http_request=http))
            for view, body in ((0, b""), (1, b""), (2, b"body")):
                pager = await client.list_tasks({"parent": QUEUE, "response_view": view})
                (task,) = [task async for task in pager]
                assert task.http_request.body == body
                assert dict(task.http_request.headers) == {"X-mIxEd": "1"}
            said = await said_by(client.list_tasks({"parent": QUEUE, "response_view": 3}))
            assert said == ("INVALID_ARGUMENT", "The response view 3 does not exist.")

    asyncio.run(scenario())


def test_a_page_token_is_good_for_its_own_list_only() -> None:
    async def scenario() -> None:
        async with with_queue() as (_, client):
            for letter in "ab":
                queue = tasks_v2.Queue(name=f"{PARENT}/queues/{letter}")
                await client.create_queue(parent=PARENT, queue=queue)
            listing = {"parent": PARENT, "page_size": 1}
            token = (await client.list_queues(listing)).next_page_token
            for wrong in (
                {"page_token": token, "filter": "state: PAUSED"},
                {"page_token": "rubbish"},
                {"page_token": "é"},
                {"page_size": -1},
            ):
                code, _ = await said_by(client.list_queues({**listing, **wrong}))
                assert code == "INVALID_ARGUMENT"
            code, _ = await said_by(client.list_tasks({"parent": QUEUE, "page_token": token}))
            assert code == "INVALID_ARGUMENT"

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("filter_", "found"),
    [
        ("", "abc"),
        ("state: PAUSED", "b"),
        ("state=paused", "b"),
        ("NOT state = PAUSED", "ac"),
        ("rate_limits.max_dispatches_per_second >= 10", "bc"),
        ("rateLimits.maxDispatchesPerSecond < 10 OR state=PAUSED", "ab"),
        ("retryConfig.maxBackoff <= 60s state=RUNNING", "a"),
        ('name: "QUEUES/A"', "a"),
        (f"name = {PARENT}/queues/c", "c"),
        ("NOT (state=PAUSED OR name:queues/c)", "a"),
        ("state!=PAUSED AND rate_limits.max_dispatches_per_second=500", "c"),
        ("http_target.uri_override.host = x.example", "c"),
        ("purge_time > 2020-01-01T00:00:00Z", "b"),
    ],
)
def test_queues_are_filtered(filter_: str, found: str) -> None:
    async def scenario() -> None:
        async with running() as (_, client):
            slow = {"max_dispatches_per_second": 1}
            backoff = {"max_backoff": {"seconds": 60}}
            target = {"uri_override": {"host": "x.example"}}
            for letter, settings in (
                ("a", {"rate_limits": slow, "retry_config": backoff}),
                ("b", {"retry_config": backoff}),
                ("c", {"http_target": target}),
            ):
                queue = tasks_v2.Queue(name=f"{PARENT}/queues/{letter}", **settings)
                await client.create_queue(parent=PARENT, queue=queue)
            await client.pause_queue(name=f"{PARENT}/queues/b")
            await client.purge_queue(name=f"{PARENT}/queues/b")
            listing = {"parent": PARENT, "filter": filter_, "page_size": 1}
            pages = await client.list_queues(listing)
            assert "".join([queue.name[-1] async for queue in pages]) == found

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "filter_",
    [
        "state",
        "state =",
        "= PAUSED",
        "state = ASLEEP",
        "nothing = 1",
        "rate_limits = 1",
        "http_target.header_overrides = 1",
        "retry_config.max_backoff > soon",
        "(state = PAUSED",
        "state = PAUSED)",
        "state = PAUSED OR",
        'name = "open',
        "rate_limits.max_burst_size > many",
    ],
)
def test_a_filter_that_is_none_is_refused(filter_: str) -> None:
    async def scenario() -> None:
        async with running() as (_, client):
            code, said = await said_by(client.list_queues({"parent": PARENT, "filter": filter_}))
            assert code == "INVALID_ARGUMENT"
            assert said.startswith("Invalid filter ")

    asyncio.run(scenario())


def test_purging_deletes_every_task_and_keeps_their_names() -> None:
    async def scenario() -> None:
        async with with_queue() as (emulator, client):
            assert "purge_time" not in await client.get_queue(name=QUEUE)
            names = [f"{QUEUE}/tasks/t{number}" for number in range(5)]
            for name in names:
                await client.create_task(parent=QUEUE, task=a_task(name))
            purged = await client.purge_queue(name=QUEUE)
            assert abs(purged.purge_time.timestamp() - time.time()) < 60
            assert [task async for task in await client.list_tasks(parent=QUEUE)] == []
            code, said = await said_by(client.create_task(parent=QUEUE, task=a_task(names[0])))
            assert (code, "too recently" in said) == ("ALREADY_EXISTS", True)
            await client.create_task(parent=QUEUE, task=a_task(TASK))
            stats = emulator.stats()
            assert (stats["purged"], stats["queues"][QUEUE]["tasks"]) == (5, 1)

    asyncio.run(scenario())


def test_pausing_and_resuming_show_and_can_be_repeated() -> None:
    async def scenario() -> None:
        async with with_queue() as (emulator, client):
            for _ in range(2):
                paused = await client.pause_queue(name=QUEUE)
                assert paused.state == tasks_v2.Queue.State.PAUSED
                assert emulator.stats()["queues"][QUEUE]["paused"]
            for _ in range(2):
                resumed = await client.resume_queue(name=QUEUE)
                assert resumed.state == tasks_v2.Queue.State.RUNNING
            missing = f"{PARENT}/queues/missing"
            for call in (client.pause_queue, client.resume_queue, client.purge_queue):
                code, said = await said_by(call(name=missing))
                assert (code, said[:21]) == ("NOT_FOUND", "Queue does not exist.")
                code, _ = await said_by(call(name="missing"))
                assert code == "INVALID_ARGUMENT"

    asyncio.run(scenario())
