"""A queue's engine in memory: the same writer, reader and worker, over ports in process.

Async handlers run on the same virtual loop. Others run on the thread that called ``run``, one at a
time: a debugger, an interrupt and what belongs to that thread work as in any test.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any

from forkjoin_gcp.config import QueueConfig, Services
from forkjoin_gcp.engine import Engine
from forkjoin_gcp.items import Item, PayloadCodec
from forkjoin_gcp.joining.handlers import (
    BatchHandler,
    End,
    Handler,
    ItemHandler,
    Outcome,
    Run,
    _is_async,
)
from forkjoin_gcp.joining.leases import RENEWALS
from forkjoin_gcp.ports import Clock, Counters, Ports
from forkjoin_gcp.runtime import Answer, Inbox, ThreadedRunner
from forkjoin_gcp.tasks import RootTask, Task
from forkjoin_gcp.testing.in_memory_loop import WAITS_FOR_ITSELF, InMemoryLoop, InMemoryThread
from forkjoin_gcp.testing.in_process import InProcessIndex, InProcessScheduler, InProcessStore
from forkjoin_gcp.testing.virtual_time import VirtualClock

_task: contextvars.ContextVar[Task] = contextvars.ContextVar("task")

Call = tuple[asyncio.Future[Any], contextvars.Context, Callable[[Any], Any], Any]


@dataclass
class Tried:
    """An item that was tried: how its tries ended so far."""

    item: Item[Any]
    attempts: int = 0
    handled: bool = False
    errors: list[str] = field(default_factory=list)
    exception: BaseException | None = None


@dataclass
class Record:
    """What handlers were given, and what it came to: by item id, and by batch and position."""

    tried: dict[str, Tried] = field(default_factory=dict)
    chunks: dict[str, dict[int, list[Item[Any]]]] = field(default_factory=dict)
    touched: dict[str, None] = field(default_factory=dict)
    """Ids of items tried since this was last cleared, in order."""

    def begin(self, task: Task, items: Sequence[Item[Any]]) -> None:
        for item in items:
            self.tried.setdefault(item.id, Tried(item))
            self.touched[item.id] = None
        if isinstance(task, RootTask):
            self.chunks.setdefault(task.batch.key, {})[0] = list(items)
        elif task.generation == 0:
            self.chunks.setdefault(task.batch.key, {})[task.first] = list(items)

    def end(self, items: Sequence[Item[Any]], outcomes: Sequence[Outcome]) -> None:
        for item, outcome in zip(items, outcomes, strict=True):
            tried = self.tried[item.id]
            if outcome.end is not End.UNSTARTED:
                tried.attempts = item.attempt
            if outcome.end is End.SUCCEEDED:
                tried.handled = True
            elif outcome.end is not End.UNSTARTED:
                tried.errors.append(outcome.error)


class CallersThread:
    """Runs functions for the loop on the thread that serves.

    Where none does they wait for the next one, so that nothing is handled outside a run; for a task
    that is joined by hand they run on a thread of the loop's.
    """

    def __init__(self, loop: InMemoryLoop) -> None:
        self._loop = loop
        self._calls: SimpleQueue[Call | None] | None = None
        self._opened = asyncio.Event()
        self.joins = 0

    @property
    def is_serving(self) -> bool:
        """Whether a thread serves at present."""
        return self._calls is not None

    async def run(self, function: Callable[[Any], Any], argument: Any) -> Any:
        """Call ``function`` there; no virtual time passes meanwhile."""
        context = contextvars.copy_context()
        while self._calls is None and not self.joins:
            await self._opened.wait()
        if self._calls is None:
            return await self._loop.run_in_executor(None, context.run, function, argument)
        future: asyncio.Future[Any] = self._loop.create_future()
        self._loop.hold_until(future)
        self._calls.put((future, context, function, argument))
        return await future

    def open(self) -> SimpleQueue[Call | None]:
        """From here on functions are run by who calls ``serve``."""
        self._calls = SimpleQueue()
        return self._calls

    def opened(self) -> None:
        """Let those on who wait to be served. On the loop's own thread."""
        self._opened.set()

    def close(self) -> None:
        """Nobody serves any more: what still waits to be run fails. On the loop's own thread."""
        self._opened.clear()
        calls, self._calls = self._calls, None
        with contextlib.suppress(Empty):
            while calls is not None and (call := calls.get_nowait()) is not None:
                call[0].cancel()
        if calls is not None:
            calls.put(None)

    async def closed(self) -> None:
        """Return when nobody serves any more."""
        while self._calls is not None:  # noqa: ASYNC110 - a pass of the loop or two
            await asyncio.sleep(0)  # for the callback that closes it

    def serve(self, calls: SimpleQueue[Call | None]) -> None:
        """Run functions until a None comes."""
        while (call := calls.get()) is not None:
            future, context, function, argument = call
            try:
                result = context.run(function, argument)
            except KeyboardInterrupt:
                self._loop.call_soon_threadsafe(future.cancel)
                raise
            except StopIteration as error:  # which no future takes
                raised = RuntimeError(f"the handler raised {error!r}")
                self._loop.call_soon_threadsafe(_settle, future, None, raised)
            except BaseException as error:
                self._loop.call_soon_threadsafe(_settle, future, None, error)
            else:
                self._loop.call_soon_threadsafe(_settle, future, result, None)


