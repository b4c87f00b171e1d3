"""The fault switches of the Cloud Tasks emulator."""

import asyncio
import time
from collections import Counter
from typing import Any

import aiohttp
import pytest
from google.api_core import exceptions
from google.cloud import tasks_v2

from forkjoin_gcp.emulators.cloud_tasks import FaultSettingError

from .cloud_tasks import QUEUE, TASK, Target, a_task, rig, said_by, task_for, with_queue


async def names_received(target: Target, count: int) -> list[str]:
    requests = [await target.next() for _ in range(count)]
    return [request.headers["X-CloudTasks-TaskName"] for request, _, _ in requests]


def test_every_dispatch_is_delivered_twice_and_booked_once() -> None:
    async def scenario() -> None:
        async with rig() as (emulator, client, target):
            emulator.faults.set(deliver_twice=1)
            for number in range(10):
                await client.create_task(parent=QUEUE, task=task_for(target.url, f"t{number}"))
            received = Counter(await names_received(target, 20))
            assert set(received.values()) == {2}
            await emulator.quiet()
            stats = emulator.stats()
            assert (stats["dispatches"], stats["completed"]) == (10, 10)
            assert stats["faults"] == {"deliver_twice": 10}

    asyncio.run(scenario())


def test_a_second_delivery_changes_nothing_about_the_task() -> None:
    async def scenario() -> None:
        async with rig() as (emulator, client, target):
            emulator.faults.set(deliver_twice=1)
            target.statuses = [500, 200]
            await client.create_task(parent=QUEUE, task=task_for(target.url, "t"))
            received = [await target.next() for _ in range(2)]
            counts = [r.headers["X-CloudTasks-TaskRetryCount"] for r, _, _ in received]
            assert counts == ["0", "0"]

    asyncio.run(scenario())


def test_the_answer_of_a_create_is_lost_but_the_task_is_there() -> None:
    async def scenario() -> None:
        async with with_queue() as (emulator, client):
            emulator.faults.set(lose_create_answer=1)
            code, said = await said_by(client.create_task(parent=QUEUE, task=a_task(TASK)))
            assert (code, "on purpose" in said) == ("UNAVAILABLE", True)
            # The second try finds its own first, and that answer is not lost.
            code, _ = await said_by(client.create_task(parent=QUEUE, task=a_task(TASK)))
            assert code == "ALREADY_EXISTS"
            assert (await client.get_task(name=TASK)).name == TASK

    asyncio.run(scenario())


def test_tombstones_are_forgotten_early() -> None:
    async def scenario() -> None:
        async with with_queue() as (emulator, client):
            emulator.faults.set(forget_tombstones_after=0)
            for _ in range(3):
                await client.create_task(parent=QUEUE, task=a_task(TASK))
                await client.delete_task(name=TASK)
            emulator.faults.clear()
            await client.create_task(parent=QUEUE, task=a_task(TASK))
            await client.delete_task(name=TASK)
            with pytest.raises(exceptions.AlreadyExists):
                await client.create_task(parent=QUEUE, task=a_task(TASK))

    asyncio.run(scenario())


def test_dispatches_and_calls_are_delayed() -> None:
    async def scenario() -> None:
        async with rig() as (emulator, client, target):
            emulator.faults.set(
                delay={"probability": 1, "seconds": 0.2},
                delay_calls={"probability": 1, "seconds": 0.1, "methods": ["CreateTask"]},
            )
            started = time.time()
            await client.create_task(parent=QUEUE, task=task_for(target.url))
            created = time.time()
            assert created - started >= 0.1
            _, _, came = await target.next()
            assert came - started >= 0.3
            await client.get_queue(name=QUEUE)
            assert emulator.faults.counts["delay_calls"] == 1

    asyncio.run(scenario())


def test_dispatches_overtake_each_other() -> None:
    async def scenario() -> None:
        async with rig() as (emulator, client, target):
            emulator.faults.set(reorder=0.5, seed=7)
            names = [f"t{number:02}" for number in range(20)]
            for name in names:
                await client.create_task(parent=QUEUE, task=task_for(target.url, name))
            received = await names_received(target, 20)
            assert sorted(received) == names
            assert received != names

    asyncio.run(scenario())


