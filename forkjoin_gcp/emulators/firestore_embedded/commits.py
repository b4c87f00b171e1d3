"""The calls that write. No await comes between a check and its effect: each commit is atomic."""

from __future__ import annotations

import secrets
import string
from collections.abc import Sequence
from typing import Any

from google.cloud.firestore_v1 import types
from google.protobuf import empty_pb2  # type: ignore[import-untyped]

from . import fields
from .documents import set_time
from .locks import Locks
from .paths import check_collection_id, check_document_id, split_document, split_parent
from .refusals import Refusal, invalid
from .state import DatabaseState, FirestoreState, Written, check_repeats
from .transactions import Transaction
from .writes import PlannedWrite, plan

_CommitResponse: Any = types.CommitResponse.pb()
_BatchWriteResponse: Any = types.BatchWriteResponse.pb()
_Document: Any = types.Document.pb()
_Write: Any = types.Write.pb()

_AUTO_ID = string.ascii_letters + string.digits


class Commits:
    """Commit, BatchWrite, and the calls on one document."""

    def __init__(self, state: FirestoreState, locks: Locks) -> None:
        self._state = state
        self._locks = locks

    async def commit(self, request: Any) -> Any:
        """Raw CommitRequest to CommitResponse."""
        database = self._state.database(request.database)
        transaction = None
        if request.transaction:
            transaction = database.transactions.find(request.transaction, self._state.seconds())
        writes = [plan(write, database.documents) for write in request.writes]
        check_repeats(writes)
        now, written = await self._apply(database, writes, transaction)
        response = _CommitResponse()
        results = response.write_results
        for each in written:
            _fill_result(results.add(), each)
        if written:
            set_time(response.commit_time, now)
        return response

    async def _apply(
        self,
        database: DatabaseState,
        writes: Sequence[PlannedWrite],
        transaction: Transaction | None,
    ) -> tuple[int, list[Written]]:
        try:
            if transaction is not None and transaction.read_only and writes:
                raise invalid("Cannot modify entities in a read-only transaction.")
            await self._locks.wait_for_holders(
                database, {write.path for write in writes}, transaction
            )
            now = self._state.tick()
            return now, database.apply(writes, now)
        finally:
            if transaction is not None:
                database.transactions.close(transaction.id)
                self._locks.released()

    async def batch_write(self, request: Any) -> Any:
        """Raw BatchWriteRequest to BatchWriteResponse: each write stands for itself."""
        database = self._state.database(request.database)
        writes = [plan(write, database.documents) for write in request.writes]
        if len({write.path for write in writes}) < len(writes):
            raise invalid("the same document cannot be written more than once in a single request")
        waiting: dict[int, Refusal] = {}
        if database.transactions.any_open:
            waiting = await self._wait_for_each(database, writes)
        response = _BatchWriteResponse()
        results, statuses = response.write_results, response.status
        for number, write in enumerate(writes):
            result, status = results.add(), statuses.add()
            try:
                if number in waiting:
                    raise waiting[number]
                _fill_result(result, database.apply((write,), self._state.tick())[0])
            except Refusal as refusal:
                status.code, status.message = refusal.number, refusal.message
        return response

    async def _wait_for_each(
        self, database: DatabaseState, writes: Sequence[PlannedWrite]
    ) -> dict[int, Refusal]:
        """Which writes are held for too long."""
        paths = [write.path for write in writes]
        try:
            await self._locks.wait_for_holders(database, paths, None)
        except Refusal as refusal:
            held = database.transactions.holders(paths, None, self._state.seconds())
            return {number: refusal for number, path in enumerate(paths) if path in held}
        return {}

    async def create_document(self, request: Any) -> Any:
        """Raw CreateDocumentRequest to Document."""
        name, path = split_parent(request.parent)
        check_collection_id(request.collection_id)
        document_id = request.document_id or _auto_id()
        check_document_id(document_id)
        if request.document.name:
            raise invalid("document.name must not be set")
        parent = f"{path}/{request.collection_id}" if path else request.collection_id
        write = _Write(update=request.document)
        write.update.name = f"{name}/documents/{parent}/{document_id}"
        write.current_document.exists = False
        return await self._write_one(name, write, request.mask, request.HasField("mask"))

    async def update_document(self, request: Any) -> Any:
        """Raw UpdateDocumentRequest to Document."""
        name, _ = split_document(request.document.name)
        write = _Write(update=request.document)
        if request.HasField("update_mask"):
            write.update_mask.CopyFrom(request.update_mask)
        if request.HasField("current_document"):
            write.current_document.CopyFrom(request.current_document)
        return await self._write_one(name, write, request.mask, request.HasField("mask"))

    async def delete_document(self, request: Any) -> Any:
        """Raw DeleteDocumentRequest to Empty."""
        name, _ = split_document(request.name)
        database = self._state.database(name)
        write = _Write(delete=request.name)
        if request.HasField("current_document"):
            write.current_document.CopyFrom(request.current_document)
        await self._apply(database, [plan(write, database.documents)], None)
        return empty_pb2.Empty()

    async def _write_one(self, name: str, write: Any, mask: Any, masked: bool) -> Any:
        database = self._state.database(name)
        paths = [fields.parse(text) for text in mask.field_paths]
        _, written = await self._apply(database, [plan(write, database.documents)], None)
        stored = written[0].stored
        assert stored is not None
        document = stored.fill(_Document())
        if masked:
            fields.project(document, paths)
        return document


def _fill_result(result: Any, written: Written) -> None:
    stored = written.stored
    if stored is not None:
        set_time(result.update_time, stored.updated)
    if written.results:
        result.transform_results.extend(written.results)


def _auto_id() -> str:
    return "".join(secrets.choice(_AUTO_ID) for _ in range(20))
