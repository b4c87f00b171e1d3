"""The embedded Firestore beside Google's emulator: how both are asked the same, and what of their
answers must agree. Also how requests are written down, for those who ask.
"""

from __future__ import annotations

import base64
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import grpc.experimental
import pytest
from google.cloud.firestore_v1 import types
from google.protobuf import empty_pb2, json_format, timestamp_pb2

from forkjoin_gcp.emulators.processes import ChildProcess

DATABASE = "projects/{project}/databases/(default)"
"""Cases and operations name it so; each asks in a project of its own."""

METHODS: dict[str, tuple[Any, Any]] = {
    name: (request.pb(), response.pb() if response else empty_pb2.Empty)
    for name, request, response in (
        ("Commit", types.CommitRequest, types.CommitResponse),
        ("BatchWrite", types.BatchWriteRequest, types.BatchWriteResponse),
        ("CreateDocument", types.CreateDocumentRequest, types.Document),
        ("UpdateDocument", types.UpdateDocumentRequest, types.Document),
        ("DeleteDocument", types.DeleteDocumentRequest, None),
        ("GetDocument", types.GetDocumentRequest, types.Document),
        ("ListDocuments", types.ListDocumentsRequest, types.ListDocumentsResponse),
        ("ListCollectionIds", types.ListCollectionIdsRequest, types.ListCollectionIdsResponse),
        ("BeginTransaction", types.BeginTransactionRequest, types.BeginTransactionResponse),
        ("Rollback", types.RollbackRequest, None),
        ("PartitionQuery", types.PartitionQueryRequest, types.PartitionQueryResponse),
    )
}
STREAMS: dict[str, tuple[Any, Any]] = {
    name: (request.pb(), response.pb())
    for name, request, response in (
        ("BatchGetDocuments", types.BatchGetDocumentsRequest, types.BatchGetDocumentsResponse),
        ("RunQuery", types.RunQueryRequest, types.RunQueryResponse),
        (
            "RunAggregationQuery",
            types.RunAggregationQueryRequest,
            types.RunAggregationQueryResponse,
        ),
    )
}
Body = dict[str, Any]
Operation = tuple[str, Body]
"""A method, and its request as the JSON of protobuf."""


class Server:
    """One of the two, and what of its answers means the same in both.

    Times are told by the number of the operation whose answer first showed them, and transactions
    by the order in which they began.
    """

    def __init__(self, address: str, project: str) -> None:
        self._channel = grpc.insecure_channel(
            address,
            options=[
                ("grpc.max_receive_message_length", -1),
                # Otherwise every stream starts a thread.
                (grpc.experimental.ChannelOptions.SingleThreadedUnaryStream, 1),
            ],
        )
        self._project = project
        self._times: dict[str, str] = {}
        # Of transforms: they may be times of commits as well, or not.
        self._server_times: set[str] = set()
        self._operations = 0
        self._transactions: list[str] = []
        self._tokens: list[str] = []
        self._calls: dict[str, Any] = {}

    def close(self) -> None:
        self._channel.close()

    def ask(self, method: str, body: Body) -> Any:
        """What it answers: plain JSON types, or a code's name."""
        return self.result(self.send(method, body))

    def send(self, method: str, body: Body) -> Any:
        """Begins a call; `result` ends it."""
        request = (METHODS.get(method) or STREAMS[method])[0]()
        json_format.ParseDict(self._named(body), request)
        return method, self._call(method)(request)

    def _call(self, method: str) -> Callable[[Any], Any]:
        call = self._calls.get(method)
        if call is None:
            path = f"/google.firestore.v1.Firestore/{method}"
            coders = {
                "request_serializer": lambda message: message.SerializeToString(),
                "response_deserializer": (METHODS.get(method) or STREAMS[method])[1].FromString,
            }
            owner = (("authorization", "Bearer owner"),)
            if method in STREAMS:
                stream = self._channel.unary_stream(path, **coders)
                call = self._calls[method] = lambda r: stream(r, metadata=owner, timeout=20)
            else:
                unary = self._channel.unary_unary(path, **coders)
                call = self._calls[method] = lambda r: unary.future(r, metadata=owner, timeout=20)
        return call

    def result(self, sent: Any) -> Any:
        method, pending = sent
        self._operations += 1
        try:
            messages = list(pending) if method in STREAMS else [pending.result()]
        except grpc.RpcError as error:
            return _code(error.code().name, error.details() or "")
        answers = [json_format.MessageToDict(each) for each in messages]
        if method in ("Commit", "BatchWrite"):
            self._mark_server_times(answers)
        return [self._plain(each) for each in answers]

    def _mark_server_times(self, answers: Sequence[Body]) -> None:
        for result in answers[0].get("writeResults", ()):
            for value in result.get("transformResults", ()):
                if "timestampValue" in value:
                    self._server_times.add(value["timestampValue"])

    def _named(self, body: Any) -> Any:
        """With the project's name, and this server's own transactions and page tokens."""
        if isinstance(body, dict):
            return {key: self._named(value) for key, value in body.items()}
        if isinstance(body, list):
            return [self._named(value) for value in body]
        if isinstance(body, str) and "{" in body:
            if body.startswith("{transaction "):
                return self._transactions[int(body[13:-1])]
            if body.startswith("{token "):
                return self._tokens[int(body[7:-1])]
            if body.startswith("{time "):
                times = {label: time for time, label in self._times.items()}
                return times.get(body[6:-1], "2020-01-01T00:00:00Z")
            return body.replace("{project}", self._project)
        return body

    def _plain(self, answer: Any) -> Any:
        if isinstance(answer, list):
            return [self._plain(value) for value in answer]
        if not isinstance(answer, dict):
            if isinstance(answer, str):
                return answer.replace(self._project, "{project}")
            return answer
        plain = {}
        for key, value in sorted(answer.items()):
            if key in ("createTime", "updateTime", "commitTime"):
                plain[key] = self._times.setdefault(value, f"{self._operations}")
            elif key == "timestampValue":
                plain[key] = "a server time" if value in self._server_times else value
            elif key == "transaction":
                self._transactions.append(value)
                plain[key] = f"{len(self._transactions)}"
            elif key == "nextPageToken":
                self._tokens.append(value)
                plain[key] = f"{len(self._tokens)}"
            elif key == "status":
                plain[key] = [_code(each.get("code", 0), each.get("message", "")) for each in value]
            elif key not in ("readTime", "skippedResults"):
                plain[key] = self._plain(value)
        return plain


