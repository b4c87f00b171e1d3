"""The queue object: many threads and loops, handlers off the I/O loop, closing, forking."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from pydantic import BaseModel

from forkjoin_gcp import (
    ConfigurationError,
    ForkJoinQueue,
    HandlerError,
    InvalidPayload,
    Item,
    PayloadError,
    QueueClosed,
    QueueFull,
    Services,
    StoreUnavailable,
)
from forkjoin_gcp.config import QueueConfig
from forkjoin_gcp.joining.handlers import BatchItem
from forkjoin_gcp.ports import Clock, Counters, Ports
from forkjoin_gcp.runtime import Answer, Inbox, LoopThread
from forkjoin_gcp.tasks import parse_task
from forkjoin_gcp.testing.in_process import InProcessIndex, InProcessScheduler, InProcessStore
from forkjoin_gcp.testing.local import wait_until


class Feed(BaseModel):
    url: str


class Cloud:
    """Ports in process, kept so that a test can see and break them."""

    def __init__(self) -> None:
        self.connections = 0

    async def connect(
        self, config: QueueConfig, services: Services, counters: Counters, clock: Clock
    ) -> Ports:
        self.connections += 1
        self.index = InProcessIndex(config, clock)
        self.store = InProcessStore()
        self.scheduler = InProcessScheduler(clock)
        return Ports(self.index, self.store, self.scheduler, clock)

    def join_all(self, queue: ForkJoinQueue[Any]) -> None:
        """Deliver every task there is, in order of creation, on this thread."""
        done = 0
        while done < len(self.scheduler.created):
            queue.join(parse_task(self.scheduler.created[done].body))
            done += 1


@pytest.fixture
def cloud() -> Cloud:
    return Cloud()


@pytest.fixture
def feeds(cloud: Cloud) -> Iterator[ForkJoinQueue[Feed]]:
    queue = ForkJoinQueue("feeds", payload=Feed, services=Services(), connect=cloud.connect)
    with queue:
        yield queue


def threads_of(queue: ForkJoinQueue[Any]) -> list[str]:
    return [thread.name for thread in threading.enumerate() if queue.name in thread.name]


def test_declaring_does_no_io_and_needs_no_environment(
    cloud: Cloud, feeds: ForkJoinQueue[Feed]
) -> None:
    assert cloud.connections == 0
    assert threads_of(feeds) == []
    assert repr(feeds) == "ForkJoinQueue('feeds', payload=Feed)"


def test_starting_connects_before_the_first_item(cloud: Cloud, feeds: ForkJoinQueue[Feed]) -> None:
    feeds.start()
    feeds.start()
    assert cloud.connections == 1


def test_enqueue_and_handle(cloud: Cloud, feeds: ForkJoinQueue[Feed]) -> None:
    seen: list[Item[Feed]] = []

    @feeds.handler
    async def fetch(item: Item[Feed]) -> None:
        seen.append(item)

    ids = [feeds.enqueue(Feed(url="a")), *feeds.enqueue_many([Feed(url="b"), Feed(url="c")])]
    cloud.join_all(feeds)
    assert [item.payload.url for item in seen] == ["a", "b", "c"]
    assert [item.id for item in seen] == ids
    assert feeds.counters["items_handled"] == 3


def test_plain_dicts_need_no_type(cloud: Cloud) -> None:
    with ForkJoinQueue("plain", services=Services(), connect=cloud.connect) as plain:
        assert plain.enqueue({"any": ["thing", 1]})


def test_threads_share_groups(cloud: Cloud, feeds: ForkJoinQueue[Feed]) -> None:
    ids: list[str] = []

    def work(n: int) -> None:
        ids.extend(feeds.enqueue(Feed(url=f"{n}/{m}")) for m in range(20))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(ids)) == 320
    assert feeds.counters["items_enqueued"] == 320
    assert cloud.connections == 1


def test_event_loops_share_the_queue(cloud: Cloud, feeds: ForkJoinQueue[Feed]) -> None:
    ids: list[str] = []

    def work(n: int) -> None:
        async def main() -> None:
            ids.extend(
                await asyncio.gather(*(feeds.aenqueue(Feed(url=f"{n}/{m}")) for m in range(50)))
            )
            ids.extend(await feeds.aenqueue_many([Feed(url="x"), Feed(url="y")]))

        asyncio.run(main())

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(ids)) == 4 * 52


def test_a_cancelled_caller_disturbs_nobody(feeds: ForkJoinQueue[Feed]) -> None:
    async def main() -> None:
        calls = [asyncio.ensure_future(feeds.aenqueue(Feed(url=str(n)))) for n in range(10)]
        await asyncio.sleep(0)
        calls[3].cancel()
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert [isinstance(result, str) for result in results].count(True) == 9

    asyncio.run(main())


def test_bad_payloads_are_refused_before_anything_starts(
    cloud: Cloud, feeds: ForkJoinQueue[Feed]
) -> None:
    with pytest.raises(InvalidPayload, match="url"):
        feeds.enqueue({"link": "x"})  # type: ignore[arg-type]
    with pytest.raises(InvalidPayload, match=r"item 1: .*url"):
        feeds.enqueue_many([Feed(url="a"), {"link": "x"}])  # type: ignore[list-item]
    with pytest.raises(PayloadError, match="no items"):
        feeds.enqueue_many([])
    with pytest.raises(PayloadError, match="no items"):
        asyncio.run(feeds.aenqueue_many([]))
    assert cloud.connections == 0


def test_errors_of_services_reach_each_caller(cloud: Cloud, feeds: ForkJoinQueue[Feed]) -> None:
    feeds.enqueue(Feed(url="a"))

    async def away(batch: Any, segments: Any) -> Any:
        return [StoreUnavailable("away") for _ in segments]

    cloud.store.create = away  # type: ignore[method-assign]
    with pytest.raises(StoreUnavailable, match="away"):
        feeds.enqueue(Feed(url="b"))
    with pytest.raises(StoreUnavailable, match="away"):
        asyncio.run(feeds.aenqueue(Feed(url="b")))


def test_an_unexpected_error_is_told_and_the_queue_goes_on(
    cloud: Cloud, feeds: ForkJoinQueue[Feed]
) -> None:
    feeds.enqueue(Feed(url="a"))
    create = cloud.store.create

    async def broken(batch: Any, segments: Any) -> Any:
        cloud.store.create = create  # type: ignore[method-assign]
        raise ZeroDivisionError("a bug")

    cloud.store.create = broken  # type: ignore[method-assign]
    with pytest.raises(Exception, match="ZeroDivisionError"):
        feeds.enqueue(Feed(url="b"))
    assert feeds.enqueue(Feed(url="c"))


def test_missing_settings_are_named_and_can_be_mended(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FORKJOIN_PROJECT", "GOOGLE_CLOUD_PROJECT", "FORKJOIN_MEMORYSTORE"):
        monkeypatch.delenv(name, raising=False)
    with (
        ForkJoinQueue("feeds") as queue,
        pytest.raises(ConfigurationError, match="FORKJOIN_PROJECT"),
    ):
        queue.enqueue({})
    assert threads_of(queue) == []


# Handlers


def test_a_second_handler_is_refused(feeds: ForkJoinQueue[Feed]) -> None:
    feeds.handler(lambda item: None)
    with pytest.raises(HandlerError, match=r"feeds.*already"):
        feeds.batch_handler(lambda items: None)


def test_handlers_of_the_wrong_shape_are_refused(feeds: ForkJoinQueue[Feed]) -> None:
    with pytest.raises(HandlerError, match="must take one item"):
        feeds.handler(lambda: None)  # type: ignore[call-overload]
    with pytest.raises(HandlerError, match="must take a list of items"):
        feeds.batch_handler(lambda one, two: None)
    with pytest.raises(HandlerError, match="not a function"):
        feeds.handler(7)  # type: ignore[call-overload]
    with pytest.raises(ConfigurationError, match="concurrency=0"):
        feeds.handler(concurrency=0)


def test_joining_without_a_handler_is_refused(cloud: Cloud, feeds: ForkJoinQueue[Feed]) -> None:
    feeds.enqueue(Feed(url="a"))
    with pytest.raises(HandlerError, match="no handler"):
        cloud.join_all(feeds)


@pytest.mark.parametrize("kind", ["async", "sync", "async batch", "sync batch"])
def test_all_kinds_of_handlers(kind: str, cloud: Cloud, feeds: ForkJoinQueue[Feed]) -> None:
    seen: list[tuple[str, str]] = []

    def note(item: Item[Feed]) -> None:
        seen.append((item.payload.url, threading.current_thread().name))
        if item.payload.url == "2":
            raise ValueError

    def note_batch(items: list[BatchItem[Feed]]) -> None:
        for item in items:
            seen.append((item.payload.url, threading.current_thread().name))
            if item.payload.url == "2":
                item.fail("two")

    async def anote(item: Item[Feed]) -> None:
        note(item)

    async def anote_batch(items: list[BatchItem[Feed]]) -> None:
        note_batch(items)

    if "batch" in kind:
        feeds.batch_handler(note_batch if kind == "sync batch" else anote_batch)
    else:
        feeds.handler(note if kind == "sync" else anote)
    feeds.enqueue_many([Feed(url=str(n)) for n in range(5)])
    feeds.join(parse_task(cloud.scheduler.created[0].body))
    assert sorted(url for url, _ in seen) == ["0", "1", "2", "3", "4"]
    assert not any("forkjoin-feeds" in name for _, name in seen), "never on the I/O loop"
    assert feeds.counters["items_handled"] == 4
    assert feeds.counters["items_left"] == 1


def test_sync_handlers_run_side_by_side(cloud: Cloud, feeds: ForkJoinQueue[Feed]) -> None:
    together = threading.Barrier(10, timeout=10)

    @feeds.handler(concurrency=10)
    def meet(item: Item[Feed]) -> None:
        together.wait()

    feeds.enqueue_many([Feed(url=str(n)) for n in range(10)])
    cloud.join_all(feeds)
    assert feeds.counters["items_handled"] == 10


def test_concurrency_is_a_limit(cloud: Cloud, feeds: ForkJoinQueue[Feed]) -> None:
    running = most = 0

    @feeds.handler(concurrency=3)
    async def count(item: Item[Feed]) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1

    feeds.enqueue_many([Feed(url=str(n)) for n in range(20)])
    cloud.join_all(feeds)
    assert most == 3


def test_a_handler_that_blocks_its_loop_does_not_delay_enqueue(
    cloud: Cloud, feeds: ForkJoinQueue[Feed]
) -> None:
    entered, leave = threading.Event(), threading.Event()

    @feeds.handler
    async def block(item: Item[Feed]) -> None:
        entered.set()
        leave.wait(10)

    feeds.enqueue(Feed(url="a"))
    joining = threading.Thread(target=cloud.join_all, args=(feeds,))
    joining.start()
    assert entered.wait(10)
    began = time.monotonic()
    feeds.enqueue(Feed(url="b"))
    assert time.monotonic() - began < 5
    leave.set()
    joining.join()


class NotAnExceptionError(BaseException):
    """What some libraries raise to get past ``except Exception``."""


@pytest.mark.parametrize("is_async", [True, False])
@pytest.mark.parametrize(
    "error", [SystemExit(3), KeyboardInterrupt(), NotAnExceptionError(), asyncio.CancelledError()]
)
def test_whatever_a_handler_raises_fails_its_item_alone(
    cloud: Cloud, feeds: ForkJoinQueue[Feed], error: BaseException, is_async: bool
) -> None:
    def leave(item: Item[Feed]) -> None:
        if item.payload.url == "1":
            raise error

    async def aleave(item: Item[Feed]) -> None:
        leave(item)

    feeds.handler(aleave if is_async else leave)
    feeds.enqueue_many([Feed(url=str(n)) for n in range(3)])
    feeds.join(parse_task(cloud.scheduler.created[0].body))
    assert feeds.counters["items_handled"] == 2
    assert feeds.counters["items_left"] == 1


@pytest.mark.parametrize("error", [NotAnExceptionError(), asyncio.CancelledError()])
def test_whatever_a_batch_handler_raises_fails_what_it_had_not_decided(
    cloud: Cloud, feeds: ForkJoinQueue[Feed], error: BaseException
) -> None:
    @feeds.batch_handler
    async def leave(items: list[BatchItem[Feed]]) -> None:
        items[0].reject("never")
        raise error

    feeds.enqueue_many([Feed(url=str(n)) for n in range(3)])
    feeds.join(parse_task(cloud.scheduler.created[0].body))
    assert feeds.counters["items_dead"] == 1
    assert feeds.counters["items_left"] == 2


def test_dead_letters_are_shown(cloud: Cloud) -> None:
    with ForkJoinQueue(
        "dead", services=Services(), connect=cloud.connect, max_attempts=1, lanes=2
    ) as queue:

        @queue.handler
        def fail(item: Item[Any]) -> None:
            raise ValueError("no")

        (one,) = queue.enqueue_many([{"n": 1}])
        cloud.join_all(queue)
        (letter,) = queue.dead_letters()
        assert (letter.id, letter.reason, letter.error) == (one, "attempts", "ValueError: no")


# Backpressure


def test_threads_and_coroutines_wait_for_room_together(cloud: Cloud) -> None:
    feeds = ForkJoinQueue(
        "feeds", payload=Feed, services=Services(), connect=cloud.connect, max_pending_items=4
    )
    with feeds:
        feeds.start()
        gate = hold_back(cloud)
        ids: list[str] = []
        threads = [
            threading.Thread(target=lambda n: ids.append(feeds.enqueue(Feed(url=str(n)))), args=[n])
            for n in range(10)
        ]

        async def awork() -> None:
            ids.extend(await asyncio.gather(*(feeds.aenqueue(Feed(url="a")) for _ in range(10))))

        threads += [threading.Thread(target=lambda: asyncio.run(awork())) for _ in range(2)]
        for thread in threads:
            thread.start()
        wait_until(lambda: feeds.counters["waits_for_room"] == 26)
        assert ids == []
        gate.set()
        for thread in threads:
            thread.join(30)
        assert len(set(ids)) == 30


def test_full_queues_refuse_threads_and_coroutines(cloud: Cloud) -> None:
    feeds = ForkJoinQueue(
        "feeds",
        payload=Feed,
        services=Services(),
        connect=cloud.connect,
        max_pending_items=1,
        enqueue_timeout=0.05,
    )
    with feeds:
        feeds.start()
        gate = hold_back(cloud)
        taken = threading.Thread(target=feeds.enqueue, args=[Feed(url="taken")])
        taken.start()
        wait_until(lambda: feeds.counters["groups"] == 1)
        with pytest.raises(QueueFull, match="max_pending_items=1"):
            feeds.enqueue(Feed(url="b"))
        with pytest.raises(QueueFull, match="2 items"):
            asyncio.run(feeds.aenqueue_many([Feed(url="b"), Feed(url="c")]))
        gate.set()
        taken.join(30)
        assert feeds.enqueue(Feed(url="d"))


def hold_back(cloud: Cloud) -> threading.Event:
    """Let the store write nothing before the event is set."""
    gate, create = threading.Event(), cloud.store.create

    async def held(*args: Any) -> Any:
        await asyncio.to_thread(gate.wait)
        return await create(*args)

    cloud.store.create = held  # type: ignore[method-assign]
    return gate


# Closing and forking


def test_closed_queues_refuse_and_end_their_threads(feeds: ForkJoinQueue[Feed]) -> None:
    feeds.enqueue(Feed(url="a"))
    assert threads_of(feeds)
    feeds.close()
    feeds.close()
    assert threads_of(feeds) == []
    with pytest.raises(QueueClosed, match="feeds"):
        feeds.enqueue(Feed(url="b"))
    with pytest.raises(QueueClosed):
        asyncio.run(feeds.aenqueue(Feed(url="b")))


def test_closing_under_load_answers_every_caller(feeds: ForkJoinQueue[Feed]) -> None:
    feeds.enqueue(Feed(url="first"))
    answers: list[str] = []

    def work() -> None:
        while True:
            try:
                answers.append(feeds.enqueue(Feed(url="x")))
            except QueueClosed:
                return

    async def awork() -> None:
        while True:
            try:
                answers.append(await feeds.aenqueue(Feed(url="x")))
            except QueueClosed:
                return

    threads = [threading.Thread(target=work) for _ in range(8)]
    threads.append(threading.Thread(target=lambda: asyncio.run(awork())))
    for thread in threads:
        thread.start()
    while len(answers) < 200:
        time.sleep(0)
    feeds.close()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive(), "no caller waits for ever"
    assert feeds.counters["items_enqueued"] >= len(answers)


def test_a_handler_that_blocks_its_loop_does_not_hold_up_closing(
    cloud: Cloud, feeds: ForkJoinQueue[Feed]
) -> None:
    entered, leave = threading.Event(), threading.Event()

    @feeds.handler
    async def block(item: Item[Feed]) -> None:
        entered.set()
        leave.wait(60)

    feeds.enqueue(Feed(url="a"))
    task = parse_task(cloud.scheduler.created[0].body)
    joining = threading.Thread(target=_join_quietly, args=[feeds, task], daemon=True)
    joining.start()
    assert entered.wait(10)
    closing = threading.Thread(target=feeds.close)
    closing.start()
    closing.join(10)
    assert not closing.is_alive()
    leave.set()
    joining.join(10)


def _join_quietly(queue: ForkJoinQueue[Any], task: Any) -> None:
    with contextlib.suppress(BaseException):  # the loop it runs on is ended
        queue.join(task)


def test_whoever_comes_while_a_loop_ends_does_not_wait_for_ever() -> None:
    thread, ending, may_end = LoopThread("ending"), threading.Event(), threading.Event()

    async def stubborn() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ending.set()
            await asyncio.to_thread(may_end.wait, 10)

    async def begin() -> None:
        asyncio.ensure_future(stubborn())  # noqa: RUF006
        await asyncio.sleep(0)

    thread.submit(begin()).result(10)
    stopping = threading.Thread(target=thread.stop)
    stopping.start()
    assert ending.wait(10)
    with pytest.raises(QueueClosed):
        thread.submit(asyncio.sleep(60)).result(1)
    may_end.set()
    stopping.join(10)
    with pytest.raises(QueueClosed):
        thread.submit(asyncio.sleep(60))


def test_a_paused_inbox_keeps_what_is_handed_in_for_the_loop_that_comes_after() -> None:
    first, second = LoopThread("first"), LoopThread("second")
    taken: list[str] = []

    def take(payloads: Sequence[str], done: Callable[[Answer], None]) -> None:
        taken.append(threading.current_thread().name)
        done([*payloads])

    async def pause() -> None:
        inbox.pause()

    async def on_a_loop() -> list[str]:
        answer = inbox.hand_in_from_loop(["d"])
        inbox.resume(second.loop, take)
        return await answer

    inbox = Inbox(first.loop, take)
    assert inbox.hand_in(["a"]).result(10) == ["a"]
    first.submit(pause()).result(10)
    waits = inbox.hand_in(["b"])
    first.stop()
    later = inbox.hand_in(["c"])
    assert inbox.is_waiting
    assert asyncio.run(on_a_loop()) == ["d"]
    assert (waits.result(10), later.result(10)) == (["b"], ["c"])
    assert inbox.hand_in(["e"]).result(10) == ["e"]
    assert taken == ["first", "second", "second", "second", "second"]
    second.stop()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform cannot fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_starts_afresh(cloud: Cloud, feeds: ForkJoinQueue[Feed]) -> None:
    feeds.enqueue(Feed(url="parent"))
    read, write = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.write(write, feeds.enqueue(Feed(url="child")).encode())
            feeds.close()
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as answer:
        assert answer.read()
    assert os.waitpid(child, 0)[1] == 0
    assert feeds.enqueue(Feed(url="parent again"))
    assert cloud.connections == 1
