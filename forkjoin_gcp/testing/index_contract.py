"""What every WorkIndex must do, as checks that any implementation can be put through.

Each check takes the index and the clock-independent lane it may use; all are coroutines that raise
AssertionError. ``CHECKS`` lists them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from forkjoin_gcp.names import Lane
from forkjoin_gcp.ports import Extent, Release, WorkIndex

BATCH_SIZE = 10
MAX_BATCH_ITEMS = 100
"""The index under check is made with these, and with batch_period above 0."""

Check = Callable[[WorkIndex, Lane], Coroutine[Any, Any, None]]


async def positions_are_handed_out_once(index: WorkIndex, lane: Lane) -> None:
    first = await index.reserve(lane, 3)
    second = await index.reserve(lane, 4)
    assert first.index == second.index
    assert (first.start, second.start) == (0, 3)
    assert first.batch_size == second.batch_size == BATCH_SIZE
    assert not first.scheduled
    assert not first.full


async def a_release_notes_the_root_task(index: WorkIndex, lane: Lane) -> None:
    held = await index.reserve(lane, 1)
    assert await index.release(lane, held.index, scheduled=False) is Release.OPEN
    assert not (await index.reserve(lane, 1)).scheduled
    assert await index.release(lane, held.index, scheduled=True) is Release.OPEN
    assert (await index.reserve(lane, 1)).scheduled


async def release_and_reserve_does_both(index: WorkIndex, lane: Lane) -> None:
    held = await index.reserve(lane, 2)
    verdict, following = await index.release_and_reserve(lane, held.index, 5, scheduled=True)
    assert verdict is Release.OPEN
    assert (following.index, following.start, following.scheduled) == (held.index, 2, True)
    assert await index.seal(lane, held.index) == 1


async def a_full_batch_closes_itself(index: WorkIndex, lane: Lane) -> None:
    most = await index.reserve(lane, MAX_BATCH_ITEMS - 1)
    last = await index.reserve(lane, 5)
    assert last.index == most.index
    assert last.full
    after = await index.reserve(lane, 1)
    assert after.index > last.index
    assert after.start == 0


async def sealing_lets_nobody_in(index: WorkIndex, lane: Lane) -> None:
    held = await index.reserve(lane, 1)
    assert await index.seal(lane, held.index) == 1
    assert (await index.reserve(lane, 1)).index > held.index
    assert await index.seal(lane, held.index) == 1, "sealing again changes nothing"
    assert await index.release(lane, held.index, scheduled=True) is Release.SEALED
    assert await index.seal(lane, held.index) == 0


async def a_fence_tells_the_extent_and_makes_late(index: WorkIndex, lane: Lane) -> None:
    held = await index.reserve(lane, 7)
    await index.seal(lane, held.index)
    assert await index.fence(lane, held.index) == Extent(7, BATCH_SIZE)
    assert await index.release(lane, held.index, scheduled=True) is Release.LATE
    assert await index.fence(lane, held.index) is None
    assert await index.seal(lane, held.index) is None


async def a_fence_without_a_seal_still_closes(index: WorkIndex, lane: Lane) -> None:
    held = await index.reserve(lane, 1)
    assert await index.fence(lane, held.index) == Extent(1, BATCH_SIZE)
    assert (await index.reserve(lane, 1)).index > held.index


async def an_index_from_nowhere_is_unknown(index: WorkIndex, lane: Lane) -> None:
    held = await index.reserve(lane, 1)
    stranger = held.index - 1000
    assert await index.seal(lane, stranger) is None
    assert await index.fence(lane, stranger) is None
    assert await index.release(lane, stranger, scheduled=True) is Release.LATE
    assert (await index.reserve(lane, 1)).index == held.index


async def fencing_ahead_moves_the_lane_past(index: WorkIndex, lane: Lane) -> None:
    held = await index.reserve(lane, 1)
    ahead = held.index + 3_600_000
    assert await index.fence(lane, ahead) is None
    assert (await index.reserve(lane, 1)).index > ahead


async def the_last_release_wakes_the_reader(index: WorkIndex, lane: Lane) -> None:
    held = await index.reserve(lane, 1)
    await index.reserve(lane, 1)
    await index.seal(lane, held.index)
    loop = asyncio.get_running_loop()
    began = loop.time()
    waiting = asyncio.ensure_future(index.wait_drained(lane, held.index, 30))
    await index.release(lane, held.index, scheduled=True)
    await index.release(lane, held.index, scheduled=True)
    await waiting
    assert loop.time() - began < 5, "woken by the release, not by the time"


async def a_wake_up_before_the_wait_is_not_lost(index: WorkIndex, lane: Lane) -> None:
    held = await index.reserve(lane, 1)
    await index.seal(lane, held.index)
    await index.release(lane, held.index, scheduled=True)
    loop = asyncio.get_running_loop()
    began = loop.time()
    await index.wait_drained(lane, held.index, 30)
    assert loop.time() - began < 5


async def waiting_ends_in_time(index: WorkIndex, lane: Lane) -> None:
    held = await index.reserve(lane, 1)
    await index.seal(lane, held.index)
    await index.wait_drained(lane, held.index, 0.05)
    assert await index.seal(lane, held.index) == 1


async def lanes_do_not_meet(index: WorkIndex, lane: Lane) -> None:
    others = [Lane(lane.queue, lane.version, 1), Lane(lane.queue, "other")]
    held = await index.reserve(lane, 5)
    for other in others:
        assert (await index.reserve(other, 1)).start == 0
    await index.fence(lane, held.index)
    for other in others:
        assert (await index.reserve(other, 1)).start == 1


async def writers_side_by_side_never_share_a_position(index: WorkIndex, lane: Lane) -> None:
    held = await asyncio.gather(*(index.reserve(lane, 1 + n % 3) for n in range(60)))
    taken = [(one.index, one.start + n) for i, one in enumerate(held) for n in range(1 + i % 3)]
    assert len(set(taken)) == len(taken)


CHECKS: list[Check] = [
    positions_are_handed_out_once,
    a_release_notes_the_root_task,
    release_and_reserve_does_both,
    a_full_batch_closes_itself,
    sealing_lets_nobody_in,
    a_fence_tells_the_extent_and_makes_late,
    a_fence_without_a_seal_still_closes,
    an_index_from_nowhere_is_unknown,
    fencing_ahead_moves_the_lane_past,
    the_last_release_wakes_the_reader,
    a_wake_up_before_the_wait_is_not_lost,
    waiting_ends_in_time,
    lanes_do_not_meet,
    writers_side_by_side_never_share_a_position,
]
