"""The gRPC service google.firestore.v1.Firestore, as generic handlers over raw protobuf."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any

import grpc
from google.cloud.firestore_v1 import types
from google.protobuf import empty_pb2  # type: ignore[import-untyped]

from .commits import Commits
from .reads import Reads
from .refusals import Refusal, invalid, not_served

MAX_REQUEST_BYTES = 10 << 20
SERVICE = "google.firestore.v1.Firestore"

_UNARY = {
    "Commit": types.CommitRequest,
    "BatchWrite": types.BatchWriteRequest,
    "CreateDocument": types.CreateDocumentRequest,
    "UpdateDocument": types.UpdateDocumentRequest,
    "DeleteDocument": types.DeleteDocumentRequest,
    "GetDocument": types.GetDocumentRequest,
    "ListDocuments": types.ListDocumentsRequest,
    "ListCollectionIds": types.ListCollectionIdsRequest,
    "BeginTransaction": types.BeginTransactionRequest,
    "Rollback": types.RollbackRequest,
}
_STREAMS = {
    "BatchGetDocuments": types.BatchGetDocumentsRequest,
    "RunQuery": types.RunQueryRequest,
    "RunAggregationQuery": types.RunAggregationQueryRequest,
}
_NOT_SERVED = {
    "PartitionQuery": (grpc.unary_unary_rpc_method_handler, "PartitionQuery"),
    "ExecutePipeline": (grpc.unary_stream_rpc_method_handler, "pipelines (ExecutePipeline)"),
    "Listen": (grpc.stream_stream_rpc_method_handler, "listeners (Listen)"),
    "Write": (grpc.stream_stream_rpc_method_handler, "the Write stream; Commit does the same"),
}

_Settled = Callable[[], Awaitable[None]]


class FirestoreService:
    """Answers the API's calls. `settled` returns when all that was changed so far is kept; nothing
    is told to anyone before."""

    def __init__(self, commits: Commits, reads: Reads, settled: _Settled) -> None:
        self._settled = settled
        self._calls: dict[str, Callable[[Any], Awaitable[Any]]] = {
            "Commit": commits.commit,
            "BatchWrite": commits.batch_write,
            "CreateDocument": commits.create_document,
            "UpdateDocument": commits.update_document,
            "DeleteDocument": commits.delete_document,
            "GetDocument": reads.get_document,
            "ListDocuments": reads.list_documents,
            "ListCollectionIds": reads.list_collection_ids,
            "BeginTransaction": reads.begin_transaction,
            "Rollback": reads.rollback,
        }
        self._streams: dict[str, Callable[[Any], Awaitable[Iterable[Any]]]] = {
            "BatchGetDocuments": reads.batch_get_documents,
            "RunQuery": reads.run_query,
            "RunAggregationQuery": reads.run_aggregation_query,
        }

    def handlers(self) -> grpc.GenericRpcHandler:
        """What grpc.aio.Server.add_generic_rpc_handlers takes."""
        handlers = {}
        for name, request in _UNARY.items():
            handlers[name] = grpc.unary_unary_rpc_method_handler(
                self._answering(self._calls[name]),
                request_deserializer=_decoder(request),
                response_serializer=_serialize,
            )
        for name, request in _STREAMS.items():
            handlers[name] = grpc.unary_stream_rpc_method_handler(
                self._streaming(self._streams[name]),
                request_deserializer=_decoder(request),
                response_serializer=_serialize,
            )
        for name, (kind, what) in _NOT_SERVED.items():
            handlers[name] = kind(_refusing(what, streams=kind is not _UNARY_KIND))
        return grpc.method_handlers_generic_handler(SERVICE, handlers)

    async def _settle(self, context: Any) -> None:
        try:
            await self._settled()
        except OSError as error:
            await context.abort(grpc.StatusCode.INTERNAL, str(error))

    def _answering(self, call: Callable[[Any], Awaitable[Any]]) -> Any:
        async def answer(request: Any, context: Any) -> Any:
            try:
                response = await call(_accept(request))
            except Refusal as refusal:
                await self._settle(context)
                await _abort(context, refusal)
            else:
                await self._settle(context)
                return response or empty_pb2.Empty()

        return answer

    def _streaming(self, call: Callable[[Any], Awaitable[Iterable[Any]]]) -> Any:
        async def answer(request: Any, context: Any) -> AsyncIterator[Any]:
            try:
                responses = await call(_accept(request))
            except Refusal as refusal:
                await _abort(context, refusal)
            else:
                await self._settle(context)
                for response in responses:
                    yield response

        return answer


_UNARY_KIND = grpc.unary_unary_rpc_method_handler


def _decoder(request: Any) -> Callable[[bytes], Any]:
    decode = request.pb().FromString

    def decode_small(data: bytes) -> Any:
        return decode(data) if len(data) <= MAX_REQUEST_BYTES else None

    return decode_small


def _accept(request: Any) -> Any:
    if request is None:
        raise invalid(f"Request payload size exceeds the limit: {MAX_REQUEST_BYTES} bytes.")
    return request


def _refusing(what: str, *, streams: bool) -> Any:
    async def refuse(_: Any, context: Any) -> Any:
        await _abort(context, not_served(what))

    async def refuse_stream(_: Any, context: Any) -> AsyncIterator[Any]:
        await _abort(context, not_served(what))
        yield b""

    return refuse_stream if streams else refuse


async def _abort(context: Any, refusal: Refusal) -> None:
    await context.abort(grpc.StatusCode[refusal.code], refusal.message)


def _serialize(message: Any) -> bytes:
    return bytes(message.SerializeToString())
