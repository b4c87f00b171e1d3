"""Root tasks that Cloud Tasks did not take, and that nobody else asks for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest

from forkjoin_gcp.errors import (
    SchedulerRefused,
    SchedulerUnavailable,
    ServiceError,
    TaskQueueNotFound,
)
from forkjoin_gcp.ports import TaskRequest
from forkjoin_gcp.writing import deferred
from tests.unit.outage import REFUSED, Outage
from tests.unit.rig import Rig, rigged


class Refusing:
    """A scheduler that raises ``error`` while it is set, for the queues that ``whose`` names."""

    def __init__(self, rig: Rig, whose: Callable[[str], bool] = lambda queue: True) -> None:
        self.error: Exception | None = SchedulerUnavailable()
        self.times: list[float] = []
        create = rig.scheduler.create

        async def perhaps(task: TaskRequest) -> bool:
            self.times.append(rig.loop.time())
            if self.error and whose(task.queue):
                raise self.error
            return await create(task)

        rig.scheduler.create = perhaps  # type: ignore[method-assign]


@rigged
async def test_a_root_that_no_writer_came_after_is_asked_for_again() -> None:
    rig = Rig()
    scheduler = Refusing(rig)
    await rig.put(1)
    await asyncio.sleep(100)
    waits = [round(b - a) for a, b in pairwise(scheduler.times)]
    assert waits == [1, 2, 4, 8, 16, 30, 30]
    assert rig.left == 1
    scheduler.error = None
    await asyncio.sleep(30)
    await rig.drain()
    assert rig.numbers == [1]
    assert rig.counters["deferred_scheduled"] == 1
    assert len(rig.scheduler.created) == 1
    asked = len(scheduler.times)
    await asyncio.sleep(100)
    assert len(scheduler.times) == asked, "nothing is owed any more"


@rigged
async def test_a_clock_batchs_root_is_asked_for_again() -> None:
    rig = Rig()
    Outage(rig).mode = REFUSED
    scheduler = Refusing(rig)
    await rig.put(1)
    scheduler.error = None
    await asyncio.sleep(2)
    await rig.drain()
    assert rig.numbers == [1]


@rigged
async def test_what_is_refused_later_is_asked_for_again_as_well() -> None:
    rig = Rig()
    scheduler = Refusing(rig)
    for round_ in range(2):
        scheduler.error = SchedulerUnavailable()
        await rig.put(round_)
        scheduler.error = None
        await asyncio.sleep(2)
        await rig.drain()
        assert rig.numbers == list(range(round_ + 1))


@rigged
async def test_a_closing_writer_asks_once_more() -> None:
    rig = Rig()
    scheduler = Refusing(rig)
    await rig.put(1)
    scheduler.error = None
    await rig.writer.close()
    assert rig.loop.time() < 0.1
    await rig.drain()
    assert rig.numbers == [1]


@rigged
async def test_a_closing_writer_does_not_wait_for_cloud_tasks() -> None:
    rig = Rig()
    Refusing(rig)
    await rig.put(1)

    async def silent(task: Any) -> bool:
        await asyncio.sleep(100)
        raise AssertionError

    rig.scheduler.create = silent  # type: ignore[method-assign]
    began = rig.loop.time()
    await rig.writer.close()
    assert rig.loop.time() - began == pytest.approx(deferred.LAST_TRY_SECONDS)


async def one_queue_refuses(error: ServiceError) -> None:
    """Of two, with ``error``: the other takes its tasks, and this one when it can."""
    rig = Rig(shards=2, batch_period=0, max_batch_items=1, batch_size=1)
    scheduler = Refusing(rig)
    for number in range(8):
        await rig.put(number)
        await asyncio.sleep(0.001)
    one = Refusing(rig, lambda queue: queue.endswith("-1"))
    one.error = error
    scheduler.error = None
    asked = len(one.times)
    await asyncio.sleep(1.5)
    taken = len(rig.scheduler.created)
    assert {task.queue for task in rig.scheduler.created} == {"rig-2"}
    assert 0 < taken < 8
    assert len(one.times) - asked == taken + 1, "the queue that refuses is asked once"
    one.error = None
    await asyncio.sleep(60)
    await rig.drain()
    assert rig.numbers == list(range(8))


@rigged
async def test_a_queue_that_is_missing_keeps_no_other_waiting() -> None:
    await one_queue_refuses(TaskQueueNotFound())


@rigged
async def test_a_queue_that_may_not_be_used_keeps_no_other_waiting() -> None:
    await one_queue_refuses(SchedulerRefused())


@rigged
async def test_how_many_are_kept_is_bounded() -> None:
    rig = Rig(batch_period=0, max_batch_items=1, batch_size=1)
    scheduler = Refusing(rig)
    bound, deferred.MAX_DEFERRED = deferred.MAX_DEFERRED, 3
    try:
        for number in range(5):
            await rig.put(number)
        scheduler.error = None
        await asyncio.sleep(60)
    finally:
        deferred.MAX_DEFERRED = bound
    assert rig.counters["deferred_scheduled"] == 3
    assert rig.left == 5
