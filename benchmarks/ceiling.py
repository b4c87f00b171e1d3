"""The ceiling: the very BatchWrite requests that ``enqueue_many`` makes, sent and nothing else.

They are recorded from a run of ``enqueue_many`` against a stand-in that writes nothing. Sending
them again encodes no item, counts no writer and creates no task. Two ways:

* *built*: from the same texts in the same segments, with raw protobuf messages and the public
  client: what a program that only writes has to do;
* *replayed*: the recorded bytes as they are, which no program that writes could do.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import grpc.aio
from google.cloud.firestore_v1 import types
from google.cloud.firestore_v1.services.firestore import FirestoreAsyncClient
from google.cloud.firestore_v1.services.firestore.transports import FirestoreGrpcAsyncIOTransport
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped]

from benchmarks.figures import Sample
from benchmarks.loads import Stopwatch
from benchmarks.setting import Setting, Work, make_items
from forkjoin_gcp import ForkJoinQueue

BATCH_WRITE = "/google.firestore.v1.Firestore/BatchWrite"
UNLIMITED = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]

METADATA = [("authorization", "Bearer owner")]

_Parts = tuple[str, list[tuple[Any, list[str]]]]
"""A request taken apart: its database, and of each write what is not payloads, and the payloads."""

_Request: Any = types.BatchWriteRequest.pb()
_Response: Any = types.BatchWriteResponse.pb()


class Recorder(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Says yes to every BatchWrite, and keeps its bytes."""

    def __init__(self) -> None:
        self.requests: list[bytes] = []
        self.documents = 0
        self._lock = threading.Lock()

    def service(self, details: Any) -> Any:
        if details.method != BATCH_WRITE:
            return None
        return grpc.unary_unary_rpc_method_handler(self._answer)

    def _answer(self, request: bytes, _context: Any) -> bytes:
        writes = len(_Request.FromString(request).writes)
        with self._lock:
            self.requests.append(request)
            self.documents += writes
        results = [types.WriteResult.pb()() for _ in range(writes)]
        response = _Response(write_results=results, status=[Status() for _ in range(writes)])
        return bytes(response.SerializeToString())


class Ceiling:
    """Records in a process of its own, and replays there as often as is wanted."""

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._requests: list[bytes] = []
        self._count = 0
        self._loop = asyncio.new_event_loop()
        self._channel: Any = None

    def record(self, name: str, count: int) -> tuple[int, int]:
        """The requests of a call with ``count`` items: how many, with how many documents.

        The Cloud Tasks queue of ``name`` must exist.
        """
        recorder = Recorder()
        with ThreadPoolExecutor(4) as pool:
            server = grpc.server(pool, handlers=[recorder], options=UNLIMITED)
            address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
            server.start()
            services = self._setting.services().model_copy(
                update={"firestore_emulator_host": address}
            )
            items = (make_items(10_000) * (count // 10_000 + 1))[:count]
            try:
                with ForkJoinQueue(
                    name, payload=Work, services=services, batch_period=60.0,
                    max_batch_items=1_000_000,
                ) as queue:  # fmt: skip
                    queue.enqueue_many(items)
            finally:
                server.stop(None).wait()
        self._requests, self._count = recorder.requests, count
        return len(recorder.requests), recorder.documents

    def replay(self) -> Sample:
        """Send the bytes that were recorded, all requests at once."""
        return self._loop.run_until_complete(self._replay())

    def build(self) -> Sample:
        """Make the same requests anew from their texts, and send them all at once."""
        return self._loop.run_until_complete(self._build())

    async def _connect(self) -> Any:
        if self._channel is None:
            self._channel = grpc.aio.insecure_channel(self._setting.firestore, options=UNLIMITED)
            await self._channel.channel_ready()
        return self._channel

    async def _replay(self) -> Sample:
        send = (await self._connect()).unary_unary(BATCH_WRITE, response_deserializer=_decode)
        watch = Stopwatch()
        answers = await asyncio.gather(*(send(one, metadata=METADATA) for one in self._requests))
        return self._sample(watch, answers)

    async def _build(self) -> Sample:
        transport = FirestoreGrpcAsyncIOTransport(channel=await self._connect())
        client = FirestoreAsyncClient(transport=transport)
        texts = [_take_apart(request) for request in self._requests]
        watch = Stopwatch()
        # One after the other: the first is on its way while the second is made.
        sent = []
        for parts in texts:
            request = types.BatchWriteRequest.wrap(_put_together(parts))
            call = client.batch_write(request, retry=None, timeout=30, metadata=METADATA)
            sent.append(asyncio.ensure_future(call))
            await asyncio.sleep(0)
        answers = [types.BatchWriteResponse.pb(answer) for answer in await asyncio.gather(*sent)]
        return self._sample(watch, answers)

    def _sample(self, watch: Stopwatch, answers: Sequence[Any]) -> Sample:
        writes = sum(len(answer.status) for answer in answers)
        calls = {"firestore.batch_write": len(answers), "firestore.documents_written": writes}
        sample = watch.sample([watch.elapsed()], self._count, calls)
        if any(status.code for answer in answers for status in answer.status):
            raise RuntimeError("the store refused a recorded write")
        return sample

    def close(self) -> None:
        if self._channel is not None:
            self._loop.run_until_complete(self._channel.close())
        self._loop.close()


def _decode(answer: bytes) -> Any:
    return _Response.FromString(answer)


def _take_apart(request: bytes) -> _Parts:
    parsed = _Request.FromString(request)
    documents = []
    for write in parsed.writes:
        fields = write.update.fields
        texts = [value.string_value for value in fields["payloads"].array_value.values]
        del fields["payloads"]
        documents.append((write, texts))
    return parsed.database, documents


def _put_together(parts: _Parts) -> Any:
    database, documents = parts
    request = _Request(database=database)
    for rest, texts in documents:
        write = request.writes.add()
        write.CopyFrom(rest)  # its name, precondition and four small fields
        add = write.update.fields["payloads"].array_value.values.add
        for text in texts:
            add().string_value = text
    return request