def test_a_share_of_calls_is_refused_and_does_nothing() -> None:
    async def outcomes(seed: int) -> tuple[list[bool], int]:
        async with with_queue() as (emulator, client):
            refuse = {"probability": 0.3, "code": "RESOURCE_EXHAUSTED", "methods": ["CreateTask"]}
            emulator.faults.set(refuse=refuse, seed=seed)
            done = []
            for _ in range(100):
                try:
                    await client.create_task(parent=QUEUE, task=a_task())
                    done.append(True)
                except exceptions.ResourceExhausted:
                    done.append(False)
            await client.get_queue(name=QUEUE)  # not of those methods
            return done, emulator.stats()["queues"][QUEUE]["tasks"]

    async def scenario() -> None:
        done, tasks = await outcomes(1)
        assert tasks == sum(done)
        assert 10 < 100 - sum(done) < 50
        assert await outcomes(1) == (done, tasks)  # the same seed, the same run
        assert await outcomes(2) != (done, tasks)

    asyncio.run(scenario())


def test_faults_are_set_shown_and_cleared_over_http() -> None:
    async def scenario() -> None:
        async with (
            with_queue() as (emulator, client),
            aiohttp.ClientSession(emulator.http_url) as session,
        ):
            wanted: dict[str, Any] = {
                "deliver_twice": 0.1,
                "lose_create_answer": 0.05,
                "forget_tombstones_after": 1.5,
                "delay": {"probability": 0.2, "seconds": 0.5},
                "reorder": 0.1,
                "refuse": {"probability": 1, "code": "INTERNAL", "methods": ["GetQueue"]},
                "seed": 1,
            }
            async with session.put("/faults", json=wanted) as response:
                assert response.status == 200
                shown = await response.json()
            assert {name: shown[name] for name in wanted} == wanted
            assert (await said_by(client.get_queue(name=QUEUE)))[0] == "INTERNAL"
            async with session.get("/faults") as response:
                assert await response.json() == shown
            async with session.delete("/faults") as response:
                cleared = await response.json()
            assert cleared["refuse"]["probability"] == 0
            assert cleared["forget_tombstones_after"] is None
            assert isinstance(await client.get_queue(name=QUEUE), tasks_v2.Queue)
            async with session.put("/faults", json=shown) as response:
                assert await response.json() == shown  # what is shown can be set

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("faults", "message"),
    [
        (b"{", "This is no JSON"),
        (b"[1]", "Faults are a JSON object, not [1]."),
        (b'{"deliver_thrice": 1}', "There is no fault 'deliver_thrice'. There are: delay, "),
        (b'{"deliver_twice": 2}', "deliver_twice must be a probability between 0 and 1, not 2."),
        (b'{"deliver_twice": true}', "deliver_twice must be a probability"),
        (b'{"deliver_twice": NaN}', "deliver_twice must be a probability"),
        (b'{"forget_tombstones_after": -1}', "forget_tombstones_after must be null or a number"),
        (b'{"delay": 1}', "delay must be an object, not 1."),
        (b'{"delay": {"probability": 1}}', "delay needs the field 'seconds'."),
        (b'{"delay": {"probability": 1, "seconds": "x"}}', "delay.seconds must be a number"),
        (b'{"refuse": {"probability": 1, "code": "OK"}}', "refuse.code must be one of ABORTED,"),
        (b'{"refuse": {"probability": 1, "methods": "GetTask"}}', "refuse.methods must be a list"),
        (b'{"refuse": {"probability": 1, "methods": ["X"]}}', "refuse.methods must be a list of"),
        (b'{"refuse": {"probability": 1, "seconds": 1}}', "refuse has no field 'seconds'"),
        (b'{"seed": 1.5}', "seed must be a whole number, not 1.5."),
    ],
)
def test_a_wrong_fault_is_refused_and_changes_nothing(faults: bytes, message: str) -> None:
    async def scenario() -> None:
        async with (
            with_queue() as (emulator, _),
            aiohttp.ClientSession(emulator.http_url) as session,
        ):
            emulator.faults.set(reorder=0.25)
            async with session.put("/faults", data=faults) as response:
                assert response.status == 400
                assert message in await response.text()
            assert emulator.faults.settings.reorder == 0.25
            with pytest.raises(FaultSettingError):
                emulator.faults.set(reorder=-1)

    asyncio.run(scenario())
