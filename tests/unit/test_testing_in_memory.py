"""A queue in memory: what users' unit tests stand on."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
import sqlite3
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pydantic import BaseModel

from forkjoin_gcp import (
    BatchItem,
    ConfigurationError,
    ForkJoinQueue,
    HandlerError,
    InvalidPayload,
    Item,
    QueueClosed,
    Reject,
    Retry,
    Services,
)
from forkjoin_gcp.tasks import RootTask
from forkjoin_gcp.testing import EndlessError, StuckError, virtual_time
from tests.unit.test_queue import Cloud, threads_of


class Feed(BaseModel):
    url: str


@pytest.fixture
def feeds() -> ForkJoinQueue[Feed]:
    """A queue as a module of a user's declares it: nobody closes it, nothing is set."""
    return ForkJoinQueue("feeds", payload=Feed)


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    left = {thread for thread in threading.enumerate() if "forkjoin" in thread.name} - before
    assert not left


def numbered(count: int) -> list[Feed]:
    return [Feed(url=str(n)) for n in range(count)]


# What a run tells


def test_what_is_enqueued_is_handled(feeds: ForkJoinQueue[Feed]) -> None:
    seen: list[Item[Feed]] = []

    @feeds.handler
    async def fetch(item: Item[Feed]) -> None:
        seen.append(item)

    with feeds.in_memory() as local:
        one = feeds.enqueue(Feed(url="a"))
        more = feeds.enqueue_many([Feed(url="b"), Feed(url="c")])
        assert [item.id for item in local.waiting] == [one, *more]
        assert [item.payload.url for item in local.waiting] == ["a", "b", "c"]
        assert not seen
        ran = local.run()
        assert local.waiting == []
    assert [item.payload.url for item in seen] == ["a", "b", "c"]
    assert list(ran.outcomes) == [one, *more]
    assert [outcome.state for outcome in ran.handled] == ["handled"] * 3
    assert (ran.dead, ran.waiting, ran.requests) == ([], [], 1)
    assert ran.outcomes[one].payload == Feed(url="a")
    assert ran.seconds == pytest.approx(0.5)
    assert repr(ran) == "Ran(3 handled, 0 dead, 0 waiting, 1 batches, 1 requests, 0.5 s)"


def test_batches_and_chunks_are_told() -> None:
    queue = ForkJoinQueue("feeds", batch_size=100, shards=3, lanes=2)
    queue.handler(lambda item: None)
    with queue.in_memory() as local:
        queue.enqueue_many({"n": n} for n in range(250))
        (batch,) = local.run().batches
        assert [item.payload["n"] for item in batch.items] == list(range(250))
        assert batch.chunks == (100, 100, 50)
        assert repr(batch) == f"JoinedBatch({batch.key!r}, 250 items, chunks=(100, 100, 50))"
        queue.enqueue({"n": 1})
        ran = local.run()
        assert len(ran.batches) == ran.requests == len(ran.outcomes) == 1, "of this run alone"


def test_failures_are_tried_again_without_waiting(feeds: ForkJoinQueue[Feed]) -> None:
    at: list[float] = []

    @feeds.handler
    async def fail(item: Item[Feed]) -> None:
        at.append(asyncio.get_running_loop().time())
        raise ValueError(f"try {item.attempt}")

    began = time.monotonic()
    with feeds.in_memory() as local:
        one = feeds.enqueue(Feed(url="a"))
        ran = local.run()
        (letter,) = feeds.dead_letters()
    assert time.monotonic() - began < 2
    (outcome,) = ran.dead
    assert (outcome.id, outcome.state, outcome.reason) == (one, "dead", "attempts")
    assert outcome.errors == tuple(f"ValueError: try {n}" for n in range(1, 6))
    assert outcome.attempts == ran.requests == 5
    assert [round(b - a) for a, b in itertools.pairwise(at)] == [10, 20, 40, 80]
    assert ran.seconds == pytest.approx(150.5, abs=0.1)
    assert letter.id == one
    assert isinstance(outcome.exception, ValueError)
    assert outcome.exception.__traceback__ is not None


def test_a_dead_letter_is_requeued_and_what_waits_is_swept() -> None:
    queue: ForkJoinQueue[dict[str, Any]] = ForkJoinQueue("again")
    rejects = True

    @queue.handler
    async def work(item: Item[dict[str, Any]]) -> None:
        if rejects:
            raise Reject("not now")

    with queue.in_memory() as local:
        one = queue.enqueue({"n": 1})
        assert local.run().outcomes[one].reason == "rejected"
        rejects = False
        assert queue.requeue(reason="rejected").done == 1
        assert queue.sweep().items == 1
        (outcome,) = local.run().handled
        assert (outcome.id, outcome.state) == (one, "handled")
        assert queue.dead_letters() == []
        assert queue.purge_dead_letters().found == 0


