"""The stores when answers are lost, services are away or refuse, and what is stored is spoilt."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import grpc.aio
import pytest
from google.cloud.firestore_v1 import types

from forkjoin_gcp import Services, StoreRefused, StoreUnavailable
from forkjoin_gcp.config import LOCAL_HINT
from forkjoin_gcp.errors import ConfigurationError
from forkjoin_gcp.gcp.firestore import FirestoreStore
from forkjoin_gcp.gcp.firestore_documents import fill_segment
from forkjoin_gcp.gcp.instance import open_client
from forkjoin_gcp.gcp.memorystore_store import MemorystoreStore
from forkjoin_gcp.items import DeadLetter, Segment, move_segment
from forkjoin_gcp.names import Batch, Lane
from forkjoin_gcp.ports import Change, Counters, Listed, WorkStore
from forkjoin_gcp.testing.scan_contract import again, bury
from forkjoin_gcp.testing.store_contract import (
    BATCH_SIZE,
    a_batch,
    a_letter,
    contents,
    halves,
    put,
    some_segments,
)
from tests.contracts.lossy import LossyProxy, lossy

HOUR = 3600.0
KINDS = ("firestore", "valkey")
both = pytest.mark.parametrize("kind", KINDS)


def a_lane() -> Lane:
    return Lane("faults", uuid.uuid4().hex[:12])


@contextlib.asynccontextmanager
async def open_store(
    kind: str, services: Services, address: str | None = None
) -> AsyncIterator[Any]:
    """A store of that kind, at another address than the service's own if one is given."""
    store: Any
    if kind == "firestore":
        moved = {"firestore_emulator_host": address or services.firestore_emulator_host}
        store = FirestoreStore(services.model_copy(update=moved), Counters())
    else:
        moved = {"memorystore": f"redis://{address}" if address else services.memorystore}
        client = await open_client(services.model_copy(update=moved), 5.0)
        store = MemorystoreStore(client, HOUR, Counters())
    try:
        yield store
    finally:
        await store.close()


def address_of(kind: str, services: Services) -> str:
    where = services.firestore_emulator_host if kind == "firestore" else services.memorystore
    return str(where).removeprefix("redis://")


Body = Callable[[WorkStore, WorkStore, LossyProxy, Lane], Awaitable[None]]


def with_proxy(kind: str, services: Services, body: Body) -> None:
    """Run ``body(store behind the proxy, store beside it, proxy, lane)``."""

    async def run() -> None:
        async with (
            lossy(address_of(kind, services)) as (proxy, address),
            open_store(kind, services, address) as store,
            open_store(kind, services) as beside,
        ):
            lane = a_lane()
            await store.listing(a_batch(lane))  # connects
            if isinstance(store, MemorystoreStore):
                # Else the first answer to a script is that the server does not know it.
                for script in (store._create, store._move, store._settle, store._requeue):
                    await store._client.script_load(script.text)
            await body(store, beside, proxy, lane)

    asyncio.run(run())


@both
def test_a_create_whose_answer_was_lost(kind: str, services: Services) -> None:
    async def body(store: WorkStore, beside: WorkStore, proxy: LossyProxy, lane: Lane) -> None:
        batch = a_batch(lane)
        segments = some_segments(batch, 25)
        written = await proxy.lose_answer(
            store.create(batch, segments), lambda: beside.listing(batch)
        )
        assert written == [None] * 3
        assert await contents(beside, batch) == segments

    with_proxy(kind, services, body)


@both
def test_a_move_whose_answer_was_lost(kind: str, services: Services) -> None:
    async def body(store: WorkStore, beside: WorkStore, proxy: LossyProxy, lane: Lane) -> None:
        batch, target = a_batch(lane), a_batch(lane, 1)
        found = await put(store, batch, some_segments(batch, 10))
        pieces = move_segment(some_segments(batch, 10)[0], 4, BATCH_SIZE)
        assert await proxy.lose_answer(
            store.move(batch, found[0], target, pieces), lambda: beside.listing(target)
        )
        assert await contents(beside, target) == pieces

    with_proxy(kind, services, body)


