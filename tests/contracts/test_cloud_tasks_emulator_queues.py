"""Queues of the Cloud Tasks emulator as the unmodified client sees them."""

import asyncio
import datetime
from typing import Any

import pytest
from google.cloud import tasks_v2
from google.protobuf import duration_pb2, field_mask_pb2

from .cloud_tasks import (
    DAY,
    PARENT,
    QUEUE,
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
