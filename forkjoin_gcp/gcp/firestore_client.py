"""Calls to Firestore with raw protobuf messages: tries, time limits, counting, errors.

Firestore's public GAPIC client takes them; its high-level client costs seven times the CPU.
"""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import google.auth
import grpc.aio
from google.api_core import exceptions as google_errors
from google.auth.exceptions import GoogleAuthError
from google.cloud.firestore_v1 import types
from google.cloud.firestore_v1.services.firestore import FirestoreAsyncClient
from google.cloud.firestore_v1.services.firestore.transports import FirestoreGrpcAsyncIOTransport
from tenacity import (
    AsyncRetrying,
    retry_if_exception_type,
    wait_random_exponential,
)

from forkjoin_gcp.config import LOCAL_HINT, VARIABLES, Services
from forkjoin_gcp.errors import ConfigurationError, ServiceError, StoreRefused, StoreUnavailable
from forkjoin_gcp.ports import Counters

MAX_REQUEST_BYTES = 1_200_000
"""The emulator takes 4 MiB in a message, Firestore 10 MiB. While one request is on its way the next
is made, and small ones find their memory still warm."""

MAX_WRITES = 500
"""In one request."""

FIRST_WAIT = 0.05
"""Seconds, at most, before the second try."""

EMULATOR_PATIENCE = 2.0
"""Seconds for which an emulator that never answered yet is tried: most likely nobody started it."""

NOT_FOUND, ALREADY_EXISTS, PERMISSION_DENIED, FAILED_PRECONDITION = 5, 6, 7, 9
PASSING = frozenset({1, 2, 4, 8, 10, 13, 14})
"""Codes of what may succeed later: CANCELLED, UNKNOWN, DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED,
ABORTED, INTERNAL, UNAVAILABLE."""

_NO_DATABASE = re.compile(r"database .*does not exist", re.IGNORECASE | re.DOTALL)

_BatchWriteRequest: Any = types.BatchWriteRequest.pb()
_CommitRequest: Any = types.CommitRequest.pb()
_GetRequest: Any = types.BatchGetDocumentsRequest.pb()

T = TypeVar("T")
Fill = Callable[[Any], None]
"""Sets the fields of a raw Write that is empty."""

TURNS_TO_SEND = 12
"""Turns of the event loop in which a request passes the client's layers and is on its way."""

DELETION_BYTES = 2_000
"""More than a deletion takes: a document's name and a precondition."""


