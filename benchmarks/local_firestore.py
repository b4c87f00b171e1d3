"""The embedded Firestore: how soon it is there, how fast it writes, what its documents take."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc.aio
from google.cloud.firestore_v1 import types

from benchmarks.usage import cpu_seconds, resident_mb
from forkjoin_gcp.emulators.firestore_embedded_service import EmbeddedFirestoreService

DATABASE = "projects/bench/databases/(default)"
DOCUMENT_BYTES = 1_000
IN_FLIGHT = 4
A_BATCH = 100

_METHODS = {"BatchWrite": types.BatchWriteRequest.pb(), "Commit": types.CommitRequest.pb()}


@dataclass(frozen=True, slots=True)
class Written:
    """So many documents, in so many seconds, for so much of the server's processor time."""

    documents: int
    seconds: float
    cpu_seconds: float

    @property
    def rate(self) -> float:
        return self.documents / self.seconds

    @property
    def cpu_us(self) -> float:
        return self.cpu_seconds / self.documents * 1e6


@dataclass(frozen=True, slots=True)
class FirestoreFigures:
    ready_seconds: list[float]
    ready_cpu_seconds: list[float]
    batch_write: list[Written]
    commit: list[Written]
    documents: int
    """So many were there when the memory was looked at."""
    resident_mb: float


def measure_firestore(directory: Path, *, starts: int, rounds: int, size: int) -> FirestoreFigures:
    """``rounds`` of both ways to write ``size`` documents, all of which stay."""
    ready, used = zip(*(_start(directory) for _ in range(starts)), strict=True)
    with closing(_Started(directory)) as started:
        written: dict[str, list[Written]] = {method: [] for method in _METHODS}
        for number in range(rounds):
            for method in _METHODS:
                requests = _requests(method, f"{method}{number}", size)
                written[method].append(asyncio.run(_write(started.service, method, requests)))
        return FirestoreFigures(
            list(ready), list(used), written["BatchWrite"], written["Commit"],
            rounds * size * len(_METHODS), resident_mb(started.service.process),
        )  # fmt: skip


class _Started:
    def __init__(self, directory: Path) -> None:
        began = time.perf_counter()
        self.service = EmbeddedFirestoreService(directory)
        self.service.wait_ready()
        self.seconds = time.perf_counter() - began

    def close(self) -> None:
        self.service.stop()


def _start(directory: Path) -> tuple[float, float]:
    with closing(_Started(directory)) as started:
        return started.seconds, cpu_seconds(started.service.process)


def _requests(method: str, collection: str, size: int) -> list[bytes]:
    """Made beforehand: what is measured is the server."""
    made = []
    for first in range(0, size, A_BATCH):
        request: Any = _METHODS[method](database=DATABASE)
        for number in range(first, min(first + A_BATCH, size)):
            document = request.writes.add().update
            document.name = f"{DATABASE}/documents/{collection}/{number:08d}"
            document.fields["number"].integer_value = number
            document.fields["text"].string_value = f"{number:08d} " * (DOCUMENT_BYTES // 9)
        made.append(request.SerializeToString())
    return made


async def _write(
    service: EmbeddedFirestoreService, method: str, requests: Sequence[bytes]
) -> Written:
    left = iter(requests)
    async with grpc.aio.insecure_channel(service.address) as channel:
        send = channel.unary_unary(f"/google.firestore.v1.Firestore/{method}")
        await channel.channel_ready()

        async def one() -> None:
            for request in left:
                await send(request, metadata=[("authorization", "Bearer owner")])

        used, began = cpu_seconds(service.process), time.perf_counter()
        await asyncio.gather(*(one() for _ in range(IN_FLIGHT)))
        seconds = time.perf_counter() - began
    return Written(len(requests) * A_BATCH, seconds, cpu_seconds(service.process) - used)