def test_each_item_has_its_own_outcome(feeds: ForkJoinQueue[Feed]) -> None:
    @feeds.handler
    def work(item: Item[Feed]) -> None:
        if item.payload.url == "1":
            raise Reject("gone")
        if item.payload.url == "2" and item.attempt < 3:
            raise Retry("busy", after=60)

    with feeds.in_memory() as local:
        ids = feeds.enqueue_many(numbered(3))
        ran = local.run()
    zero, one, two = (ran.outcomes[key] for key in ids)
    assert (zero.state, zero.attempts, zero.errors) == ("handled", 1, ())
    assert (one.state, one.reason, one.errors) == ("dead", "rejected", ("gone",))
    assert (two.state, two.attempts, two.errors) == ("handled", 3, ("busy", "busy"))
    assert ran.seconds >= 120


def test_batch_handlers(feeds: ForkJoinQueue[Feed]) -> None:
    seen: list[int] = []

    @feeds.batch_handler
    async def work(items: list[BatchItem[Feed]]) -> None:
        seen.append(len(items))
        for item in items:
            if item.payload.url == "1":
                item.reject("no")

    with feeds.in_memory() as local:
        feeds.enqueue_many(numbered(3))
        ran = local.run()
    assert seen == [3]
    assert [outcome.payload.url for outcome in ran.handled] == ["0", "2"]
    assert [outcome.reason for outcome in ran.dead] == ["rejected"]


def test_part_of_the_time_leaves_the_rest(feeds: ForkJoinQueue[Feed]) -> None:
    @feeds.handler
    async def slow(item: Item[Feed]) -> None:
        if item.attempt == 1:
            raise ValueError("once")
        await asyncio.sleep(100)

    with feeds.in_memory() as local:
        feeds.enqueue(Feed(url="a"))
        assert local.run(seconds=0.4).requests == 0
        first = local.run(seconds=1)
        assert [(one.state, one.attempts) for one in first.waiting] == [("waiting", 1)]
        assert local.seconds == pytest.approx(1.4)
        assert [item.attempt for item in local.waiting] == [2]
        during = local.run(seconds=60)
        assert (during.requests, local.seconds) == (1, pytest.approx(61.4)), "in the middle of it"
        rest = local.run()
        assert rest.requests == 0
        assert local.waiting == []
        assert local.run(seconds=3600).seconds == pytest.approx(3600)


def test_time_stands_still_between_calls(feeds: ForkJoinQueue[Feed]) -> None:
    feeds.handler(lambda item: None)
    with feeds.in_memory() as local:
        feeds.enqueue(Feed(url="a"))
        time.sleep(0.05)
        feeds.enqueue(Feed(url="b"))
        assert local.seconds == 0
        assert len(local.run().batches) == 1
        (item,) = [feeds.enqueue(Feed(url="c"))] and local.waiting
        assert abs(item.enqueued_at - datetime.now(UTC)) < timedelta(minutes=5)


def test_ten_thousand_items_take_less_than_two_seconds(feeds: ForkJoinQueue[Feed]) -> None:
    @feeds.handler
    async def fetch(item: Item[Feed]) -> None:
        await asyncio.sleep(1)

    with feeds.in_memory() as local:
        began = time.process_time()  # of all threads: a busy machine is no failure
        feeds.enqueue_many(numbered(10_000))
        ran = local.run()
        took = time.process_time() - began
    assert len(ran.handled) == 10_000
    assert ran.requests == 101, "a second root, of the full batch"
    assert took < 2, "0.5 s where this was written"


# Callers


def test_any_event_loop_may_enqueue(feeds: ForkJoinQueue[Feed]) -> None:
    feeds.handler(lambda item: None)

    async def main() -> None:
        with feeds.in_memory() as local:
            ids = await asyncio.gather(*(feeds.aenqueue(feed) for feed in numbered(500)))
            ids += await feeds.aenqueue_many(numbered(3))
            assert set(local.run().outcomes) == set(ids)
            await feeds.aenqueue(Feed(url="x"))
            assert len((await asyncio.to_thread(local.run)).handled) == 1

    asyncio.run(main())


def test_many_threads_may_enqueue(feeds: ForkJoinQueue[Feed]) -> None:
    feeds.handler(lambda item: None)
    with feeds.in_memory() as local, ThreadPoolExecutor(8) as pool:
        ids = list(pool.map(feeds.enqueue, numbered(400)))
        assert set(local.run().outcomes) == set(ids)