def _code(code: Any, message: str) -> Any:
    """A listed difference: Google's emulator answers this only in some places."""
    if message.startswith("Invalid base version, it is greater than the stored version"):
        return "FAILED_PRECONDITION" if isinstance(code, str) else 9
    return code


class Pair:
    """Both servers, asked the same."""

    def __init__(self, embedded: str, googles: str, project: str) -> None:
        self._servers = [Server(address, project) for address in (embedded, googles)]
        self.asked = 0

    def close(self) -> None:
        for server in self._servers:
            server.close()

    def __enter__(self) -> Pair:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ask(self, method: str, body: Body) -> Any:
        """Their common answer."""
        return self.ask_all([(method, body)])[0]

    def ask_all(self, operations: Sequence[Operation]) -> list[Any]:
        """Their common answers to what is asked at once, and so must not depend on the order."""
        sent = [[server.send(*each) for each in operations] for server in self._servers]
        mine, theirs = (
            [server.result(each) for each in calls]
            for server, calls in zip(self._servers, sent, strict=True)
        )
        self.asked += len(operations)
        for operation, answer, expected in zip(operations, mine, theirs, strict=True):
            assert answer == expected, (
                f"{json.dumps(operation, ensure_ascii=False)}\n"
                f"embedded: {json.dumps(answer, ensure_ascii=False)}\n"
                f"Google's: {json.dumps(expected, ensure_ascii=False)}"
            )
        return mine


def start_embedded(directory: Path, *arguments: str) -> tuple[ChildProcess, dict[str, str]]:
    """The embedded Firestore as a process, and the addresses it told."""
    root = Path(__file__).resolve().parents[2]
    path = os.pathsep.join(filter(None, (str(root), os.environ.get("PYTHONPATH"))))
    process = ChildProcess(
        "embedded Firestore",
        [sys.executable, "-m", "forkjoin_gcp.emulators.firestore_embedded", *arguments],
        directory / "firestore-embedded.log",
        env={**os.environ, "PYTHONPATH": path},
        piped=True,
    )
    return process, json.loads(process.read_line(30.0))


@pytest.fixture(scope="session")
def embedded_address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    process, addresses = start_embedded(tmp_path_factory.mktemp("firestore"))
    yield addresses["address"]
    process.stop()


@pytest.fixture
def pair(
    embedded_address: str, googles_address: str, request: pytest.FixtureRequest
) -> Iterator[Pair]:
    project = "case-" + os.urandom(6).hex()
    with Pair(embedded_address, googles_address, project) as both:
        yield both


# How requests are written down: as short as they can be read.


class Ref(str):
    """A path, as a reference."""


class Time(str):
    """An RFC 3339 time."""


