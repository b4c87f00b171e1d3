"""The ceiling: the very BatchWrite requests that ``enqueue_many`` makes, sent and nothing else.

They are recorded, as bytes, from a run of ``enqueue_many`` against a stand-in that writes nothing.
Replaying them encodes no item, counts no writer and creates no task.
"""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import grpc.aio
from google.cloud.firestore_v1 import types
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped]

from benchmarks.figures import Sample
from benchmarks.loads import Stopwatch
from benchmarks.setting import Setting, Work, make_items
from forkjoin_gcp import ForkJoinQueue

BATCH_WRITE = "/google.firestore.v1.Firestore/BatchWrite"
UNLIMITED = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]

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
        """Send what was recorded, all requests at once."""
        return self._loop.run_until_complete(self._replay())

    async def _replay(self) -> Sample:
        if self._channel is None:
            self._channel = grpc.aio.insecure_channel(self._setting.firestore, options=UNLIMITED)
            await self._channel.channel_ready()
        send = self._channel.unary_unary(BATCH_WRITE)
        metadata = [("authorization", "Bearer owner")]
        watch = Stopwatch()
        began = time.perf_counter()
        answers = await asyncio.gather(*(send(one, metadata=metadata) for one in self._requests))
        latency = time.perf_counter() - began
        sample = watch.sample([latency], self._count, {"firestore.batch_write": len(answers)})
        for answer in answers:
            if any(status.code for status in _Response.FromString(answer).status):
                raise RuntimeError("the store refused a recorded write")
        return sample

    def close(self) -> None:
        if self._channel is not None:
            self._loop.run_until_complete(self._channel.close())
        self._loop.close()