class UnmetError(Exception):
    """A precondition of a commit, or of one write of a batch, was not met. ``code`` says how."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class _PassingError(Exception):
    """Worth another try."""


class FirestoreCalls:
    """Firestore's four calls that the store needs, each repeated for what may pass.

    Belongs to one event loop; the connection is made at the first call. All raise StoreUnavailable
    after ``write_seconds`` or ``read_seconds``, and StoreRefused. What a call is counted as is its
    name: each try counts.
    """

    def __init__(
        self, services: Services, counters: Counters, *, write_seconds: float, read_seconds: float
    ) -> None:
        self._services = services
        self._counters = counters
        self._write_seconds = write_seconds
        self._read_seconds = read_seconds
        self._client: Any = None
        self._connecting = asyncio.Lock()
        self._answered = False
        self.database = f"projects/{services.need('project')}/databases/{services.database}"
        self._metadata = [("google-cloud-resource-prefix", self.database)]
        if services.firestore_emulator_host:
            self._metadata.append(("authorization", "Bearer owner"))

    def name(self, path: str) -> str:
        """The full resource name of a document."""
        return f"{self.database}/documents/{path}"

    async def batch_write(self, writes: Iterable[tuple[Fill, int]]) -> list[Exception | None]:
        """Apply raw Writes, each on its own; for each None, or UnmetError, or why not.

        A write is given as the function that fills it and the bytes it has at most. It is made in
        the request it is sent with: to copy it there would cost as much as to make it, and so
        would asking for its size. While one request is on its way the next is made.
        """
        parts: list[asyncio.Task[list[Exception | None]]] = []
        try:
            for request in self._requests(writes):
                parts.append(asyncio.ensure_future(self._write_part(request)))
                for _ in range(TURNS_TO_SEND):
                    await asyncio.sleep(0)
            answers = await asyncio.gather(*parts)
        finally:
            for part in parts:
                part.cancel()
        return [answer for part in answers for answer in part]

    def _requests(self, writes: Iterable[tuple[Fill, int]]) -> Iterator[Any]:
        """Raw requests of an acceptable size."""
        request, room = _BatchWriteRequest(database=self.database), MAX_REQUEST_BYTES
        for fill, size in writes:
            if request.writes and (size > room or len(request.writes) == MAX_WRITES):
                yield request
                request, room = _BatchWriteRequest(database=self.database), MAX_REQUEST_BYTES
            fill(request.writes.add())
            room -= size
        if request.writes:
            yield request

    async def _write_part(self, request: Any) -> list[Exception | None]:
        writes = request.writes
        answers: dict[int, Exception | None] = {}

        async def call(client: Any, seconds: float) -> None:
            left = [n for n in range(len(writes)) if n not in answers]
            again = request
            if answers:
                again = _BatchWriteRequest(database=self.database, writes=[writes[n] for n in left])
            statuses = await self._write_once(client, again, seconds)
            passing = ""
            for n, status in zip(left, statuses, strict=True):
                if status.code in PASSING:
                    passing = status.message or f"code {status.code}"
                else:
                    answers[n] = self._refusal(status.code, status.message) if status.code else None
            if passing:
                raise _PassingError(passing)

        try:
            await self._retrying(self._write_seconds, call)
        except UnmetError as error:  # the request as a whole: no write's precondition is meant
            failure: Exception = self._refused(str(error))
        except ServiceError as error:
            failure = error
        else:
            return [answers[n] for n in range(len(writes))]
        left = [n for n in range(len(writes)) if n not in answers]
        if len(left) > 1 and isinstance(failure.__cause__, google_errors.InvalidArgument):
            # One write that is not acceptable must not take the others with it.
            alone = await asyncio.gather(*(self._write_alone(writes[n]) for n in left))
            answers.update(zip(left, alone, strict=True))
        return [answers.get(n, failure) for n in range(len(writes))]

    async def _write_alone(self, write: Any) -> Exception | None:
        request = _BatchWriteRequest(database=self.database, writes=[write])
        return (await self._write_part(request))[0]

    async def _write_once(self, client: Any, request: Any, seconds: float) -> Any:
        """The writes' raw Statuses."""
        self._counters["firestore.batch_write"] += 1
        response = await client.batch_write(
            types.BatchWriteRequest.wrap(request),
            retry=None,
            timeout=seconds,
            metadata=self._metadata,
        )
        statuses = types.BatchWriteResponse.pb(response).status
        done = zip(request.writes, statuses, strict=True)
        self._count([write for write, status in done if not status.code])
        return statuses

    async def create(self, write: Any) -> Exception | None:
        """Apply one raw Write of a document that must not exist; None, UnmetError, or why not.

        As a commit, which Firestore answers sooner than a batch of one.
        """
        try:
            await self.commit([write])
        except UnmetError as error:
            return error if error.code == ALREADY_EXISTS else self._refused(str(error))
        except ServiceError as error:
            return error
        return None

    async def commit(self, writes: Sequence[Any]) -> bool:
        """Apply all raw Writes or none. Raises UnmetError."""
        request = _CommitRequest(database=self.database, writes=writes)

        async def call(client: Any, seconds: float) -> None:
            self._counters["firestore.commit"] += 1
            await client.commit(
                types.CommitRequest.wrap(request),
                retry=None,
                timeout=seconds,
                metadata=self._metadata,
            )

        await self._retrying(self._write_seconds, call)
        self._count(writes)
        return True

    async def query(self, request: Any) -> list[Any]:
        """The raw Documents that a raw RunQueryRequest finds, in order."""

        async def call(client: Any, seconds: float) -> list[Any]:
            self._counters["firestore.run_query"] += 1
            stream = await client.run_query(
                types.RunQueryRequest.wrap(request),
                retry=None,
                timeout=seconds,
                metadata=self._metadata,
            )
            answers = [types.RunQueryResponse.pb(answer) async for answer in stream]
            return [answer.document for answer in answers if answer.HasField("document")]

        documents = await self._retrying(self._read_seconds, call)
        self._counters["firestore.documents_read"] += max(1, len(documents))  # as charged
        return documents

    async def get(self, names: Sequence[str], *fields: str) -> dict[str, Any]:
        """The raw Documents of these names that exist, with ``fields`` alone if any are given."""
        if not names:
            return {}
        request = _GetRequest(database=self.database, documents=names)
        if fields:
            request.mask.field_paths.extend(fields)

        async def call(client: Any, seconds: float) -> dict[str, Any]:
            self._counters["firestore.batch_get"] += 1
            stream = await client.batch_get_documents(
                types.BatchGetDocumentsRequest.wrap(request),
                retry=None,
                timeout=seconds,
                metadata=self._metadata,
            )
            answers = [types.BatchGetDocumentsResponse.pb(answer) async for answer in stream]
            return {a.found.name: a.found for a in answers if a.HasField("found")}

        documents = await self._retrying(self._read_seconds, call)
        self._counters["firestore.documents_read"] += len(names)  # as charged: missing ones, too
        return documents

    async def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.transport.close()

    async def _retrying(self, seconds: float, call: Callable[[Any, float], Awaitable[T]]) -> T:
        """Call until there is an answer, but no longer than ``seconds``; half of it for a try."""
        loop = asyncio.get_running_loop()
        began = loop.time()

        def has_time(wait: float) -> bool:
            patience = seconds
            if self._services.firestore_emulator_host and not self._answered:
                patience = min(seconds, EMULATOR_PATIENCE)
            return loop.time() + wait < began + patience

        try:
            try:
                # Nearly always the only try: the machinery of further ones costs as much as a call.
                return await self._try(call, seconds, began + seconds)
            except _PassingError:
                if not has_time(FIRST_WAIT):
                    raise
            await asyncio.sleep(random.uniform(0, FIRST_WAIT))
            tries = AsyncRetrying(
                stop=lambda state: not has_time(state.upcoming_sleep),
                wait=wait_random_exponential(multiplier=2 * FIRST_WAIT, max=1),
                retry=retry_if_exception_type(_PassingError),
                reraise=True,
            )
            return await tries(self._try, call, seconds, began + seconds)
        except _PassingError as error:
            raise StoreUnavailable(
                f"Firestore gave no answer in {loop.time() - began:.1f} s: {error}. {self._where()}"
            ) from error

    async def _try(
        self, call: Callable[[Any, float], Awaitable[T]], seconds: float, end: float
    ) -> T:
        client = self._client or await self._connect()
        left = max(end - asyncio.get_running_loop().time(), 0.05)
        try:
            result = await call(client, min(left, seconds / 2))
        except google_errors.GoogleAPICallError as error:
            code = error.grpc_status_code.value[0] if error.grpc_status_code else 2
            self._answered = self._answered or code not in PASSING
            if code in PASSING:
                raise _PassingError(_text(error)) from error
            raise self._refusal(code, _text(error)) from error
        except google_errors.RetryError as error:
            raise _PassingError(_text(error)) from error
        except GoogleAuthError as error:
            raise self._refused(_text(error)) from error
        self._answered = True
        return result

    async def _connect(self) -> Any:
        async with self._connecting:
            if self._client is None:
                self._client = await self._new_client()
        return self._client

    async def _new_client(self) -> FirestoreAsyncClient:
        host = self._services.firestore_emulator_host
        if host is None:
            try:
                # Finding credentials may ask the metadata server, and blocks.
                found = await asyncio.to_thread(
                    google.auth.default, scopes=FirestoreGrpcAsyncIOTransport.AUTH_SCOPES
                )
            except GoogleAuthError as error:
                raise ConfigurationError(
                    f"no credentials for Firestore: {_text(error)} {LOCAL_HINT}"
                ) from error
            return FirestoreAsyncClient(credentials=found[0])
        channel = grpc.aio.insecure_channel(
            host,
            options=[
                ("grpc.max_send_message_length", -1),
                ("grpc.max_receive_message_length", -1),
                # An emulator that is restarted is found again at once.
                ("grpc.initial_reconnect_backoff_ms", 100),
                ("grpc.max_reconnect_backoff_ms", 1_000),
            ],
        )
        return FirestoreAsyncClient(transport=FirestoreGrpcAsyncIOTransport(channel=channel))

    def _refusal(self, code: int, message: str) -> Exception:
        """A precondition not met, or what Firestore will never take."""
        if code == NOT_FOUND and _NO_DATABASE.search(message):
            return self._refused(message, "The database is missing: create it, or correct ")
        if code in (NOT_FOUND, ALREADY_EXISTS, FAILED_PRECONDITION):
            return UnmetError(code, message)
        if code == PERMISSION_DENIED:
            return self._refused(message, "The role roles/datastore.user is needed there. Check ")
        return self._refused(message)

    def _refused(self, message: str, advice: str = "Check ") -> StoreRefused:
        return StoreRefused(
            f"Firestore refused a call on {self.database}: {message.rstrip('.')}. "
            f"{advice}{VARIABLES['project']} and {VARIABLES['database']}"
        )

    def _where(self) -> str:
        host = self._services.firestore_emulator_host
        if host is None:
            return (
                f"Asked was {self.database}: check {VARIABLES['project']} and "
                f"{VARIABLES['database']}. {LOCAL_HINT}"
            )
        return f"Check {VARIABLES['firestore_emulator_host']}={host}. {LOCAL_HINT}"

    def _count(self, writes: Sequence[Any]) -> None:
        for write in writes:
            kind = "deleted" if write.delete else "written"
            self._counters[f"firestore.documents_{kind}"] += 1


def _text(error: Exception) -> str:
    message = getattr(error, "message", None) or str(error)
    return " ".join(str(message).split())[:500] or type(error).__name__
