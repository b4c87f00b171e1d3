"""Everything real: Valkey, Firestore, Cloud Tasks and HTTP, as a user would run them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from typing import Any

import pytest
import redis

from forkjoin_gcp import (
    BatchItem,
    ForkJoinQueue,
    IndexUnavailable,
    Item,
    Reject,
    Services,
    StoreUnavailable,
    TaskQueueNotFound,
)
from tests.conftest import on_both_firestores
from tests.integration.conftest import Declare, wait_until

on_every_store = pytest.mark.parametrize(
    ("storage", "local_environment"),
    [("firestore", "embedded"), ("firestore", "google"), ("memorystore", "embedded")],
    indirect=["local_environment"],
)


@on_every_store
def test_items_reach_the_handler_once_in_few_requests(declare: Declare, storage: str) -> None:
    queue = declare(storage=storage, batch_period=0.3)
    seen: list[int] = []

    @queue.handler
    async def note(item: Item[dict[str, Any]]) -> None:
        seen.append(item.payload["n"])

    async def main() -> list[str]:
        return await asyncio.gather(*(queue.aenqueue({"n": n}) for n in range(500)))

    ids = asyncio.run(main())
    wait_until(lambda: queue.counters["items_handled"] == 500)
    assert sorted(seen) == list(range(500))
    assert len(set(ids)) == 500
    assert queue.counters["cloud_tasks.create_task"] <= 25


@on_every_store
def test_retry_reject_and_dead_letters(declare: Declare, storage: str) -> None:
    queue = declare(storage=storage, batch_period=0, retry_min_backoff=0.1, max_attempts=2)
    tries: Counter[int] = Counter()

    @queue.handler
    def work(item: Item[dict[str, Any]]) -> None:
        n = item.payload["n"]
        tries[n] += 1
        if n == 1:
            raise Reject("not this one")
        if n == 2:
            raise ValueError("never")
        if n == 3 and item.attempt == 1:
            raise ValueError("once")

    ids = queue.enqueue_many([{"n": n} for n in range(5)])
    wait_until(lambda: queue.counters["items_handled"] == 3 and queue.counters["items_dead"] == 2)
    assert dict(tries) == {0: 1, 1: 1, 2: 2, 3: 2, 4: 1}
    letters = {letter.id: letter for letter in queue.dead_letters()}
    assert set(letters) == {ids[1], ids[2]}
    assert letters[ids[1]].reason == "rejected"
    assert (letters[ids[2]].reason, letters[ids[2]].attempts) == ("attempts", 2)
    assert letters[ids[2]].payload == '{"n":2}'


@on_every_store
def test_kept_items_are_not_handled_again(declare: Declare, storage: str) -> None:
    queue = declare(storage=storage, batch_period=0, on_success="keep", retry_min_backoff=0.1)
    seen: list[int] = []

    @queue.batch_handler
    async def work(items: list[BatchItem[dict[str, Any]]]) -> None:
        seen.extend(item.payload["n"] for item in items)
        for item in items:
            if item.payload["n"] == 1 and item.attempt == 1:
                item.fail("once more")

    queue.enqueue_many([{"n": n} for n in range(3)])
    wait_until(lambda: queue.counters["items_handled"] == 3)
    assert sorted(seen) == [0, 1, 1, 2]


@on_both_firestores
def test_shards_lanes_and_full_batches(declare: Declare) -> None:
    queue = declare(shards=3, lanes=2, batch_size=10, max_batch_items=100, batch_period=0.2)
    seen: list[int] = []

    @queue.handler
    async def work(item: Item[dict[str, Any]]) -> None:
        seen.append(item.payload["n"])

    queue.enqueue_many([{"n": n} for n in range(550)])
    wait_until(lambda: len(seen) >= 550)
    assert sorted(seen) == list(range(550))


@on_both_firestores
def test_all_chunks_of_a_large_batch_start_at_once(declare: Declare) -> None:
    queue = declare(batch_size=10, batch_period=0.2)
    first: dict[int, float] = {}

    @queue.handler
    async def work(item: Item[dict[str, Any]]) -> None:
        first.setdefault(item.payload["n"] // 10, time.monotonic())
        await asyncio.sleep(0.05)

    queue.enqueue_many([{"n": n} for n in range(300)])
    wait_until(lambda: queue.counters["items_handled"] == 300)
    assert len(first) == 30
    assert max(first.values()) - min(first.values()) < 30 * 0.05, "side by side, not a chain"


@on_both_firestores
def test_a_flush_in_the_middle_loses_nothing(
    declare: Declare, local_environment: dict[str, str]
) -> None:
    queue = declare(batch_period=0.2, writer_timeout=1)
    seen: Counter[int] = Counter()

    @queue.handler
    async def work(item: Item[dict[str, Any]]) -> None:
        seen[item.payload["n"]] += 1

    def enqueue_until_accepted(number: int) -> None:
        """On a busy machine a group may be overtaken by one flush after the other."""
        while True:
            with contextlib.suppress(IndexUnavailable):
                queue.enqueue({"n": number})
                return

    valkey = redis.Redis.from_url(local_environment["FORKJOIN_MEMORYSTORE"])
    stop = threading.Event()

    def flush() -> None:
        while not stop.wait(0.05):
            valkey.flushall()

    flushing = threading.Thread(target=flush)
    flushing.start()
    threads = [
        threading.Thread(
            target=lambda at: [enqueue_until_accepted(at + n) for n in range(40)],
            args=(at * 40,),
        )
        for at in range(16)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    stop.set()
    flushing.join()
    valkey.close()
    wait_until(lambda: len(seen) == 640, 60)
    assert set(seen) == set(range(640))


FORKING = """
import os, sys
from forkjoin_gcp import ForkJoinQueue
queue = ForkJoinQueue(sys.argv[1], batch_period=0)
children = []
for n in range(2):
    child = os.fork()
    if not child:
        queue.enqueue({"n": n})
        sys.exit(0)
    children.append(child)
