"""The embedded Firestore without a network: calls are handed to it as objects.

For what puts its own network, or none, between a client and the service.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from typing import Any, Protocol

from google.api_core import exceptions
from google.cloud.firestore_v1 import types

from .commits import Commits
from .locks import Locks
from .reads import Reads
from .refusals import Refusal
from .state import FirestoreState

google_errors: Any = exceptions


class Carry(Protocol):
    """Brings a call to the service and its answer back: the network.

    Raises OSError where there is no answer within ``seconds``.
    """

    async def __call__(self, what: str, call: Callable[[], Any], seconds: float) -> Any: ...


class DirectFirestore:
    """A Firestore in memory. ``clock`` gives seconds since the epoch. Takes no transactions.

    ``intercept`` is given each raw request before it is answered, and may change it.
    """

    def __init__(
        self, clock: Callable[[], float], intercept: Callable[[Any], None] = lambda _: None
    ) -> None:
        self._intercept = intercept
        self.state = FirestoreState(clock)
        locks = Locks(self.state)
        self.commits, self.reads = Commits(self.state, locks), Reads(self.state, locks)

    def answer(self, call: Callable[[Any], Awaitable[Any]], request: Any) -> Any:
        """What a call comes to, at once. Raises Refusal."""
        self._intercept(request)
        answering: Any = call(request)
        self.state.changes.clear()  # nobody keeps them
        try:
            answering.send(None)
        except StopIteration as stop:
            answer = stop.value
            return list(answer) if isinstance(answer, Iterator) else answer
        answering.close()
        raise RuntimeError("the call waits for a transaction, and none is ever open here")


class DirectClient:
    """The part of FirestoreAsyncClient that a WorkStore uses, over ``carry``."""

    def __init__(self, firestore: DirectFirestore, carry: Carry) -> None:
        self._firestore = firestore
        self._carry = carry
        self.transport = _Transport()

    async def commit(self, request: Any, **options: Any) -> Any:
        raw = types.CommitRequest.pb(request)
        call = self._firestore.commits.commit
        return types.CommitResponse.wrap(await self._ask("commit", call, raw, options))

    async def batch_write(self, request: Any, **options: Any) -> Any:
        raw = types.BatchWriteRequest.pb(request)
        call = self._firestore.commits.batch_write
        return types.BatchWriteResponse.wrap(await self._ask("batch_write", call, raw, options))

    async def run_query(self, request: Any, **options: Any) -> AsyncIterator[Any]:
        raw = types.RunQueryRequest.pb(request)
        answers = await self._ask("run_query", self._firestore.reads.run_query, raw, options)
        return _Stream([types.RunQueryResponse.wrap(answer) for answer in answers])

    async def batch_get_documents(self, request: Any, **options: Any) -> AsyncIterator[Any]:
        raw = types.BatchGetDocumentsRequest.pb(request)
        call = self._firestore.reads.batch_get_documents
        answers = await self._ask("batch_get_documents", call, raw, options)
        return _Stream([types.BatchGetDocumentsResponse.wrap(answer) for answer in answers])

    async def _ask(
        self, what: str, call: Callable[[Any], Awaitable[Any]], raw: Any, options: dict[str, Any]
    ) -> Any:
        seconds = options["timeout"]
        try:
            return await self._carry(what, lambda: self._firestore.answer(call, raw), seconds)
        except Refusal as refusal:
            raise google_errors.from_grpc_status(refusal.number, refusal.message) from None
        except TimeoutError:
            raise google_errors.DeadlineExceeded(f"{what}: no answer in {seconds:g} s") from None
        except OSError as error:
            raise google_errors.ServiceUnavailable(f"{what}: {error}") from None


class _Transport:
    async def close(self) -> None:
        return


class _Stream:
    def __init__(self, answers: Sequence[Any]) -> None:
        self._answers = iter(answers)

    def __aiter__(self) -> _Stream:
        return self

    async def __anext__(self) -> Any:
        for answer in self._answers:
            return answer
        raise StopAsyncIteration