def test_threads_of_handlers_that_enqueue_at_once_share_groups(feeds: ForkJoinQueue[Feed]) -> None:
    @feeds.handler
    async def split(item: Item[Feed]) -> None:
        if item.payload.url == "all":
            await asyncio.gather(*(asyncio.to_thread(feeds.enqueue, feed) for feed in numbered(40)))

    with feeds.in_memory() as local:
        feeds.enqueue(Feed(url="all"))
        assert len(local.run().handled) == 41


@pytest.mark.parametrize("is_async", [True, False])
def test_handlers_may_enqueue_more(feeds: ForkJoinQueue[Feed], is_async: bool) -> None:
    if is_async:

        @feeds.handler
        async def follow(item: Item[Feed]) -> None:
            if len(item.payload.url) < 3:
                async with asyncio.timeout(1):
                    await feeds.aenqueue(Feed(url=item.payload.url + "x"))
    else:

        @feeds.handler
        def follow_too(item: Item[Feed]) -> None:
            if len(item.payload.url) < 3:
                feeds.enqueue(Feed(url=item.payload.url + "x"))

    with feeds.in_memory() as local:
        feeds.enqueue(Feed(url="x"))
        ran = local.run()
    assert [one.payload.url for one in ran.handled] == ["x", "xx", "xxx"]


def test_queues_in_memory_side_by_side(feeds: ForkJoinQueue[Feed]) -> None:
    mails = ForkJoinQueue("mails")
    mails.handler(lambda item: None)

    @feeds.handler
    async def tell(item: Item[Feed]) -> None:
        async with asyncio.timeout(1):
            await mails.aenqueue({"about": item.payload.url})

    with feeds.in_memory() as local, mails.in_memory() as post:
        feeds.enqueue_many(numbered(20))
        assert len(local.run().handled) == 20
        assert len(post.run().handled) == 20


def test_a_task_may_be_joined_by_hand(feeds: ForkJoinQueue[Feed]) -> None:
    """As a test of the join endpoint does, with no run going on."""
    seen: list[str] = []
    feeds.handler(lambda item: seen.append(item.payload.url))
    with feeds.in_memory() as local:
        feeds.enqueue(Feed(url="a"))
        (batch,) = local._entered().store.segments
        feeds.join(RootTask(batch))
        assert seen == ["a"]
        assert local.run().handled == []


# What is real


def test_handlers_that_are_not_async_run_on_the_thread_of_the_test(
    feeds: ForkJoinQueue[Feed],
) -> None:
    database = sqlite3.connect(":memory:")
    database.execute("create table seen (url)")

    @feeds.handler
    def note(item: Item[Feed]) -> None:
        database.execute("insert into seen values (?)", (item.payload.url,))

    with feeds.in_memory() as local:
        feeds.enqueue_many(numbered(10))
        assert not local.run().dead
    assert database.execute("select count(*) from seen").fetchone() == (10,)
    database.close()


def test_threads_at_work_are_waited_for(feeds: ForkJoinQueue[Feed]) -> None:
    @feeds.handler
    async def work(item: Item[Feed]) -> None:
        async with asyncio.timeout(1):
            await asyncio.to_thread(time.sleep, 0.05)

    with feeds.in_memory() as local:
        feeds.enqueue_many(numbered(3))
        assert len(local.run().handled) == 3


def test_threads_that_the_loop_does_not_know_are_waited_for(feeds: ForkJoinQueue[Feed]) -> None:
    pool = ThreadPoolExecutor(1)

    @feeds.handler
    async def work(item: Item[Feed]) -> None:
        await asyncio.wrap_future(pool.submit(time.sleep, 0.05))

    with feeds.in_memory() as local, pool:
        feeds.enqueue(Feed(url="a"))
        assert len(local.run().handled) == 1


def test_sockets_take_the_time_they_take(feeds: ForkJoinQueue[Feed]) -> None:
    listening = socket.create_server(("127.0.0.1", 0))

    def answer() -> None:
        connection, _ = listening.accept()
        with connection:
            time.sleep(0.05)
            connection.sendall(b"hello\n")

    @feeds.handler
    async def ask(item: Item[Feed]) -> None:
        async with asyncio.timeout(30):
            reader, writer = await asyncio.open_connection(*listening.getsockname())
            assert await reader.readline() == b"hello\n"
            writer.close()
            await writer.wait_closed()

    server = threading.Thread(target=answer)
    server.start()
    with feeds.in_memory() as local, listening:
        feeds.enqueue(Feed(url="a"))
        ran = local.run()
        assert len(ran.handled) == 1
        assert ran.seconds < 20
    server.join()


