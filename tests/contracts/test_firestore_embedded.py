"""The embedded Firestore keeps the project's own store contract, through one port and on disk."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
import threading
import uuid
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import pytest
from google.api_core.exceptions import GoogleAPICallError, MethodNotImplemented
from google.auth.credentials import AnonymousCredentials
from google.cloud import firestore
from google.cloud.firestore_v1.base_query import FieldFilter
from google.cloud.firestore_v1.base_vector_query import DistanceMeasure
from google.cloud.firestore_v1.services.firestore import FirestoreAsyncClient
from google.cloud.firestore_v1.services.firestore.transports import FirestoreGrpcAsyncIOTransport
from google.cloud.firestore_v1.vector import Vector

from forkjoin_gcp import Services
from forkjoin_gcp.emulators.firestore_embedded import EmbeddedFirestore
from forkjoin_gcp.gcp.firestore import FirestoreStore
from forkjoin_gcp.names import Lane
from forkjoin_gcp.ports import Counters
from forkjoin_gcp.testing.store_contract import CHECKS, Check

from .test_firestore_embedded_pair import start_embedded

every_check = pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)


def services_at(address: str) -> Services:
    return Services.from_env(
        {
            "FORKJOIN_PROJECT": f"test-{uuid.uuid4().hex[:12]}",
            "FIRESTORE_EMULATOR_HOST": address,
            "FORKJOIN_JOIN_URL": "http://127.0.0.1:9/forkjoin",
        }
    )


@pytest.mark.parametrize("kept", [False, True], ids=["in memory", "on disk"])
@every_check
def test_the_store_contract(check: Check, kept: bool, tmp_path: Path) -> None:
    async def run() -> None:
        directory = tmp_path if kept else None
        async with EmbeddedFirestore(directory=directory) as emulator:
            store = FirestoreStore(services_at(emulator.address), Counters())
            try:
                await check(store, Lane("checks", uuid.uuid4().hex[:12]))
            finally:
                await store.close()

    asyncio.run(run())


def test_what_was_acknowledged_survives_a_kill(tmp_path: Path) -> None:
    """Killed under load, twice; what was answered is there."""

    async def load(address: str, life: int, told: set[str]) -> None:
        async with grpc.aio.insecure_channel(address) as channel:
            client = FirestoreAsyncClient(transport=FirestoreGrpcAsyncIOTransport(channel=channel))

            async def write(writer: int) -> None:
                with contextlib.suppress(GoogleAPICallError):
                    for number in itertools.count():
                        paths = [f"c/{life}-{writer}-{number}-{n}" for n in range(5)]
                        request = {"database": DATABASE, "writes": [a_write(p) for p in paths]}
                        await client.commit(request, retry=None, timeout=10)
                        told.update(paths)

            await asyncio.gather(*(write(writer) for writer in range(8)))

    told: set[str] = set()
    for life in range(2):
        process, addresses = start_embedded(tmp_path, "--directory", str(tmp_path / "data"))
        before = len(told)
        try:
            there = asyncio.run(all_documents(addresses["address"]))
            assert told <= there
            killer = threading.Timer(0.5 + 0.2 * life, os.killpg, (process.pid, signal.SIGKILL))
            killer.start()
            asyncio.run(load(addresses["address"], life, told))
            killer.join()
        finally:
            process.stop()
        assert len(told) > before
    process, addresses = start_embedded(tmp_path, "--directory", str(tmp_path / "data"))
    try:
        assert told <= asyncio.run(all_documents(addresses["address"]))
    finally:
        process.stop()


DATABASE = "projects/kept/databases/named"


def a_write(path: str) -> dict[str, Any]:
    name = f"{DATABASE}/documents/{path}"
    return {"update": {"name": name, "fields": {"x": {"string_value": "x" * 1000}}}}


async def all_documents(address: str) -> set[str]:
    async with grpc.aio.insecure_channel(address) as channel:
        client = FirestoreAsyncClient(transport=FirestoreGrpcAsyncIOTransport(channel=channel))
        query = {"from_": [{"collection_id": "c"}], "select": {"fields": [{"field_path": "y"}]}}
        request = {"parent": f"{DATABASE}/documents", "structured_query": query}
        found = [each.document.name async for each in await client.run_query(request)]
        return {name.partition("/documents/")[2] for name in found if name}


def test_a_directory_has_one_owner(tmp_path: Path) -> None:
    async def run() -> None:
        async with EmbeddedFirestore(directory=tmp_path):
            with pytest.raises(OSError, match="cannot keep documents"):
                await EmbeddedFirestore(directory=tmp_path).__aenter__()

    asyncio.run(run())


def test_a_reset_lasts(tmp_path: Path) -> None:
    """Over HTTP at the gRPC port, of one database alone, and on disk, too."""
    other = DATABASE.replace("named", "(default)")

    async def counts(address: str) -> list[int]:
        return [await count(address, each) for each in (DATABASE, other)]

    async def run() -> None:
        async with EmbeddedFirestore(directory=tmp_path) as emulator:
            for database in (DATABASE, other):
                await write_three(emulator.address, database)
            assert await counts(emulator.address) == [3, 3]
            url = f"http://{emulator.address}/emulator/v1/{DATABASE}/documents"
            async with aiohttp.ClientSession() as session:
                async with session.delete(url) as answer:
                    assert (answer.status, await answer.text()) == (200, "{\n}\n")
                async with session.get(f"http://{emulator.address}/") as answer:
                    assert (answer.status, await answer.text()) == (200, "Ok\n")
                async with session.get(url) as answer:
                    assert answer.status == 404
            assert await counts(emulator.address) == [0, 3]
        async with EmbeddedFirestore(directory=tmp_path) as emulator:
            assert await counts(emulator.address) == [0, 3]

    asyncio.run(run())


async def write_three(address: str, database: str) -> None:
    client = high_level(address, database)
    for n in range(3):
        await client.document(f"c/{n}").set({"n": n})


async def count(address: str, database: str) -> int:
    return len([each async for each in high_level(address, database).collection("c").stream()])


def high_level(address: str, database: str) -> firestore.AsyncClient:
    project, name = database.split("/")[1::2]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FIRESTORE_EMULATOR_HOST", address)
        return firestore.AsyncClient(project, AnonymousCredentials(), name)


def test_transactions_of_the_async_client() -> None:
    """Many read and write one document at once: none of their writes is lost."""

    async def run() -> None:
        async with EmbeddedFirestore() as emulator:
            client = high_level(emulator.address, DATABASE)
            counter = client.document("c/counter")
            await counter.set({"n": 0})

            @firestore.async_transactional
            async def increment(transaction: firestore.AsyncTransaction) -> None:
                present = await counter.get(transaction=transaction)
                transaction.update(counter, {"n": present.get("n") + 1})

            async def several() -> None:
                for _ in range(5):
                    await increment(client.transaction(max_attempts=50))

            await asyncio.gather(*(several() for _ in range(6)))
            assert (await counter.get()).get("n") == 30

    asyncio.run(run())


def test_the_sync_client_and_what_is_not_served() -> None:
    def use(address: str) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("FIRESTORE_EMULATOR_HOST", address)
            client = firestore.Client("p", AnonymousCredentials(), "named")
        reference = client.collection("c").document("a")
        reference.set({"x": [1, "a", None, {"b": b"c"}], "at": firestore.SERVER_TIMESTAMP})
        reference.update({"n": firestore.Increment(2), "x": firestore.ArrayUnion([2])})
        assert reference.get().to_dict()["x"] == [1, "a", None, {"b": b"c"}, 2]
        found = client.collection("c").where(filter=FieldFilter("n", ">", 1)).order_by("n").get()
        assert [each.id for each in found] == ["a"]
        assert client.collection("c").count().get()[0][0].value == 1
        writer = client.bulk_writer()
        writer.delete(reference)
        writer.close()
        assert not reference.get().exists
        assert [each.id for each in client.collections()] == []
        with pytest.raises(MethodNotImplemented, match="does not serve PartitionQuery"):
            list(client.collection_group("c").get_partitions(3))
        with pytest.raises(MethodNotImplemented, match="does not serve vector search"):
            client.collection("c").find_nearest(
                "v", Vector([1.0]), limit=1, distance_measure=DistanceMeasure.EUCLIDEAN
            ).get()
        client.close()

    async def run() -> None:
        async with EmbeddedFirestore() as emulator:
            await asyncio.to_thread(use, emulator.address)

    asyncio.run(run())