def _settle(future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)


class MemoryEngine(Engine):
    """A started queue in memory. ``end`` ends it; ``stop`` only closes it to new items."""

    io: InMemoryThread

    def __init__(self, config: QueueConfig, counters: Counters, codec: PayloadCodec[Any]) -> None:
        thread = InMemoryThread(f"forkjoin-{config.name}-in-memory")
        self.loop = thread.loop
        self.record = Record()
        self.callers = CallersThread(thread.loop)
        clock = VirtualClock(thread.loop, start=time.time())
        super().__init__(config, Services(), counters, codec, self._connect, io=thread, clock=clock)
        self.inbox = _Inbox(thread.loop, self._take)

    async def join(self, task: Task, handler: Handler) -> None:
        _task.set(task)
        self.callers.joins += 1
        try:
            await self.loop.watch(super().join(task, handler))
        finally:
            self.callers.joins -= 1

    async def deliver(self, task: Task, handler: Handler) -> None:
        """As ``join``, for who lets time pass already."""
        _task.set(task)
        await super().join(task, handler)

    def stop(self) -> None:
        if self.io.is_current():  # a handler closes its own queue
            self._closing = self.loop.create_task(self._drain())
        else:
            self.io.submit(self.loop.watch(self._drain())).result()

    def end(self) -> None:
        """End the loop and its thread, with whatever is still in progress."""
        self.io.stop()

    async def _connect(
        self, config: QueueConfig, services: Services, counters: Counters, clock: Clock
    ) -> Ports:
        self.store = InProcessStore(clock)
        self.scheduler = InProcessScheduler(clock)
        return Ports(InProcessIndex(config, clock), self.store, self.scheduler, clock)

    async def _end_joins(self) -> None:
        """There are no connections, and a handler that closes its queue is to come to its end."""

    def _lease_seconds(self) -> float:
        """So long that no renewal's timer lets time pass: nobody else asks for a lease here."""
        return self._config.dispatch_deadline * 2 * RENEWALS

    def _new_runner(self, handler: Handler) -> ThreadedRunner:
        return _Runner(handler, self._config.dispatch_deadline, self)

    def _take(self, payloads: Sequence[str], done: Callable[[Answer], None]) -> None:
        def answer(given: Answer) -> None:
            self.loop.answered()
            done(given)

        self.loop.submitted()
        self._writer.submit(payloads, answer)


class _Inbox(Inbox):
    """An inbox that knows the loops it must not block, and those whose time it must hold."""

    def hand_in(self, payloads: Sequence[str]) -> Future[list[str]]:
        if asyncio._get_running_loop() is self._loop:
            raise RuntimeError(WAITS_FOR_ITSELF)
        return super().hand_in(payloads)

    def hand_in_from_loop(self, payloads: Sequence[str]) -> asyncio.Future[list[str]]:
        future = super().hand_in_from_loop(payloads)
        loop = asyncio.get_running_loop()
        if isinstance(loop, InMemoryLoop) and loop is not self._loop:
            loop.hold_until(future)
        return future


class _Runner(ThreadedRunner):
    """Runs handlers on the virtual loop, with the deadlines of production."""

    def __init__(self, handler: Handler, dispatch_deadline: float, engine: MemoryEngine) -> None:
        self._engine = engine
        super().__init__(self._observed(handler), dispatch_deadline)

    async def run(self, items: Sequence[Item[Any]], elapsed: float) -> list[Outcome]:
        margin = min(30.0, self._deadline / 10)
        left = max(0.0, self._deadline - elapsed - margin)
        run = Run(items, escapes=True)  # pytest.fail, Ctrl-C
        self._engine.record.begin(_task.get(), items)
        with self._engine.loop.deadline(left):
            handling = asyncio.ensure_future(self._bounded(run, left, margin))
            try:
                await asyncio.wait([handling], timeout=left + margin / 2)
                if handling.done():
                    handling.result()
            finally:
                handling.cancel()
        outcomes = run.results()
        self._engine.record.end(items, outcomes)
        return outcomes

    def _observed(self, handler: Handler) -> Handler:
        """The handler, with its function on the loop or the caller's thread, and seen by both."""
        assert isinstance(handler, (ItemHandler, BatchHandler))
        function: Callable[[Any], Any] = handler.function
        record, loop, callers = self._engine.record, self._engine.loop, self._engine.callers
        is_async = _is_async(function)

        async def call(argument: Any) -> None:
            many = isinstance(argument, list)
            items = argument if many else [argument]
            with loop.handler(f"a batch of {len(items)}" if many else items[0].id):
                try:
                    if is_async:
                        await function(argument)
                    else:
                        await callers.run(function, argument)
                except BaseException as error:
                    for item in items:
                        record.tried[item.id].exception = error
                    raise

        if isinstance(handler, BatchHandler):
            return BatchHandler(call)
        return ItemHandler(call, handler.concurrency)