# What goes wrong


def test_a_handler_that_deadlocks_is_named(
    feeds: ForkJoinQueue[Feed], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(virtual_time, "STUCK_SECONDS", 0.05)

    @feeds.handler
    async def wait_for_ever(item: Item[Feed]) -> None:
        await asyncio.Event().wait()

    with feeds.in_memory() as local:
        ids = feeds.enqueue_many(numbered(5))
        with pytest.raises(StuckError) as raised:
            local.run()
        assert "5 calls of the handler wait for what will not happen" in str(raised.value)
        assert f"{ids[0]}: waits in wait_for_ever" in str(raised.value)
        assert __file__ in str(raised.value)
        assert "and 2 more" in str(raised.value)
        assert len(local.waiting) == 5
    with feeds.in_memory() as local:
        feeds.enqueue(Feed(url="a"))
        (batch,) = local._entered().store.segments
        with pytest.raises(StuckError, match="1 calls"):
            feeds.join(RootTask(batch))


def test_a_handler_too_slow_for_its_deadline_fails_as_in_production() -> None:
    queue = ForkJoinQueue("feeds", dispatch_deadline=30, max_attempts=2)

    @queue.handler
    async def sleep(item: Item[Any]) -> None:
        await asyncio.sleep(3600)

    with queue.in_memory() as local:
        queue.enqueue({})
        (outcome,) = local.run().dead
    assert outcome.errors == ("not finished when the dispatch deadline was near",) * 2


def test_a_handler_that_ignores_its_cancelling_is_left_behind() -> None:
    queue = ForkJoinQueue("feeds", dispatch_deadline=30, max_attempts=1)

    @queue.handler
    async def stay(item: Item[Any]) -> None:
        for _ in range(10):
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                continue

    with queue.in_memory() as local:
        queue.enqueue({})
        (outcome,) = local.run().dead
    assert "deadline" in outcome.errors[0]


def test_endless_work_is_ended(feeds: ForkJoinQueue[Feed]) -> None:
    @feeds.handler
    async def again(item: Item[Feed]) -> None:
        await feeds.aenqueue(item.payload)

    with feeds.in_memory() as local:
        feeds.enqueue(Feed(url="a"))
        with pytest.raises(EndlessError, match="max_requests=20"):
            local.run(max_requests=20)
        assert len(local.waiting) == 1
        with pytest.raises(EndlessError, match="max_requests=5"):
            local.run(max_requests=5)


def test_a_missing_handler_is_told_and_nothing_is_lost(feeds: ForkJoinQueue[Feed]) -> None:
    with feeds.in_memory() as local:
        feeds.enqueue(Feed(url="a"))
        with pytest.raises(HandlerError, match="no handler"):
            local.run()
        feeds.handler(lambda item: None)
        assert len(local.run().handled) == 1


@pytest.mark.parametrize("is_async", [True, False])
def test_what_pytest_raises_in_a_handler_ends_the_run(
    feeds: ForkJoinQueue[Feed], is_async: bool
) -> None:
    def work(item: Item[Feed]) -> None:
        pytest.fail("not like this")

    async def awork(item: Item[Feed]) -> None:
        pytest.fail("not like this")

    feeds.handler(awork if is_async else work)
    with feeds.in_memory() as local:
        feeds.enqueue(Feed(url="a"))
        with pytest.raises(BaseExceptionGroup) as raised:
            local.run()
        assert raised.group_contains(pytest.fail.Exception, match="not like this")


def test_an_interrupt_ends_the_run(feeds: ForkJoinQueue[Feed]) -> None:
    @feeds.handler
    def interrupted(item: Item[Feed]) -> None:
        raise KeyboardInterrupt

    with feeds.in_memory() as local:
        feeds.enqueue_many(numbered(5))
        with pytest.raises(KeyboardInterrupt):
            local.run()
        with pytest.raises(KeyboardInterrupt):
            local.run()


def test_stop_iteration_is_a_failure_like_any_other(feeds: ForkJoinQueue[Feed]) -> None:
    feeds.handler(lambda item: next(iter(())))
    with feeds.in_memory() as local:
        feeds.enqueue(Feed(url="a"))
        (outcome,) = local.run().dead
    assert "StopIteration" in outcome.errors[0]


def test_calls_left_over_by_an_error_keep_no_later_run_waiting(feeds: ForkJoinQueue[Feed]) -> None:
    @feeds.handler
    def grow(item: Item[Feed]) -> None:
        feeds.enqueue_many(numbered(300))

    with feeds.in_memory() as local:
        feeds.enqueue(Feed(url="a"))
        for _ in range(3):
            with pytest.raises(EndlessError):
                local.run(max_requests=5)


@pytest.mark.parametrize("call", ["enqueue", "enqueue_many", "dead_letters"])
def test_what_would_wait_for_itself_is_refused(feeds: ForkJoinQueue[Feed], call: str) -> None:
    calls = {
        "enqueue": lambda: feeds.enqueue(Feed(url="b")),
        "enqueue_many": lambda: feeds.enqueue_many(numbered(3)),
        "dead_letters": feeds.dead_letters,
    }

    @feeds.handler
    async def block(item: Item[Feed]) -> None:
        calls[call]()

    with feeds.in_memory() as local:
        feeds.enqueue(Feed(url="a"))
        (outcome,) = local.run().dead
    assert "await queue.aenqueue" in outcome.errors[0]


@pytest.mark.parametrize("is_async", [True, False])
def test_a_handler_may_close_its_queue(feeds: ForkJoinQueue[Feed], is_async: bool) -> None:
    def close(item: Item[Feed]) -> None:
        feeds.close()

    async def aclose(item: Item[Feed]) -> None:
        feeds.close()

    feeds.handler(aclose if is_async else close)
    with feeds.in_memory() as local:
        feeds.enqueue(Feed(url="a"))
        assert len(local.run().handled) == 1
        with pytest.raises(QueueClosed):
            feeds.enqueue(Feed(url="b"))


@pytest.mark.parametrize("is_async", [True, False])
def test_running_while_running_is_refused(feeds: ForkJoinQueue[Feed], is_async: bool) -> None:
    def work(item: Item[Feed]) -> None:
        local.run()

    async def awork(item: Item[Feed]) -> None:
        local.run()

    feeds.handler(awork if is_async else work)
    with feeds.in_memory() as local:
        feeds.enqueue(Feed(url="a"))
        (outcome,) = local.run().dead
    assert "running already" in outcome.errors[0]


def test_arguments_are_checked(feeds: ForkJoinQueue[Feed]) -> None:
    feeds.handler(lambda item: None)
    with feeds.in_memory() as local:
        for seconds in (-1, float("nan")):
            with pytest.raises(ConfigurationError, match="seconds"):
                local.run(seconds=seconds)
        with pytest.raises(InvalidPayload):
            feeds.enqueue({"link": 1})  # type: ignore[arg-type]


# Coming and going


def test_what_was_before_is_again_after() -> None:
    cloud = Cloud()
    with ForkJoinQueue("feeds", services=Services(), connect=cloud.connect) as queue:
        queue.enqueue({"n": 1})
        threads = threads_of(queue)
        with contextlib.suppress(ZeroDivisionError), queue.in_memory():
            queue.enqueue({"n": 2})
            assert queue.counters["items_enqueued"] == 1
            raise ZeroDivisionError
        assert threads_of(queue) == threads
        queue.enqueue({"n": 3})
        assert queue.counters["items_enqueued"] == 2
        assert cloud.connections == 1
        with queue.in_memory() as local:
            assert local.waiting == []


def test_closing_inside_refuses_items_and_runs_those_there_are(feeds: ForkJoinQueue[Feed]) -> None:
    feeds.handler(lambda item: None)
    with feeds.in_memory() as local:
        feeds.enqueue(Feed(url="a"))
        feeds.close()
        with pytest.raises(QueueClosed):
            feeds.enqueue(Feed(url="b"))
        assert len(local.run().handled) == 1
    feeds.close()
    with feeds.in_memory():
        assert feeds.enqueue(Feed(url="c")), "a queue that another test closed"
    with pytest.raises(QueueClosed):
        feeds.enqueue(Feed(url="d"))


def test_one_context_at_a_time(feeds: ForkJoinQueue[Feed]) -> None:
    with feeds.in_memory() as local:
        with pytest.raises(RuntimeError, match="in memory already"), feeds.in_memory():
            pass
        assert repr(local).endswith("0 items waiting")
        assert feeds.enqueue(Feed(url="a"))
    assert repr(local).endswith("not entered")
    with pytest.raises(QueueClosed, match=r"with queue\.in_memory"):
        local.run()


def test_leaving_ends_handlers_in_the_middle(feeds: ForkJoinQueue[Feed]) -> None:
    ended: list[str] = []

    @feeds.handler
    async def slow(item: Item[Feed]) -> None:
        try:
            await asyncio.sleep(300)
        finally:
            ended.append(item.payload.url)

    with feeds.in_memory() as local:
        feeds.enqueue(Feed(url="a"))
        local.run(seconds=10)
    assert ended == ["a"]