@both
def test_a_requeue_whose_answer_was_lost(kind: str, services: Services) -> None:
    async def body(store: WorkStore, beside: WorkStore, proxy: LossyProxy, lane: Lane) -> None:
        (letter,) = await bury(beside, a_batch(lane), 1)
        (found,) = await store.find_dead(lane, "", 10)
        target, segment = a_batch(lane, 1), again(letter, 4)
        assert await proxy.lose_answer(
            store.requeue(lane, found, target, segment), lambda: beside.listing(target)
        )
        assert await contents(beside, target) == [segment]
        assert await beside.dead_letters(lane, 10) == []

    with_proxy(kind, services, body)


@both
def test_a_split_whose_answer_was_lost(kind: str, services: Services) -> None:
    async def body(store: WorkStore, beside: WorkStore, proxy: LossyProxy, lane: Lane) -> None:
        batch = a_batch(lane)
        segment = some_segments(batch, 10)[0]
        (found,) = await put(store, batch, [segment])
        pieces = halves(segment, 4)

        async def done() -> bool:
            return len(await beside.listing(batch)) == 2

        assert await proxy.lose_answer(store.split(batch, found, pieces), done)
        assert await contents(beside, batch) == pieces

    with_proxy(kind, services, body)


@both
@pytest.mark.parametrize("case", ["replaced", "replaced with dead", "deleted with dead"])
def test_a_settling_whose_answer_was_lost(kind: str, case: str, services: Services) -> None:
    async def body(store: WorkStore, beside: WorkStore, proxy: LossyProxy, lane: Lane) -> None:
        batch = a_batch(lane)
        segment = some_segments(batch, 10)[0]
        found = await put(store, batch, [segment])
        left = None if "deleted" in case else replace(segment, items=segment.items[4:])
        dead = (a_letter(segment, segment.items[0]),) if "dead" in case else ()

        async def done() -> bool:
            return await contents(beside, batch) != [segment]

        assert await proxy.lose_answer(
            store.settle(batch, [Change(found[0], left, dead)]), done
        ) == [True]
        assert await contents(beside, batch) == ([left] if left else [])
        assert await beside.dead_letters(lane, 10) == list(dead)

    with_proxy(kind, services, body)


@both
def test_a_deletion_whose_answer_was_lost(kind: str, services: Services) -> None:
    """Who deleted it cannot be told; the neighbour's answer is not touched by that."""

    async def body(store: WorkStore, beside: WorkStore, proxy: LossyProxy, lane: Lane) -> None:
        batch = a_batch(lane)
        found = await put(store, batch, some_segments(batch, 20))

        async def done() -> bool:
            return not await beside.listing(batch)

        changes = [Change(one, None) for one in found]
        await proxy.lose_answer(store.settle(batch, changes), done)
        assert await beside.listing(batch) == []

    with_proxy(kind, services, body)


@both
def test_reads_are_made_again(kind: str, services: Services) -> None:
    async def body(store: WorkStore, _: WorkStore, proxy: LossyProxy, lane: Lane) -> None:
        batch = a_batch(lane)
        segments = some_segments(batch, 10)
        await put(store, batch, segments)
        proxy.cut()
        assert await contents(store, batch) == segments
        proxy.cut()
        assert await store.listing(batch) == [Listed(0, 10)]

    with_proxy(kind, services, body)


ASKED: dict[str, Callable[[WorkStore, Batch, Sequence[Segment]], Awaitable[object]]] = {
    "create": lambda store, batch, segments: store.create(batch, segments),
    "discard": lambda store, batch, segments: store.discard(batch, segments),
    "listing": lambda store, batch, _: store.listing(batch),
    "read": lambda store, batch, _: store.read(batch, 0, 10),
    "dead_letters": lambda store, batch, _: store.dead_letters(batch.lane, 10),
}


@both
def test_an_unreachable_service_is_named_soon(kind: str) -> None:
    services = Services(
        project="p", firestore_emulator_host="127.0.0.1:9", memorystore="redis://127.0.0.1:9"
    )
    variable = "FIRESTORE_EMULATOR_HOST" if kind == "firestore" else "FORKJOIN_MEMORYSTORE"

    async def run() -> None:
        batch = a_batch(a_lane())
        segments = some_segments(batch, 10)
        async with open_store(kind, services) as store, asyncio.timeout(4):
            answers = await asyncio.gather(
                *(ask(store, batch, segments) for ask in ASKED.values()), return_exceptions=True
            )
            for answer in answers:
                assert isinstance(answer, StoreUnavailable)
                assert variable in str(answer)
                assert LOCAL_HINT in str(answer)

    asyncio.run(run())


