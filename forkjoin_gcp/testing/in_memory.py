"""A queue without any service: ``with feeds.in_memory() as local``."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from forkjoin_gcp.errors import ConfigurationError, HandlerError, QueueClosed
from forkjoin_gcp.items import Item
from forkjoin_gcp.ports import Counters
from forkjoin_gcp.tasks import parse_task
from forkjoin_gcp.testing.in_memory_engine import MemoryEngine, Tried
from forkjoin_gcp.testing.outcomes import ItemOutcome, JoinedBatch, Ran

if TYPE_CHECKING:
    from forkjoin_gcp.queue import ForkJoinQueue

P = TypeVar("P")


class EndlessError(AssertionError):
    """A run made ``max_requests`` requests, and there is still work left."""


@contextlib.contextmanager
def replaced(queue: ForkJoinQueue[Any], **state: Any) -> Iterator[None]:
    """Give a declared queue another state, under the names of its attributes, and restore it."""
    with queue._lock:
        before = {name: getattr(queue, name) for name in state}
        for name, value in state.items():
            setattr(queue, name, value)
    try:
        yield
    finally:
        with queue._lock:
            for name, value in before.items():
                setattr(queue, name, value)


class InMemory(Generic[P]):
    """A queue object in memory, from entering this context until leaving it.

    Everything its owner enqueues, on any thread or event loop, goes through the real writer to
    stores in this process. Nothing is handled, and no time passes, but in ``run``. The queue's
    counters begin at 0.
    """

    def __init__(self, queue: ForkJoinQueue[P]) -> None:
        self._queue = queue
        self._engine: MemoryEngine | None = None
        self._leave = contextlib.ExitStack()
        self._limit = 0
        self._requests = 0

    def __repr__(self) -> str:
        if self._engine is None:
            return f"{self._queue!r}.in_memory(), not entered"
        return f"{self._queue!r}.in_memory(), {len(self.waiting)} items waiting"

    def __enter__(self) -> InMemory[P]:
        already = isinstance(self._queue._engine, MemoryEngine)
        if already:
            raise RuntimeError(f"queue {self._queue.name!r} is in memory already")
        counters = Counters()
        self._engine = engine = MemoryEngine(self._queue.config, counters, self._queue._codec)
        with contextlib.ExitStack() as stack:
            stack.callback(engine.end)
            stack.callback(engine.stop)
            stack.enter_context(
                replaced(self._queue, _engine=engine, counters=counters, _closed=False)
            )
            self._leave = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._leave.close()
        self._engine = None

    def run(self, *, seconds: float | None = None, max_requests: int = 10_000) -> Ran[P]:
        """Bring items to the handler as Cloud Tasks would, until none is left to be tried.

        Waiting takes no real time. With ``seconds``, so much virtual time passes, and what comes
        later is left. Async handlers run on an event loop of their own, others on this thread.

        Raises HandlerError where no handler is declared, EndlessError after ``max_requests``
        requests, and StuckError where handlers wait for what will not happen. What a handler
        raises is an outcome, as in production; the exception is found there.
        """
        engine = self._entered()
        if seconds is not None and not seconds >= 0:
            raise ConfigurationError(f"seconds={seconds!r}: must be 0 or more")
        if self._queue._handler is None:
            raise HandlerError(
                f"queue {self._queue.name!r} has no handler: import the module that declares it"
            )
        if engine.io.is_current() or engine.callers.is_serving:
            raise RuntimeError(f"queue {self._queue.name!r} is running already, on another call")
        began, self._requests, self._limit = engine.loop.time(), 0, max_requests
        buried = set(engine.store.buried)
        engine.record.touched.clear()
        engine.record.chunks.clear()
        calls = engine.callers.open()
        running = engine.io.submit(self._serve(engine, seconds))
        try:
            engine.callers.serve(calls)
            running.result()
        finally:
            running.cancel()
            engine.io.submit(engine.callers.closed()).result()
        for key in engine.store.buried.keys() - buried:
            engine.record.touched.setdefault(key)
        return Ran(
            batches=tuple(self._batches(engine)),
            outcomes={key: self._outcome(engine, key) for key in engine.record.touched},
            requests=self._requests,
            seconds=engine.loop.time() - began,
        )

    @property
    def waiting(self) -> list[Item[P]]:
        """Items that were accepted and not settled yet, as the handler will get them."""
        engine = self._entered()
        batches = sorted(engine.store.segments.items(), key=lambda held: held[0].index)
        return [
            Item(
                segment.item_id(stored),
                self._queue._codec.decode(stored.payload),
                stored.attempts + 1,
                datetime.fromtimestamp(segment.enqueued_at, UTC),
            )
            for _, held in batches
            for _, segment in sorted(held.items())
            for stored in segment.items
        ]

    @property
    def seconds(self) -> float:
        """Virtual seconds that have passed since the context was entered."""
        return self._entered().loop.time()

    def _entered(self) -> MemoryEngine:
        if self._engine is None:
            raise QueueClosed(
                f"queue {self._queue.name!r} is not in memory: use this inside "
                "`with queue.in_memory() as local:`"
            )
        return self._engine

    async def _serve(self, engine: MemoryEngine, seconds: float | None) -> None:
        engine.callers.opened()
        try:
            await engine.loop.watch(self._drive(engine, seconds))
        finally:
            engine.callers.close()

    async def _drive(self, engine: MemoryEngine, seconds: float | None) -> None:
        async def deliver(body: bytes, _tried: int) -> None:
            if self._requests >= self._limit:
                raise EndlessError(
                    f"after max_requests={self._limit:,} there is still work left: does a handler "
                    "enqueue to its own queue without end? If not, raise max_requests"
                )
            self._requests += 1
            handler = self._queue._handler
            assert handler is not None
            await engine.deliver(parse_task(body), handler)

        end = None if seconds is None else engine.loop.time() + seconds
        try:
            async with asyncio.timeout_at(end) as timeout:
                await engine.scheduler.run(deliver)
        except TimeoutError:
            if not timeout.expired():
                raise
        if end is not None:
            await asyncio.sleep(end - engine.loop.time())

    def _batches(self, engine: MemoryEngine) -> Iterator[JoinedBatch[P]]:
        for key, chunks in engine.record.chunks.items():
            ordered = [chunks[first] for first in sorted(chunks)]
            items = tuple(item for chunk in ordered for item in chunk)
            yield JoinedBatch(key, items, tuple(len(chunk) for chunk in ordered))

    def _outcome(self, engine: MemoryEngine, key: str) -> ItemOutcome[P]:
        _, letter = engine.store.buried.get(key, (None, None))
        tried: Tried | None = engine.record.tried.get(key)
        if tried is None:
            assert letter is not None
            payload: Any = letter.payload
            return ItemOutcome(
                key, payload, "dead", letter.attempts, (letter.error,), letter.reason
            )
        return ItemOutcome(
            key,
            tried.item.payload,
            "dead" if letter else "handled" if tried.handled else "waiting",
            tried.attempts,
            tuple(tried.errors),
            letter.reason if letter else "",
            tried.exception,
        )
