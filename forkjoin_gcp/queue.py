"""ForkJoinQueue: declare a queue, enqueue to it, say what handles its items."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import logging
import random
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, Future
from typing import TYPE_CHECKING, Any, Generic, TypeVar, Unpack, overload

from forkjoin_gcp import forking
from forkjoin_gcp.config import QueueConfig, Services, Settings
from forkjoin_gcp.dead_letters import Choice, DeadLetterReport, Progress
from forkjoin_gcp.engine import Connect, Engine
from forkjoin_gcp.errors import ConfigurationError, HandlerError, QueueClosed
from forkjoin_gcp.items import DeadLetter, Item, PayloadCodec
from forkjoin_gcp.joining.handlers import BatchHandler, BatchItem, Handler, ItemHandler
from forkjoin_gcp.ports import Counters
from forkjoin_gcp.runtime import Inbox
from forkjoin_gcp.sweeper import SweepOptions, SweepReport
from forkjoin_gcp.tasks import Task

if TYPE_CHECKING:
    from forkjoin_gcp import testing

logger = logging.getLogger(__name__)
P = TypeVar("P")
F = TypeVar("F", bound=Callable[..., Any])


class ForkJoinQueue(Generic[P]):
    """Small pieces of work, handed in one at a time, handled a hundred at once.

    ``payload`` is the type of an item's payload: anything pydantic's TypeAdapter takes. Settings
    are those of QueueConfig; what the variable FORKJOIN_SETTINGS says counts for more. ``services``
    says where everything is; without it the environment does, when it is first needed, so declaring
    a queue does no I/O and needs no environment. ``connect`` is for tests that bring ports of their
    own.

    One object serves any number of threads and event loops. It survives a fork: what is in flight
    is finished first, and parent and child make threads and connections anew when they next need
    them. Only while a request is handled (``join``) that cannot be; a child of then cannot use it.
    Raises ConfigurationError for a wrong name, setting or payload type.
    """

    @overload
    def __init__(
        self: ForkJoinQueue[dict[str, Any]],
        name: str,
        *,
        services: Services | None = None,
        connect: Connect | None = None,
        **settings: Unpack[Settings],
    ) -> None: ...
    @overload
    def __init__(
        self,
        name: str,
        *,
        payload: type[P],
        services: Services | None = None,
        connect: Connect | None = None,
        **settings: Unpack[Settings],
    ) -> None: ...
    def __init__(
        self,
        name: str,
        *,
        payload: type[Any] = dict[str, Any],
        services: Services | None = None,
        connect: Connect | None = None,
        **settings: Unpack[Settings],
    ) -> None:
        self.config = QueueConfig.deployed(name, settings)
        self.counters = Counters()
        self._codec: PayloadCodec[P] = PayloadCodec(payload)
        self._services = services
        self._connect = connect
        self._handler: Handler | None = None
        self._engine: Engine | None = None
        self._inbox: Inbox | None = None
        self._uses = 0
        self._closed = False
        self._lock = threading.RLock()
        _open_queues.add(self)
        forking.watch(self)

    def __repr__(self) -> str:
        return f"ForkJoinQueue({self.name!r}, payload={self._codec.name})"

    @property
    def name(self) -> str:
        """The queue's name."""
        return self.config.name

    @property
    def services(self) -> Services:
        """Where the services are. Raises ConfigurationError where the environment is wrong."""
        if self._services is None:
            self._services = Services.from_env()
        return self._services

    def start(self) -> None:
        """Load the client libraries and connect now, which the first ``enqueue`` does otherwise.

        Worth calling where a service starts: it takes about a second. Raises ConfigurationError.
        """
        self._started()

    def enqueue(self, payload: P) -> str:
        """Hand in one item from any thread; return its id when it is durable.

        Waits for room where much is pending in this process. Raises PayloadError or QueueFull
        (nothing was reserved), ConfigurationError, QueueClosed, or a ServiceError: then the item
        was not accepted, or nobody can tell. Of QueueClosed that is so only where ``close`` ran out
        of time, and its message says it. Must not be called on an event loop's thread, which it
        would block: use ``aenqueue`` there.
        """
        encoded = [self._codec.encode(payload)]
        return self._hand_in(encoded).result()[0]

    async def aenqueue(self, payload: P) -> str:
        """Hand in one item from any event loop. As ``enqueue``.

        Cancelling it takes nothing back: the item may have been accepted.
        """
        encoded = [self._codec.encode(payload)]
        return (await self._hand_in_from_loop(encoded))[0]

    def enqueue_many(self, payloads: Iterable[P]) -> list[str]:
        """Hand in many items with few calls; return their ids, in order, when all are durable.

        They wait for room together; more than ``max_pending_items`` wait until nothing is pending.
        Raises PayloadError, naming the first bad one, before any is reserved, and for an empty
        list. After a ServiceError some of the items may have been accepted.
        """
        encoded = self._codec.encode_all(payloads)
        return self._hand_in(encoded).result()

    async def aenqueue_many(self, payloads: Iterable[P]) -> list[str]:
        """As ``enqueue_many``, from any event loop."""
        encoded = self._codec.encode_all(payloads)
        return await self._hand_in_from_loop(encoded)

    @overload
    def handler(self, function: F, /) -> F: ...
    @overload
    def handler(
        self, /, *, concurrency: int | None = None
    ) -> Callable[[Callable[[Item[P]], Any]], Callable[[Item[P]], Any]]: ...
    def handler(
        self, function: Callable[[Item[P]], Any] | None = None, /, *, concurrency: int | None = None
    ) -> Any:
        """Declare what handles one item: ``@queue.handler`` or ``@queue.handler(concurrency=N)``.

        An ``async def`` runs on an event loop of the handlers' own, anything else in threads;
        ``concurrency`` of a request's items are in progress at once. An exception means another
        try, up to ``max_attempts``; Reject means none. Raises HandlerError for a second handler.
        """
        width = self.config.concurrency if concurrency is None else concurrency
        if isinstance(width, bool) or not isinstance(width, int) or not 1 <= width <= 10_000:
            raise ConfigurationError(
                f"concurrency={width!r}: must be a whole number (items), from 1 to 10,000"
            )

        def declare(declared: Callable[[Item[P]], Any]) -> Callable[[Item[P]], Any]:
            self._set_handler(ItemHandler(declared, width))
            return declared

        return declare if function is None else declare(function)

    def batch_handler(self, function: F, /) -> F:
        """Declare what handles all items of a request in one call, as a list of BatchItem.

        It may ``fail`` or ``reject`` single items; an exception fails all it has not decided on.
        Raises HandlerError for a second handler.
        """
        typed: Callable[[list[BatchItem[P]]], Any] = function
        self._set_handler(BatchHandler(typed))
        return function

    def join(self, task: Task, *, retry_count: int = 0) -> None:
        """Do a task that Cloud Tasks delivered; return when it is done. Blocks.

        Called by the join endpoint, which has seen to it that the task is genuine. ``retry_count``
        is how often Cloud Tasks tried before. Raises ServiceError where the machinery failed,
        ChunkBusy where another delivery of the task's chunk is at work, HandlerError where no
        handler is declared, and QueueClosed.
        """
        handler = self._handler
        if handler is None:
            raise HandlerError(f"queue {self.name!r} has no handler: declare one with @handler")
        if retry_count:
            logger.info("%s: try %d of %s", self.name, retry_count + 1, task.task_id)
        with self._used() as engine:
            try:
                engine.io.submit(engine.join(task, handler)).result()
            except CancelledError:
                raise QueueClosed(
                    f"queue {self.name!r} was closed, or paused for a fork, during the request"
                ) from None

    def dead_letters(self, limit: int = 100, **choice: Unpack[Choice]) -> list[DeadLetter]:
        """Up to ``limit`` dead letters of the queue, of all its versions, in id order.

        ``choice`` may narrow it: ``ids``, ``reason``, ``older_than`` and ``newer_than`` (seconds).
        Raises ConfigurationError and ServiceError.
        """
        with self._used() as engine:
            return engine.io.submit(engine.dead.find(choice, limit)).result()

    def requeue(
        self,
        *,
        limit: int | None = None,
        dry_run: bool = False,
        progress: Progress | None = None,
        **choice: Unpack[Choice],
    ) -> DeadLetterReport:
        """Bring dead letters' items to a handler again, under their ids; all, or those of a choice.

        Each goes from the dead letters into a batch in one atomic step, with no attempts counted.
        Blocks; ``progress`` is called with the report as it grows, on another thread. Raises
        ConfigurationError and ServiceError.
        """
        with self._used() as engine:
            work = engine.dead.requeue(choice, limit, dry_run=dry_run, progress=progress)
            return engine.io.submit(work).result()

    def purge_dead_letters(
        self,
        *,
        limit: int | None = None,
        dry_run: bool = False,
        progress: Progress | None = None,
        **choice: Unpack[Choice],
    ) -> DeadLetterReport:
        """Delete dead letters for good; all, or those of a choice. As ``requeue``."""
        with self._used() as engine:
            work = engine.dead.purge(choice, limit, dry_run=dry_run, progress=progress)
            return engine.io.submit(work).result()

    def sweep(self, **options: Unpack[SweepOptions]) -> SweepReport:
        """Schedule again what nobody is working on; return what was found. Blocks.

        Options are those of ``Sweeper.run``: ``dry_run`` changes nothing, ``max_documents`` and
        ``seconds`` bound what it costs. Each call begins somewhere else unless told where. Safe to
        run at any time, from several processes too. Raises ConfigurationError and ServiceError.
        """
        options.setdefault("begin", random.randrange(2**32))
        with self._used() as engine:
            return engine.io.submit(engine.sweeper.run(**options)).result()

    def in_memory(self) -> testing.InMemory[P]:
        """For tests: ``with feeds.in_memory() as local: feeds.enqueue(x); local.run()``.

        Inside, this object needs no service and no environment, and time is virtual; whatever it
        was before, it is again after. Raises RuntimeError where it is in memory already.
        """
        from forkjoin_gcp import testing  # only here: nothing that is deployed loads it

        return testing.InMemory(self)

    def close(self) -> None:
        """Refuse new items, wait up to CLOSE_SECONDS for those in flight, and end all threads.

        May be called again. Also done when the process ends.
        """
        with self._lock:
            self._closed = True
            engine, self._engine = self._engine, None
        if engine is not None:
            engine.stop()

    def __enter__(self) -> ForkJoinQueue[P]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _set_handler(self, handler: Handler) -> None:
        if self._handler is not None:
            raise HandlerError(f"queue {self.name!r} has a handler already; it can have one")
        self._handler = handler

    def _started(self) -> Engine:
        engine = self._engine
        if engine is not None:
            return engine
        with self._lock:
            self._check_open()
            if self._engine is None:
                if self._connect is None and forking.is_marred():
                    raise QueueClosed(
                        f"queue {self.name!r}: this process was forked while gRPC was at work in "
                        "its parent (a request was being handled, or another client is open), and "
                        "gRPC does not survive that. Start processes anew (multiprocessing's "
                        "'spawn' or 'forkserver'), or fork them before"
                    )
                self._engine = Engine(
                    self.config,
                    self.services,
                    self.counters,
                    self._codec,
                    self._connect,
                    inbox=self._inbox,
                )
                self._inbox = None
            return self._engine

    async def _astarted(self) -> Engine:
        """As ``_started``, but loading and connecting do not block the caller's loop."""
        engine = self._engine
        if engine is not None:
            return engine
        self._check_open()  # here as well: when the interpreter ends no thread can be had
        return await asyncio.to_thread(self._started)

    def _check_open(self) -> None:
        if self._closed:
            raise QueueClosed(f"queue {self.name!r} was closed")

    def _hand_in(self, encoded: list[str]) -> Future[list[str]]:
        engine = self._started()
        future = engine.inbox.hand_in(encoded)
        if engine.is_paused and not self._closed:
            self._started()  # forked in between: the inbox goes to the engine that comes after
        return future

    async def _hand_in_from_loop(self, encoded: list[str]) -> list[str]:
        engine = await self._astarted()
        future = engine.inbox.hand_in_from_loop(encoded)
        if engine.is_paused and not self._closed:
            await self._astarted()
        del engine  # see forking: while this waits it would keep a paused one's channels
        return await future

    @contextlib.contextmanager
    def _used(self) -> Iterator[Engine]:
        """The started engine, which is not paused for a fork meanwhile."""
        with self._lock:
            engine = self._started()
            self._uses += 1
        try:
            yield engine
        finally:
            with self._lock:
                self._uses -= 1

    def _pause(self) -> bool:
        """Before a fork: end what gRPC has in this process. Whether there was anything."""
        engine = self._engine
        if engine is None or not engine.is_on_google:
            return False
        engine.pause()
        self._inbox, self._engine = engine.inbox, None
        return True

    def _resume(self) -> None:
        """After a fork, in the parent: go on with what was handed in meanwhile, if anything was."""
        if self._inbox is not None and self._inbox.is_waiting and not self._closed:
            try:
                self._started()
            except Exception as error:
                self._inbox.refuse(error)

    def _forget_parent(self) -> None:
        """In a forked child: the parent's threads are not here, and its sockets not ours."""
        self._lock = threading.RLock()
        self._engine = self._inbox = None
        self._uses = 0
        self.counters.clear()


_open_queues: weakref.WeakSet[ForkJoinQueue[Any]] = weakref.WeakSet()


def _close_all() -> None:
    for queue in list(_open_queues):
        queue.close()


atexit.register(_close_all)