def test_a_firestore_that_says_nothing_is_given_up() -> None:
    async def run() -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            services = Services(
                project="p", firestore_emulator_host=f"127.0.0.1:{silent.getsockname()[1]}"
            )
            store = FirestoreStore(services, Counters(), write_seconds=0.4, read_seconds=0.4)
            batch = a_batch(a_lane())
            async with asyncio.timeout(3):
                with pytest.raises(StoreUnavailable):
                    await store.create(batch, some_segments(batch, 10))
                with pytest.raises(StoreUnavailable):
                    await store.read(batch, 0, 10)
            await store.close()

    asyncio.run(run())


Script = list[grpc.StatusCode | list[tuple[int, str]] | tuple[grpc.StatusCode, str]]


SERVICE = "google.firestore.v1.Firestore"


@contextlib.asynccontextmanager
async def scripted(answers: Script) -> AsyncIterator[tuple[FirestoreStore, list[Any]]]:
    """A store whose writing calls get these answers, and the calls: (request, metadata).

    An answer is an error, or the statuses of a BatchWrite's writes; a Commit gets errors alone.
    """
    calls: list[Any] = []
    request_type, response_type = types.BatchWriteRequest.pb(), types.BatchWriteResponse.pb()

    async def next_answer(request: Any, context: Any) -> list[tuple[int, str]]:
        calls.append((request, dict(context.invocation_metadata())))
        answer = answers.pop(0) if answers else [(0, "")] * len(request.writes)
        if isinstance(answer, grpc.StatusCode):
            await context.abort(answer, "scripted")
        if isinstance(answer, tuple):
            await context.abort(*answer)
        assert isinstance(answer, list)
        return answer

    async def commit(request: Any, context: Any) -> Any:
        await next_answer(request, context)
        return types.CommitResponse.pb()()

    async def batch_write(request: Any, context: Any) -> Any:
        answer = await next_answer(request, context)
        response = response_type()
        for code, message in answer:
            response.status.add(code=code, message=message)
            response.write_results.add()
        return response

    server = grpc.aio.server()
    handlers = {
        name: grpc.unary_unary_rpc_method_handler(
            serve, read.FromString, lambda message: message.SerializeToString()
        )
        for name, serve, read in (
            ("BatchWrite", batch_write, request_type),
            ("Commit", commit, types.CommitRequest.pb()),
        )
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    services = Services(project="p", database="named", firestore_emulator_host=f"127.0.0.1:{port}")
    store = FirestoreStore(services, Counters(), write_seconds=2.0)
    try:
        yield store, calls
    finally:
        await store.close()
        await server.stop(None)


def create_scripted(answers: Script, items: int = 30) -> tuple[list[Any], list[Any]]:
    """What a create of ``items`` items (ten a segment) comes to, and the calls it made."""

    async def run() -> tuple[list[Any], list[Any]]:
        batch = a_batch(Lane("faults", "v1"))
        async with scripted(answers) as (store, calls):
            return await store.create(batch, some_segments(batch, items)), calls

    return asyncio.run(run())


def test_calls_are_routed_to_the_named_database() -> None:
    results, calls = create_scripted([])
    assert results == [None] * 3
    request, metadata = calls[0]
    assert request.database == "projects/p/databases/named"
    assert metadata["google-cloud-resource-prefix"] == request.database
    assert metadata["x-goog-request-params"] == "database=projects/p/databases/named"
    assert metadata["authorization"] == "Bearer owner"


def test_passing_errors_of_single_writes_are_tried_again() -> None:
    results, calls = create_scripted([[(0, ""), (14, "busy"), (10, "contended")], [(0, "")] * 2])
    assert results == [None] * 3
    assert [len(request.writes) for request, _ in calls] == [3, 2]
    assert list(calls[1][0].writes) == list(calls[0][0].writes)[1:]


@pytest.mark.parametrize("code", ["UNAVAILABLE", "ABORTED", "RESOURCE_EXHAUSTED", "INTERNAL"])
def test_passing_errors_of_a_call_are_tried_again(code: str) -> None:
    results, calls = create_scripted([grpc.StatusCode[code]] * 2)
    assert results == [None] * 3
    assert len(calls) == 3


def test_a_write_that_is_not_acceptable_leaves_the_others_theirs() -> None:
    invalid = (grpc.StatusCode.INVALID_ARGUMENT, "document too large")
    results, calls = create_scripted([invalid, [(0, "")], invalid, [(0, "")]])
    assert sum(result is None for result in results) == 2
    (refused,) = (result for result in results if result is not None)
    assert isinstance(refused, StoreRefused)
    assert "document too large" in str(refused)
    assert len(calls) == 4


@pytest.mark.parametrize(
    ("code", "message", "expected"),
    [
        ("PERMISSION_DENIED", "Missing or insufficient permissions.", "roles/datastore.user"),
        ("NOT_FOUND", "The database named does not exist for project p", "FORKJOIN_DATABASE"),
        ("UNAUTHENTICATED", "no credentials", "FORKJOIN_PROJECT"),
        ("FAILED_PRECONDITION", "Datastore Mode", "Datastore Mode"),
    ],
)
@pytest.mark.parametrize("items", [10, 30])
def test_a_refusal_says_what_to_look_at(code: str, message: str, expected: str, items: int) -> None:
    results, calls = create_scripted([(grpc.StatusCode[code], message)], items=items)
    assert isinstance(results[0], StoreRefused)
    assert expected in str(results[0])
    assert "projects/p/databases/named" in str(results[0])
    assert len(calls) == 1


def test_a_single_writes_refusal_is_its_own() -> None:
    results, _ = create_scripted([[(0, ""), (7, "denied"), (0, "")]])
    assert results[0] is results[2] is None
    assert isinstance(results[1], StoreRefused)


def test_firestore_without_a_project_says_how_to_set_it() -> None:
    with pytest.raises(ConfigurationError, match="FORKJOIN_PROJECT"):
        FirestoreStore(Services(), Counters())


def test_firestore_without_credentials_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/nowhere/key.json")

    async def run() -> None:
        store = FirestoreStore(Services(project="p"), Counters())
        with pytest.raises(ConfigurationError, match=r"credentials.*forkjoin local up"):
            await store.listing(a_batch(a_lane()))
        await store.close()

    asyncio.run(run())


async def spoil_firestore(store: Any, batch: Batch) -> None:
    """Segment 0 has a payload that is no text, 10 has no payloads, and one has no position."""
    write = types.Write.pb()
    spoilt = write()
    fill_segment(spoilt.update, some_segments(batch, 10)[0], batch)
    spoilt.update.name = store._name(batch, 0)
    spoilt.update.fields["payloads"].array_value.values[4].integer_value = 17
    empty = write()
    empty.update.name = store._name(batch, 10)
    empty.update.fields["note"].string_value = "by hand"
    foreign = write()
    foreign.update.name = store._name(batch, "00000015x")
    foreign.update.fields["note"].string_value = "by hand"
    fills = [(partial(copy_write, made), 10_000) for made in (spoilt, empty, foreign)]
    assert await store._calls.batch_write(fills) == [None] * 3


def copy_write(made: Any, write: Any) -> None:
    write.CopyFrom(made)


async def spoil_valkey(store: Any, batch: Batch) -> None:
    key, client = batch.memory_key, store._client
    fields = json.loads(await client.hget(key, "00000000"))
    fields["payloads"][4] = 17
    await client.hset(key, "00000000", json.dumps(fields))
    await client.hset(key, "00000010", '{"note":"by hand"')
    await client.hset(key, "00000015x", '{"note":"by hand"}')


@both
def test_what_is_spoilt_stops_no_neighbour(kind: str, services: Services) -> None:
    async def run() -> None:
        lane = a_lane()
        batch = a_batch(lane)
        segments = some_segments(batch, 30)
        async with open_store(kind, services) as store:
            await put(store, batch, segments)
            await (spoil_firestore if kind == "firestore" else spoil_valkey)(store, batch)
            one, two, three = await store.read(batch, 0, 100)
            listed = [listed.first for listed in await store.listing(batch) if listed.count]
            assert listed == [0, 10, 20]
            assert three.segment == segments[2]
            assert one.segment.items[:4] == segments[0].items[:4]
            assert one.segment.items[5:] == segments[0].items[5:]
            assert one.segment.items[4].payload == "!not a payload: 17"
            assert two.segment is None
            assert two.defect
            assert "by hand" in two.raw
            letter = DeadLetter(batch.item_id(10), two.raw, "undecodable", two.defect, 0, 1.5, 1.5)
            left = replace(one.segment, items=one.segment.items[:4])
            dead = (a_letter(one.segment, one.segment.items[4]),)
            changes = [Change(one, left, dead), Change(two, None, (letter,))]
            assert await store.settle(batch, changes) == [True, True]
            assert await contents(store, batch) == [left, segments[2]]
            assert await store.dead_letters(lane, 10) == sorted(
                [*dead, letter], key=lambda each: each.id
            )

    asyncio.run(run())


def test_spoilt_dead_letters_in_valkey_are_shown(services: Services) -> None:
    async def run() -> None:
        lane = a_lane()
        async with open_store("valkey", services) as store:
            await store._client.hset(f"{lane.key}:dead", "an-id", b"\xffno json")
            (letter,) = await store.dead_letters(lane, 10)
            assert letter.payload == "\\xffno json"
            await store._client.delete(f"{lane.key}:dead")

    asyncio.run(run())


def test_a_full_valkey_is_named(services: Services) -> None:
    async def run() -> None:
        batch = a_batch(a_lane())
        async with open_store("valkey", services) as store:
            await store._client.config_set("maxmemory", "1mb")
            try:
                with pytest.raises(StoreUnavailable, match="full"):
                    await store.create(batch, some_segments(batch, 10))
            finally:
                await store._client.config_set("maxmemory", "0")
            assert await store.create(batch, some_segments(batch, 10)) == [None]

    asyncio.run(run())


def test_scripts_are_loaded_again_after_a_restart(services: Services) -> None:
    async def run() -> None:
        batch = a_batch(a_lane())
        async with open_store("valkey", services) as store:
            await store.listing(batch)
            await store._client.script_flush()
            assert await store.create(batch, some_segments(batch, 10)) == [None]

    asyncio.run(run())


def test_what_is_to_be_tried_later_does_not_expire_before(services: Services) -> None:
    async def run() -> None:
        batch = a_batch(a_lane())
        segment = some_segments(batch, 10)[0]
        async with open_store("valkey", services) as store:
            seconds = (await store._client.time())[0]
            found = await put(store, batch, [replace(segment, expire_at=float(seconds))])
            assert await store._client.pttl(batch.memory_key) <= HOUR * 1000
            left = replace(segment, expire_at=seconds + 3 * HOUR)
            assert await store.settle(batch, [Change(found[0], left)]) == [True]
            assert await store._client.pttl(batch.memory_key) > 2 * HOUR * 1000
            await put(store, batch, some_segments(batch, 10, start=10))
            assert await store._client.pttl(batch.memory_key) > 2 * HOUR * 1000, "never shortened"

    asyncio.run(run())


def test_what_a_group_costs(services: Services) -> None:
    """Calls are what the cloud charges for."""

    async def run() -> None:
        batch = a_batch(a_lane())
        segments = some_segments(batch, 1_000, batch_size=100)
        async with open_store("firestore", services) as store:
            counters = store._calls._counters
            assert await store.create(batch, segments) == [None] * 10
            assert counters == {"firestore.batch_write": 1, "firestore.documents_written": 10}
            counters.clear()
            found = await store.read(batch, 0, 1_000)
            assert counters == {"firestore.run_query": 1, "firestore.documents_read": 10}
            counters.clear()
            await store.settle(batch, [Change(one, None) for one in found])
            assert counters == {"firestore.batch_write": 1, "firestore.documents_deleted": 10}
        async with open_store("valkey", services) as store:
            assert await store.create(batch, segments) == [None] * 10
            assert store._counters == {"memorystore.round_trip": 1}

    asyncio.run(run())