def value(plain: Any) -> Body:
    """A Value."""
    if plain is None:
        return {"nullValue": None}
    if isinstance(plain, bool):
        return {"booleanValue": plain}
    if isinstance(plain, int):
        return {"integerValue": str(plain)}
    if isinstance(plain, float):
        return {
            "doubleValue": json_format.MessageToDict(types.Value.pb()(double_value=plain))[
                "doubleValue"
            ]
        }
    if isinstance(plain, Ref):
        return {"referenceValue": name(plain)}
    if isinstance(plain, Time):
        return {"timestampValue": str(plain)}
    if isinstance(plain, str):
        return {"stringValue": plain}
    if isinstance(plain, bytes):
        return {"bytesValue": base64.b64encode(plain).decode()}
    if isinstance(plain, tuple):
        return {"geoPointValue": {"latitude": plain[0], "longitude": plain[1]}}
    if isinstance(plain, list):
        return {"arrayValue": {"values": [value(each) for each in plain]}}
    return {"mapValue": {"fields": {key: value(each) for key, each in plain.items()}}}


def name(path: str) -> str:
    """The full name of a document; empty for the root."""
    if path.startswith("projects/"):
        return path
    return f"{DATABASE}/documents/{path}" if path else f"{DATABASE}/documents"


def update(path: str, fields: Body, **more: Any) -> Body:
    """A write that sets a document. More: mask, exists, time, transforms."""
    write: Body = {
        "update": {"name": name(path), "fields": {key: value(each) for key, each in fields.items()}}
    }
    if "mask" in more:
        write["updateMask"] = {"fieldPaths": more.pop("mask")}
    if "transforms" in more:
        write["updateTransforms"] = more.pop("transforms")
    return _conditional(write, **more)


def delete(path: str, **more: Any) -> Body:
    return _conditional({"delete": name(path)}, **more)


def _conditional(write: Body, **more: Any) -> Body:
    if "exists" in more:
        write["currentDocument"] = {"exists": more["exists"]}
    if "time" in more:
        write["currentDocument"] = {"updateTime": more["time"]}
    return write


def commit(*writes: Body, **more: Any) -> Operation:
    return "Commit", {"database": DATABASE, "writes": list(writes), **more}


def batch(*writes: Body) -> Operation:
    return "BatchWrite", {"database": DATABASE, "writes": list(writes)}


def get(path: str, **more: Any) -> Operation:
    return "GetDocument", {"name": name(path), **more}


def get_all(*paths: str, **more: Any) -> Operation:
    return "BatchGetDocuments", {
        "database": DATABASE,
        "documents": [name(path) for path in paths],
        **more,
    }


def where(*test: Any) -> Body:
    """A filter: ("and"|"or", test, …) or (field, operator, value) or (field, unary operator)."""
    if test[0] in ("and", "or"):
        filters = [where(*each) for each in test[1:]]
        return {"compositeFilter": {"op": test[0].upper(), "filters": filters}}
    field = {"fieldPath": test[0]}
    if len(test) == 2:
        return {"unaryFilter": {"field": field, "op": test[1]}}
    return {"fieldFilter": {"field": field, "op": test[1], "value": value(test[2])}}


def structured(collection: str | None = "c", *, deep: bool = False, **more: Any) -> Body:
    """A StructuredQuery. More: test, order, start, end, limit, offset, select."""
    query: Body = {}
    if collection is not None:
        query["from"] = [{"collectionId": collection, "allDescendants": deep}]
    if "test" in more:
        query["where"] = where(*more["test"])
    for each in more.get("order", ()):
        descending = each.startswith("-")
        query.setdefault("orderBy", []).append(
            {
                "field": {"fieldPath": each.removeprefix("-")},
                "direction": "DESCENDING" if descending else "ASCENDING",
            }
        )
    for key in ("start", "end"):
        if key in more:
            values, before = more[key]
            query[key + "At"] = {"values": [value(each) for each in values], "before": before}
    for key in ("limit", "offset"):
        if key in more:
            query[key] = more[key]
    if "select" in more:
        query["select"] = {"fields": [{"fieldPath": each} for each in more["select"]]}
    return query


def query(collection: str | None = "c", parent: str = "", **more: Any) -> Operation:
    """A query; `at` holds further fields of the request."""
    at = more.pop("at", {})
    return "RunQuery", {
        "parent": name(parent),
        "structuredQuery": structured(collection, **more),
        **at,
    }


def aggregate(
    figures: Iterable[tuple[str, ...]], collection: str | None = "c", parent: str = "", **more: Any
) -> Operation:
    """Figures: (alias, "count"[, up to]) or (alias, "sum"|"avg", field)."""
    aggregations = []
    for alias, kind, *rest in figures:
        if kind == "count":
            operator: Body = {"upTo": rest[0]} if rest else {}
        else:
            operator = {"field": {"fieldPath": rest[0]}}
        aggregations.append({"alias": alias, kind: operator})
    return "RunAggregationQuery", {
        "parent": name(parent),
        "structuredAggregationQuery": {
            "structuredQuery": structured(collection, **more),
            "aggregations": aggregations,
        },
    }


def timestamp(seconds: int) -> str:
    return timestamp_pb2.Timestamp(seconds=seconds).ToJsonString()
