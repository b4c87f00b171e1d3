"""The calls that read, and those that begin and end transactions."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Collection, Iterator
from itertools import islice
from typing import Any

from google.cloud.firestore_v1 import types

from . import fields
from .aggregation import calculate, parse_aggregations
from .documents import Scope, Stored, micros, set_time
from .fields import FieldPath
from .locks import Locks
from .paths import check_collection_id, path_order, split_document, split_parent
from .queries import Query
from .refusals import document_missing, invalid, not_served
from .state import DatabaseState, FirestoreState
from .transactions import Transaction, View
from .writes import path_in

DEFAULT_PAGE = 300
_MAX_PAGE = 100_000

_Document: Any = types.Document.pb()
_BatchGetResponse: Any = types.BatchGetDocumentsResponse.pb()
_BeginResponse: Any = types.BeginTransactionResponse.pb()
_ListResponse: Any = types.ListDocumentsResponse.pb()
_CollectionsResponse: Any = types.ListCollectionIdsResponse.pb()
_QueryResponse: Any = types.RunQueryResponse.pb()
_AggregationResponse: Any = types.RunAggregationQueryResponse.pb()
_StructuredQuery: Any = types.StructuredQuery.pb()


class Reading:
    """What a call reads from: the present, a transaction, or a moment of the past."""

    def __init__(self, database: DatabaseState, view: View, read_time: int) -> None:
        self.database = database
        self.view = view
        self.read_time = read_time
        self.transaction: Transaction | None = None
        self.begun = b""
        """The id of a transaction that this very call began."""

    def get(self, path: str) -> Stored | None:
        """The document at a path, held from now on if this is in a read-write transaction."""
        if self.transaction is not None and not self.transaction.read_only:
            self.transaction.paths.add(path)
        return self.view.get(path)

    def hold(self, scope: Scope) -> None:
        """Notes that a query has looked at `scope`."""
        if self.transaction is not None and not self.transaction.read_only:
            self.transaction.scopes.add(scope)


class Reads:
    """The calls that read."""

    def __init__(self, state: FirestoreState, locks: Locks) -> None:
        self._state = state
        self._locks = locks

    def _reading(self, database: DatabaseState, request: Any) -> Reading:
        selector = request.WhichOneof("consistency_selector")
        now = self._state.tick()
        if selector == "read_time":
            at = micros(request.read_time)
            return Reading(database, database.past(at, now), at)
        transaction = None
        if selector == "transaction":
            seconds = self._state.seconds()
            transaction = database.transactions.find(request.transaction, seconds)
        elif selector == "new_transaction":
            transaction = self._begin(database, request.new_transaction)
        if transaction is None:
            return Reading(database, database.documents, now)
        if transaction.past is not None:
            reading = Reading(database, transaction.past, transaction.read_time)
        else:
            reading = Reading(database, database.documents, now)
        reading.transaction = transaction
        if selector == "new_transaction":
            reading.begun = transaction.id
        return reading

    async def _turn(
        self, reading: Reading, paths: Collection[str], scope: Scope | None = None
    ) -> None:
        """What is read after this is held, if it is read in a read-write transaction."""
        if reading.database.transactions.wanted:
            await self._locks.wait_for_turn(reading.database, reading.transaction, paths, scope)
            if reading.view is reading.database.documents:
                reading.read_time = self._state.tick()

    def _begin(self, database: DatabaseState, options: Any) -> Transaction:
        now, seconds = self._state.tick(), self._state.seconds()
        read_only = options.WhichOneof("mode") == "read_only"
        retried = options.read_write.retry_transaction
        if retried:
            # It is not closed if it is open still: clients name others that are under way, too.
            database.transactions.check_known(retried)
        if read_only and options.read_only.HasField("read_time"):
            at = micros(options.read_only.read_time)
            past = database.past(at, now)
            transaction = database.transactions.begin(seconds, read_only=True, read_time=at)
            assert transaction.past is not None
            transaction.past.before.update(past.before)
            return transaction
        return database.transactions.begin(seconds, read_only=read_only, read_time=now)

    async def begin_transaction(self, request: Any) -> Any:
        """Raw BeginTransactionRequest to BeginTransactionResponse."""
        database = self._state.database(request.database)
        return _BeginResponse(transaction=self._begin(database, request.options).id)

    async def rollback(self, request: Any) -> None:
        """Of a raw RollbackRequest."""
        database = self._state.database(request.database)
        database.transactions.check_known(request.transaction)
        database.transactions.close(request.transaction)
        self._locks.released()

    async def get_document(self, request: Any) -> Any:
        """Raw GetDocumentRequest to Document."""
        name, path = split_document(request.name)
        reading = self._reading(self._state.database(name), request)
        mask = _mask(request)
        await self._turn(reading, (path,))
        stored = reading.get(path)
        if stored is None:
            raise document_missing(request.name)
        return _document(stored, mask)

    async def batch_get_documents(self, request: Any) -> Iterator[Any]:
        """Raw BatchGetDocumentsRequest to BatchGetDocumentsResponses."""
        database = self._state.database(request.database)
        paths = dict.fromkeys(path_in(name, database.documents) for name in request.documents)
        mask = _mask(request)
        reading = self._reading(database, request)
        await self._turn(reading, paths)
        found = [(path, reading.get(path)) for path in paths]
        return self._answer_documents(reading, found, mask)

    def _answer_documents(
        self,
        reading: Reading,
        found: list[tuple[str, Stored | None]],
        mask: list[FieldPath] | None,
    ) -> Iterator[Any]:
        if reading.begun:
            yield _BatchGetResponse(transaction=reading.begun)
        for path, stored in found:
            response = _BatchGetResponse()
            set_time(response.read_time, reading.read_time)
            if stored is None:
                response.missing = reading.database.documents.prefix + path
            else:
                stored.fill(response.found)
                if mask is not None:
                    fields.project(response.found, mask)
            yield response

    async def run_query(self, request: Any) -> Iterator[Any]:
        """Raw RunQueryRequest to RunQueryResponses, the last of which says so."""
        database, query = self._query(request)
        if request.HasField("explain_options"):
            raise not_served("explain_options")
        reading = self._reading(database, request)
        await self._turn(reading, (), query.scope)
        matches = query.run(reading.view)
        reading.hold(query.scope)
        return self._answer_query(reading, query, matches)

    def _answer_query(self, reading: Reading, query: Query, matches: Any) -> Iterator[Any]:
        if reading.begun:
            yield _QueryResponse(transaction=reading.begun)
        last = len(matches) - 1
        for number, match in enumerate(matches):
            response = _QueryResponse()
            query.fill(match, response.document)
            set_time(response.read_time, reading.read_time)
            if number == last:
                response.done = True
            yield response
        if last < 0:
            response = _QueryResponse(done=True)
            set_time(response.read_time, reading.read_time)
            yield response

    def _query(self, request: Any) -> tuple[DatabaseState, Query]:
        if request.WhichOneof("query_type") != "structured_query":
            raise invalid("only structured queries are supported")
        name, parent = split_parent(request.parent)
        return self._state.database(name), Query(request.structured_query, name, parent)

    async def run_aggregation_query(self, request: Any) -> Iterator[Any]:
        """Raw RunAggregationQueryRequest to one RunAggregationQueryResponse."""
        if request.WhichOneof("query_type") != "structured_aggregation_query":
            raise invalid("only structured aggregation queries are supported")
        if request.HasField("explain_options"):
            raise not_served("explain_options")
        name, parent = split_parent(request.parent)
        aggregation = request.structured_aggregation_query
        query = Query(aggregation.structured_query, name, parent)
        wanted = parse_aggregations(aggregation.aggregations, query)
        reading = self._reading(self._state.database(name), request)
        await self._turn(reading, (), query.scope)
        matches = query.run(reading.view)
        reading.hold(query.scope)
        response = _AggregationResponse(transaction=reading.begun)
        for each in wanted:
            response.result.aggregate_fields[each.alias].CopyFrom(calculate(each, matches))
        set_time(response.read_time, reading.read_time)
        return iter((response,))

    async def list_documents(self, request: Any) -> Any:
        """Raw ListDocumentsRequest to ListDocumentsResponse."""
        name, parent = split_parent(request.parent)
        if request.collection_id:
            check_collection_id(request.collection_id)
        if request.page_size < 0:
            raise invalid("Page size must be nonnegative.")
        if request.show_missing and request.order_by:
            raise invalid("cannot specify an order when show_missing is true")
        reading = self._reading(self._state.database(name), request)
        mask = _mask(request)
        query = self._listing(request, name, parent)
        size = min(request.page_size or DEFAULT_PAGE, _MAX_PAGE)
        await self._turn(reading, (), query.scope)
        if request.show_missing:
            found = self._with_missing(reading, query.scope)
        else:
            found = [(match.stored.path, match.stored) for match in query.run(reading.view)]
        reading.hold(query.scope)
        start = _after(request.page_token, found)
        response = _ListResponse()
        for path, stored in found[start : start + size]:
            document = response.documents.add()
            if stored is None:
                document.name = f"{name}/documents/{path}"
            else:
                document.CopyFrom(_document(stored, mask))
        if len(response.documents) == size:  # if nothing follows, a page without any
            response.next_page_token = _token(found[start + size - 1][0])
        return response

    def _listing(self, request: Any, name: str, parent: str) -> Query:
        message = _StructuredQuery()
        selector = message.from_.add()
        selector.collection_id = request.collection_id
        for clause in filter(None, request.order_by.split(",")):
            words = clause.split()
            if not words or len(words) > 2 or words[1:] not in ([], ["asc"], ["desc"]):
                raise invalid(f'Invalid order by clause "{request.order_by}".')
            order = message.order_by.add(direction=2 if words[1:] == ["desc"] else 1)
            order.field.field_path = words[0]
        return Query(message, name, parent)

    def _with_missing(self, reading: Reading, scope: Scope) -> list[tuple[str, Stored | None]]:
        """The documents of a scope, and those that only have collections below them."""
        base = f"{scope.parent}/" if scope.parent else ""
        depth = base.count("/") + 2
        found: dict[str, Stored | None] = {}
        below = Scope(scope.parent, "", deep=True)
        for stored in reading.view.scan(below):
            segments = stored.path.split("/")
            if scope.collection and segments[depth - 2] != scope.collection:
                continue
            if len(segments) == depth:
                found[stored.path] = stored
            else:
                found.setdefault("/".join(segments[:depth]), None)
        return sorted(found.items(), key=lambda item: path_order(item[0]))

    async def list_collection_ids(self, request: Any) -> Any:
        """Raw ListCollectionIdsRequest to ListCollectionIdsResponse."""
        name, parent = split_parent(request.parent)
        if request.page_size < 0:
            raise invalid("page_size must be greater than or equal to zero.")
        reading = self._reading(self._state.database(name), request)
        base = f"{parent}/" if parent else ""
        ids = {
            path[len(base) :].partition("/")[0]
            for path in reading.database.documents.collections
            if path.startswith(base)
        }
        after = _untoken(request.page_token) if request.page_token else ""
        left = sorted(each for each in ids if each > after)
        size = min(request.page_size or _MAX_PAGE, _MAX_PAGE)
        response = _CollectionsResponse(collection_ids=islice(left, size))
        if len(left) >= size:
            response.next_page_token = _token(left[size - 1])
        return response


def _mask(request: Any) -> list[FieldPath] | None:
    if not request.HasField("mask"):
        return None
    return [fields.parse(text) for text in request.mask.field_paths]


def _document(stored: Stored, mask: list[FieldPath] | None) -> Any:
    document = stored.fill(_Document())
    if mask is not None:
        fields.project(document, mask)
    return document


def _token(last: str) -> str:
    return base64.urlsafe_b64encode(b"\x01" + last.encode()).decode()


def _untoken(token: str) -> str:
    try:
        raw = base64.b64decode(token, altchars=b"-_", validate=True).decode()
    except (ValueError, binascii.Error):
        raw = ""
    if not raw.startswith("\x01"):
        raise invalid("invalid page token")
    return raw[1:]


def _after(token: str, found: list[tuple[str, Stored | None]]) -> int:
    """Where the page begins that follows the one whose last document the token names."""
    if not token:
        return 0
    last = _untoken(token)
    for number, (path, _) in enumerate(found):
        if path == last:
            return number + 1
    # It has gone meanwhile: by name, as most listings are ordered.
    place = path_order(last)
    return sum(path_order(path) <= place for path, _ in found)