sys.exit(max(os.waitpid(child, 0)[1] for child in children))
"""


def test_children_of_one_that_declared_a_queue_enqueue(
    declare: Declare, local_environment: dict[str, str]
) -> None:
    """As under ``gunicorn --preload``: declared in the parent, used in its children."""
    queue = declare(batch_period=0)
    seen: list[int] = []
    queue.handler(lambda item: seen.append(item.payload["n"]))
    join_url = {"FORKJOIN_JOIN_URL": queue.services.need("join_url")}
    environment = {**os.environ, **local_environment, **join_url}
    done = subprocess.run(
        [sys.executable, "-c", FORKING, queue.name], env=environment, timeout=60, check=False
    )
    assert done.returncode == 0
    wait_until(lambda: sorted(seen) == [0, 1])


# Bad input and services that are not there


@on_both_firestores
def test_a_missing_task_queue_is_named_and_nothing_is_left(declare: Declare) -> None:
    queue = declare(create=False, batch_period=0)
    with pytest.raises(TaskQueueNotFound, match=rf"queues/{queue.name}-1 does not exist"):
        queue.enqueue({"n": 1})
    assert queue.counters["items_enqueued"] == 0
    assert queue.counters["firestore.documents_deleted"] == 1


@pytest.mark.parametrize(
    ("storage", "variable", "value", "error"),
    [
        ("memorystore", "FORKJOIN_MEMORYSTORE", "redis://127.0.0.1:9", IndexUnavailable),
        ("firestore", "FIRESTORE_EMULATOR_HOST", "127.0.0.1:9", StoreUnavailable),
    ],
)
def test_unreachable_services_are_named_with_what_to_do(
    declare: Declare, storage: str, variable: str, value: str, error: type[Exception]
) -> None:
    queue = declare(storage=storage, acquire_attempts=1, elsewhere={variable: value})
    with pytest.raises(error, match=rf"{variable}.*forkjoin local up"):
        queue.enqueue({"n": 1})


def test_unreachable_memorystore_is_named_in_the_log_and_enqueuing_goes_on(
    declare: Declare, caplog: pytest.LogCaptureFixture
) -> None:
    queue = declare(
        writer_timeout=0.5,
        max_clock_skew=0.5,
        elsewhere={"FORKJOIN_MEMORYSTORE": "redis://127.0.0.1:9"},
    )
    seen: list[int] = []
    queue.handler(lambda item: seen.append(item.payload["n"]))
    for n in range(3):
        queue.enqueue({"n": n})
    assert queue.counters["breaker_opened"] == 1
    assert "FORKJOIN_MEMORYSTORE" in caplog.text
    wait_until(lambda: sorted(seen) == [0, 1, 2])


def test_unreachable_cloud_tasks_defers_and_accepts(declare: Declare) -> None:
    queue = declare(batch_period=0, elsewhere={"CLOUD_TASKS_EMULATOR_HOST": "127.0.0.1:9"})
    assert queue.enqueue({"n": 1})
    assert queue.counters["schedule_deferred"] == 1


def test_missing_project_is_named() -> None:
    with (
        ForkJoinQueue("feeds", services=Services()) as queue,
        pytest.raises(ValueError, match=r"FORKJOIN_PROJECT.*forkjoin local up"),
    ):
        queue.enqueue({})
