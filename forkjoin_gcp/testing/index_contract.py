"""What every WorkIndex must do, as checks that any implementation can be put through.

Each check takes the index and the clock-independent lane it may use; all are coroutines that raise
AssertionError. ``CHECKS`` lists them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from forkjoin_gcp.names import Batch, Chunk, Lane
from forkjoin_gcp.ports import Busy, Extent, Lease, Release, WorkIndex

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


def a_chunk(lane: Lane, first: int = 0, *, suspect: bool = False) -> Chunk:
    """A chunk of a batch that nothing else uses."""
    return Chunk(Batch(lane, 7), first, first + BATCH_SIZE, suspect)


async def lease_when_free(index: WorkIndex, chunk: Chunk, token: str, seconds: float) -> Lease:
    """Ask until whoever holds the lease has let it run out."""
    while isinstance(answer := await index.lease(chunk, token, seconds), Busy):
        assert 0 < answer.seconds <= seconds
        await asyncio.sleep(answer.seconds / 4)
    return answer


async def a_chunk_is_leased_once(index: WorkIndex, lane: Lane) -> None:
    chunk = a_chunk(lane)
    answers = await asyncio.gather(*(index.lease(chunk, f"token {n}", 30) for n in range(8)))
    assert answers.count(Lease()) == 1
    busy = [answer.seconds for answer in answers if isinstance(answer, Busy)]
    assert len(busy) == 7
    assert all(25 < seconds <= 30 for seconds in busy)
    assert await index.lease(a_chunk(lane, BATCH_SIZE), "other chunk", 30) == Lease()
    other = Lane(lane.queue, lane.version, 1)
    assert await index.lease(a_chunk(other), "other lane", 30) == Lease()


async def a_run_that_ends_leaves_nothing(index: WorkIndex, lane: Lane) -> None:
    chunk = a_chunk(lane)
    await index.lease(a_chunk(lane, BATCH_SIZE), "beside it", 30)
    for n in range(3):
        assert await index.lease(chunk, f"token {n}", 30) == Lease()
        await index.unlease(chunk, f"token {n}")
        await index.unlease(chunk, f"token {n}")


async def a_run_that_vanishes_is_counted(index: WorkIndex, lane: Lane) -> None:
    chunk = a_chunk(lane)
    for n in range(3):
        assert await lease_when_free(index, chunk, f"token {n}", 0.1) == Lease(vanished=n)


async def a_run_that_fails_is_not_counted(index: WorkIndex, lane: Lane) -> None:
    chunk = a_chunk(lane)
    await index.lease(chunk, "dies", 0.1)
    assert await lease_when_free(index, chunk, "fails", 0.1) == Lease(vanished=1)
    await index.unlease(chunk, "fails", vanished=1)
    assert await index.lease(chunk, "next", 30) == Lease(vanished=1)


async def only_its_holder_renews_a_lease(index: WorkIndex, lane: Lane) -> None:
    chunk = a_chunk(lane)
    await index.lease(chunk, "mine", 0.1)
    assert await index.renew(chunk, "mine", 30)
    assert not await index.renew(chunk, "theirs", 30)
    answer = await index.lease(chunk, "theirs", 30)
    assert isinstance(answer, Busy)
    assert answer.seconds > 25
    assert await index.renew(chunk, "mine", 0.1, starts=7)
    assert await lease_when_free(index, chunk, "theirs", 0.1) == Lease(vanished=7)
    assert not await index.renew(chunk, "mine", 30)
    await index.unlease(chunk, "mine")
    assert await index.renew(chunk, "theirs", 30), "what is not one's own is not given back"
    await index.unlease(chunk, "theirs")
    assert not await index.renew(chunk, "theirs", 30)
    assert await index.lease(chunk, "mine", 30) == Lease()


async def a_holder_may_ask_again(index: WorkIndex, lane: Lane) -> None:
    """Who got no answer does not know that it holds the lease."""
    for suspect in (False, True):
        chunk = a_chunk(lane, suspect=suspect)
        assert await index.lease(chunk, "mine", 30) == Lease()
        assert isinstance(await index.lease(chunk, "mine", 30), Lease)


async def where_a_chunk_was_split_is_told(index: WorkIndex, lane: Lane) -> None:
    chunk = a_chunk(lane)
    await index.lease(chunk, "splits", 30)
    await index.unlease(chunk, "splits", split=4)
    for token in ("again", "and again"):
        answer = await index.lease(chunk, token, 30)
        assert isinstance(answer, Lease)
        assert answer.split == 4
        await index.unlease(chunk, token, split=4)
    assert await index.lease(a_chunk(lane, suspect=True), "suspect", 30) == Lease()


async def suspects_run_one_at_a_time(index: WorkIndex, lane: Lane) -> None:
    first, second = (a_chunk(lane, at, suspect=True) for at in (0, BATCH_SIZE))
    assert await index.lease(first, "first", 0.1) == Lease()
    assert await index.renew(first, "first", 30)
    answer = await index.lease(second, "second", 30)
    assert isinstance(answer, Busy)
    assert answer.seconds > 25
    assert await index.lease(a_chunk(lane, 20), "no suspect", 30) == Lease()
    other = Lane(lane.queue, lane.version, 1)
    assert await index.lease(a_chunk(other, suspect=True), "other lane", 30) == Lease()
    await index.unlease(first, "first")
    assert await index.lease(second, "second", 30) == Lease()
    await index.unlease(first, "first")
    assert isinstance(await index.lease(first, "first", 30), Busy)


async def a_suspects_starts_are_counted_by_renewing(index: WorkIndex, lane: Lane) -> None:
    suspect = a_chunk(lane, suspect=True)
    for n in range(2):
        assert await lease_when_free(index, suspect, f"waits {n}", 0.1) == Lease()
    assert await lease_when_free(index, suspect, "runs", 0.1) == Lease()
    assert await index.renew(suspect, "runs", 0.1, starts=1)
    assert await lease_when_free(index, suspect, "next", 0.1) == Lease(vanished=1)
    assert await lease_when_free(index, a_chunk(lane, 20, suspect=True), "other", 30) == Lease()
    assert not await index.renew(suspect, "next", 30), "the quarantine is another's"


async def a_ping_changes_nothing(index: WorkIndex, lane: Lane) -> None:
    await index.ping(lane)
    held = await index.reserve(lane, 2)
    await index.ping(lane)
    assert await index.seal(lane, held.index) == 1
    await index.ping(lane)
    assert await index.fence(lane, held.index) == Extent(2, BATCH_SIZE)


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
    a_chunk_is_leased_once,
    a_run_that_ends_leaves_nothing,
    a_run_that_vanishes_is_counted,
    a_run_that_fails_is_not_counted,
    only_its_holder_renews_a_lease,
    a_holder_may_ask_again,
    where_a_chunk_was_split_is_told,
    suspects_run_one_at_a_time,
    a_suspects_starts_are_counted_by_renewing,
    a_ping_changes_nothing,
]
