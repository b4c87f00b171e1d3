"""How a queue's handler is called: for each item or for the batch, async or in threads.

A run fills in one outcome per item as it goes, so that whoever waits for it can take what is there
when time is up, even from a handler that never gives its thread back.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Generic, Protocol, TypeVar

from forkjoin_gcp.errors import HandlerError, Reject, Retry
from forkjoin_gcp.items import Item

logger = logging.getLogger(__name__)
P = TypeVar("P")


class End(Enum):
    """What became of one try of an item."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    REJECTED = "rejected"
    UNSTARTED = "unstarted"


@dataclass(frozen=True, slots=True)
class Outcome:
    """One try's end, what went wrong, and the least wait before the next try in seconds."""

    end: End
    error: str = ""
    after: float = 0.0


UNSTARTED = Outcome(End.UNSTARTED)
SUCCEEDED = Outcome(End.SUCCEEDED)
OUT_OF_TIME = Outcome(End.FAILED, "not finished when the dispatch deadline was near")


def outcome_of(error: BaseException) -> Outcome:
    """The outcome that an exception raised by a handler stands for."""
    if isinstance(error, Reject):
        return Outcome(End.REJECTED, error.reason)
    if isinstance(error, Retry):
        return Outcome(End.FAILED, error.reason, error.after)
    return Outcome(End.FAILED, f"{type(error).__name__}: {error}")


@dataclass(frozen=True)
class BatchItem(Item[P]):
    """An item as a batch handler gets it: it can be failed or rejected apart from its batch."""

    _verdicts: dict[str, Outcome] = field(default_factory=dict, repr=False, compare=False)

    def fail(self, error: BaseException | str) -> None:
        """This item failed: it is tried again like one whose handler raised ``error``."""
        if isinstance(error, BaseException):
            self._verdicts[self.id] = outcome_of(error)
        else:
            self._verdicts[self.id] = Outcome(End.FAILED, error)

    def reject(self, reason: str) -> None:
        """This item will never succeed: it is dead-lettered with ``reason``."""
        self._verdicts[self.id] = Outcome(End.REJECTED, reason)


class Run:
    """The items of one request on their way through a handler.

    What a handler raises fails its item; so does what is no Exception, unless it ``escapes``.
    """

    def __init__(self, items: Sequence[Item[Any]], *, escapes: bool = False) -> None:
        self.items = items
        self.escapes = escapes
        self.outcomes: list[Outcome | None] = [None] * len(items)
        self.started = [False] * len(items)

    def ends_with(self, error: BaseException) -> bool:
        """Whether ``error`` is no item's failure but the end of the run."""
        if isinstance(error, GeneratorExit):  # the coroutine is being closed
            return True
        return self.escapes and not isinstance(error, Exception | SystemExit)

    def results(self) -> list[Outcome]:
        """Outcomes as they stand: what was begun and has none is out of time."""
        return [
            outcome or (OUT_OF_TIME if started else UNSTARTED)
            for outcome, started in zip(self.outcomes, self.started, strict=True)
        ]


class Handler(Protocol):
    """Brings a run's items to an end on the event loop it is awaited on."""

    async def handle(self, run: Run, stop_after: float) -> None:
        """Fill in outcomes; begin nothing new after ``stop_after`` seconds.

        Raises nothing that a user's function raised. May be cancelled at any time.
        """


class ItemHandler(Generic[P]):
    """Calls a function for each item, ``concurrency`` at once: on the loop, or in threads."""

    def __init__(self, function: Callable[[Item[P]], Any], concurrency: int) -> None:
        _check(function, "one item")
        self.function = function
        self.concurrency = concurrency
        self._is_async = _is_async(function)

    async def handle(self, run: Run, stop_after: float) -> None:
        stop_at = asyncio.get_running_loop().time() + stop_after
        numbers = iter(range(len(run.items)))
        width = min(self.concurrency, len(run.items))
        if self._is_async:
            await _side_by_side(width, lambda: self._work(run, numbers, stop_at, self.function))
            return
        # A pool of its own: threads that hang in one request do not keep the next one waiting.
        pool = ThreadPoolExecutor(width, thread_name_prefix="forkjoin-handler")
        try:
            call = _in_threads(pool, self.function)
            await _side_by_side(width, lambda: self._work(run, numbers, stop_at, call))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    async def _work(
        self,
        run: Run,
        numbers: Iterator[int],
        stop_at: float,
        call: Callable[[Item[P]], Awaitable[Any]],
    ) -> None:
        loop = asyncio.get_running_loop()
        for number in numbers:
            if loop.time() >= stop_at:
                return
            run.started[number] = True
            try:
                await call(run.items[number])
            except asyncio.CancelledError as error:
                if _is_cancelled():
                    raise
                run.outcomes[number] = outcome_of(error)
            except BaseException as error:
                if run.ends_with(error):
                    raise
                run.outcomes[number] = outcome_of(error)
                _log(run.items[number].id, error)
            else:
                run.outcomes[number] = SUCCEEDED


class BatchHandler(Generic[P]):
    """Calls a function once with all items. What it raises, each undecided item failed with."""

    def __init__(self, function: Callable[[list[BatchItem[P]]], Any]) -> None:
        _check(function, "a list of items")
        self.function = function
        self._is_async = _is_async(function)

    async def handle(self, run: Run, stop_after: float) -> None:
        verdicts: dict[str, Outcome] = {}
        items = [
            BatchItem(item.id, item.payload, item.attempt, item.enqueued_at, verdicts)
            for item in run.items
        ]
        run.started[:] = [True] * len(items)
        otherwise = SUCCEEDED
        try:
            if self._is_async:
                await self.function(items)
            else:
                pool = ThreadPoolExecutor(1, thread_name_prefix="forkjoin-handler")
                try:
                    await _in_threads(pool, self.function)(items)
                finally:
                    pool.shutdown(wait=False)
        except asyncio.CancelledError as error:
            if _is_cancelled():
                run.outcomes[:] = [verdicts.get(item.id) for item in items]
                raise
            otherwise = outcome_of(error)
        except BaseException as error:
            if run.ends_with(error):
                raise
            otherwise = outcome_of(error)
            _log(f"a batch of {len(items)}", error)
        run.outcomes[:] = [verdicts.get(item.id, otherwise) for item in items]


async def _side_by_side(width: int, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async with asyncio.TaskGroup() as group:
        for _ in range(width):
            group.create_task(work())


def _is_cancelled() -> bool:
    """Whether the run itself is being cancelled, or only something that a handler waited for."""
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0


def _in_threads(pool: ThreadPoolExecutor, function: Callable[[Any], Any]) -> Any:
    async def call(argument: Any) -> Any:
        context = contextvars.copy_context()
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(pool, context.run, function, argument)

    return call


def _is_async(function: Callable[..., Any]) -> bool:
    call = getattr(function, "__call__", None)  # noqa: B004 - an object with an async __call__
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(call)


def _check(function: object, argument: str) -> None:
    if not callable(function):
        raise HandlerError(f"handler {function!r} is not a function")
    try:
        inspect.signature(function).bind(object())
    except TypeError:
        raise HandlerError(
            f"handler {getattr(function, '__name__', function)!r} must take {argument} "
            "and nothing else"
        ) from None
    except ValueError:
        return  # a builtin without a signature


def _log(what: str, error: BaseException) -> None:
    """Handlers' own errors are ordinary: a traceback, which may show payloads, is for DEBUG."""
    shown = logger.isEnabledFor(logging.DEBUG)
    logger.info("handler raised %s on %s", type(error).__name__, what, exc_info=shown and error)
