"""Bounded memory: who finds no room waits in order, or is refused; in virtual time."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from forkjoin_gcp.errors import QueueClosed, QueueFull, StoreUnavailable
from forkjoin_gcp.names import Batch
from tests.unit.rig import Rig, rigged


def gated(rig: Rig) -> asyncio.Event:
    """Hold all writes back until the event is set; ``rig.held`` counts the items in them."""
    gate = asyncio.Event()
    create = rig.store.create

    async def held(batch: Batch, segments: Any) -> Any:
        await gate.wait()
        return await create(batch, segments)

    rig.store.create = held  # type: ignore[method-assign]
    return gate


@rigged
async def test_callers_wait_for_room_and_go_in_in_their_order() -> None:
    rig = Rig(max_pending_items=3, enqueue_timeout=10)
    gate = gated(rig)
    ended: list[int] = []

    async def caller(n: int) -> None:
        await rig.put(n)
        ended.append(n)

    callers = [asyncio.ensure_future(caller(n)) for n in range(10)]
    await asyncio.sleep(5)
    assert rig.counters["waits_for_room"] == 7
    assert (rig.left, ended) == (0, [])
    gate.set()
    await asyncio.gather(*callers)
    assert ended == list(range(10))
    assert rig.counters["groups"] >= 4, "never more than three at once"
    await rig.drain()
    assert rig.numbers == list(range(10))


@rigged
async def test_who_waits_too_long_is_refused_and_nothing_of_it_is_written() -> None:
    rig = Rig(max_pending_items=1, enqueue_timeout=10)
    gate = gated(rig)
    first = asyncio.ensure_future(rig.put(0))
    await asyncio.sleep(1)
    second = asyncio.ensure_future(rig.put(1))
    await asyncio.sleep(5)
    third = asyncio.ensure_future(rig.put(2, 3))
    with pytest.raises(QueueFull, match=r"1 items .* max_pending_items=1,") as caught:
        await second
    assert rig.loop.time() == pytest.approx(11)
    assert caught.value.retryable
    with pytest.raises(QueueFull, match="no room for 2 items"):
        await third
    assert rig.loop.time() == pytest.approx(16)
    assert rig.counters["queue_full"] == 2
    gate.set()
    await first
    await rig.put(4)
    await rig.drain()
    assert rig.numbers == [0, 4]


@rigged
async def test_without_a_timeout_the_refusal_is_at_once() -> None:
    rig = Rig(max_pending_items=1, enqueue_timeout=0)
    gate = gated(rig)
    first = asyncio.ensure_future(rig.put(0))
    await asyncio.sleep(0)
    with pytest.raises(QueueFull, match="enqueue_timeout=0 s"):
        await rig.put(1)
    assert rig.loop.time() == 0
    gate.set()
    await first
    await rig.put(2)


@rigged
async def test_bytes_are_bounded_too() -> None:
    rig = Rig(max_pending_bytes=1_000_000, enqueue_timeout=0)
    gate = gated(rig)
    text = "x" * 600_000
    first = asyncio.ensure_future(rig.writer.put([text]))
    await asyncio.sleep(0)
    with pytest.raises(QueueFull, match="max_pending_bytes=1,000,000"):
        await rig.writer.put([text])
    small = asyncio.ensure_future(rig.writer.put(["x" * 300_000]))
    await asyncio.sleep(0)
    assert not small.done()
    gate.set()
    await asyncio.gather(first, small)


@rigged
async def test_more_than_all_the_room_goes_in_alone() -> None:
    rig = Rig(max_pending_items=5, enqueue_timeout=60)
    gate = gated(rig)
    order: list[str] = []

    async def caller(name: str, *numbers: int) -> None:
        await rig.put(*numbers)
        order.append(name)

    callers = [
        asyncio.ensure_future(caller("small", 0)),
        asyncio.ensure_future(caller("large", *range(1, 21))),
        asyncio.ensure_future(caller("after", 21)),
    ]
    await asyncio.sleep(1)
    gate.set()
    await asyncio.gather(*callers)
    assert order == ["small", "large", "after"], "nobody overtakes the large one"
    await rig.drain()
    assert rig.numbers == list(range(22))


@rigged
async def test_who_waits_behind_a_large_one_goes_in_when_that_is_refused() -> None:
    rig = Rig(max_pending_items=3, enqueue_timeout=10)
    gate = gated(rig)
    first = asyncio.ensure_future(rig.put(0))
    await asyncio.sleep(0)
    large = asyncio.ensure_future(rig.put(1, 2, 3))
    await asyncio.sleep(5)
    small = asyncio.ensure_future(rig.put(4))
    with pytest.raises(QueueFull):
        await large
    await asyncio.sleep(20)
    gate.set()
    await asyncio.gather(first, small)
    await rig.drain()
    assert rig.numbers == [0, 4], "it had room from the moment the large one was refused"


@rigged
async def test_room_is_made_by_failures_as_well() -> None:
    rig = Rig(max_pending_items=2, enqueue_timeout=60)

    async def away(batch: Batch, segments: Any) -> Any:
        await asyncio.sleep(1)
        return [StoreUnavailable() for _ in segments]

    rig.store.create = away  # type: ignore[method-assign]
    puts = [rig.put(n, n) for n in range(10)]
    results = await asyncio.gather(*puts, return_exceptions=True)
    assert all(isinstance(result, StoreUnavailable) for result in results)
    assert rig.writer._room._items == rig.writer._room._bytes == 0


@rigged
async def test_closing_refuses_who_waits_for_room_and_finishes_the_rest() -> None:
    rig = Rig(max_pending_items=2, enqueue_timeout=60)
    gate = gated(rig)
    taken = asyncio.ensure_future(rig.put(0, 1))
    await asyncio.sleep(0)
    waits = asyncio.ensure_future(rig.put(2))
    await asyncio.sleep(1)
    closing = asyncio.ensure_future(rig.writer.close())
    with pytest.raises(QueueClosed):
        await waits
    assert not closing.done()
    gate.set()
    await asyncio.gather(taken, closing)
    await rig.drain()
    assert rig.numbers == [0, 1]


@rigged
async def test_an_overload_holds_no_more_than_allowed() -> None:
    """Twice what the store can take: the pending stay bounded, and everybody gets an answer."""
    rig = Rig(max_pending_items=50, enqueue_timeout=2)
    create = rig.store.create
    most = 0

    async def slow(batch: Batch, segments: Any) -> Any:
        nonlocal most
        most = max(most, sum(len(segment.items) for segment in segments))
        await asyncio.sleep(0.1)
        return await create(batch, segments)

    rig.store.create = slow  # type: ignore[method-assign]
    accepted: list[int] = []
    refused: list[int] = []

    async def caller(n: int) -> None:
        await asyncio.sleep(n / 1000)
        try:
            await rig.put(n)
            accepted.append(n)
        except QueueFull:
            refused.append(n)

    await asyncio.gather(*(caller(n) for n in range(10_000)))
    assert most <= 50
    assert len(accepted) + len(refused) == 10_000
    assert 2_500 < len(accepted) < 7_000
    await rig.drain()
    assert rig.numbers == sorted(accepted)
