"""What every WorkStore must do for the sweeper and for dead letters: more checks, as those of
forkjoin_gcp.testing.store_contract.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace

from forkjoin_gcp.errors import SegmentConflict
from forkjoin_gcp.items import DeadLetter, Segment, StoredItem
from forkjoin_gcp.names import MAX_POSITIONS, Batch, Lane
from forkjoin_gcp.ports import Change, KeyRange, Scanned, WorkStore
from forkjoin_gcp.testing.store_contract import (
    ENQUEUED_AT,
    EXPIRE_AT,
    Check,
    a_batch,
    a_letter,
    contents,
    put,
    some_segments,
)


async def scanned(store: WorkStore, wanted: KeyRange, page: int = 100) -> list[list[Scanned]]:
    """The lists in which a scan comes."""
    return [found async for found in store.scan(wanted, page)]


async def places(store: WorkStore, wanted: KeyRange, page: int = 100) -> list[tuple[str, int]]:
    """Batch keys and first positions, in the order in which a scan finds them."""
    pages = await scanned(store, wanted, page)
    assert all(0 < len(found) <= page for found in pages)
    return [(one.batch.key, one.first) for found in pages for one in found]


async def a_scan_finds_all_in_key_order(store: WorkStore, lane: Lane) -> None:
    assert await scanned(store, KeyRange(lane.queue, lane.version)) == []
    expected = []
    for number in range(7):
        batch = a_batch(replace(lane, number=number % 3), number)
        segments = some_segments(batch, 25)
        assert await store.create(batch, segments) == [None] * 3
        expected += [(batch.key, segment.first) for segment in segments]
    for other in (replace(lane, queue="checks-2"), replace(lane, version=lane.version + "0")):
        batch = a_batch(other)
        assert await store.create(batch, some_segments(batch, 5)) == [None]
    expected.sort()
    for page in (1, 4, 21, 100):
        assert await places(store, KeyRange(lane.queue, lane.version), page) == expected
    pages = await scanned(store, KeyRange(lane.queue, lane.version), 9)
    assert [len(found) for found in pages] == [9, 9, 3]


async def a_scan_keeps_to_its_range(store: WorkStore, lane: Lane) -> None:
    every = []
    for number in range(6):
        batch = a_batch(lane, number)
        segments = some_segments(batch, 20)
        assert await store.create(batch, segments) == [None] * 2
        every += [(batch.key, segment.first) for segment in segments]
    every.sort()

    async def within(start: str, first: int, stop: str) -> list[tuple[str, int]]:
        wanted = KeyRange(lane.queue, lane.version, start, first, stop)
        return await places(store, wanted, 2)

    keys = sorted({key for key, _ in every})
    assert await within("0", 0, "80000000") + await within("80000000", 0, "g") == every
    assert await within(keys[2], 0, keys[4]) == every[4:8]
    assert await within(keys[2], 1, keys[4]) == every[5:8]
    assert await within(keys[2], 10, "g") == every[5:]
    assert await within(keys[2], MAX_POSITIONS, "g") == every[6:]
    assert await within(keys[2], 0, keys[2]) == []


async def a_scan_tells_counts_and_times(store: WorkStore, lane: Lane) -> None:
    batch = a_batch(lane)
    wanted = KeyRange(lane.queue, lane.version)
    segments = some_segments(batch, 40)
    found = await put(store, batch, segments)
    ((before, *_),) = await scanned(store, wanted)
    assert (before.batch, before.first, before.count, before.due) == (batch, 0, 10, 0.0)
    retried = [
        replace(item, attempts=1, due=ENQUEUED_AT + n) for n, item in enumerate(segments[0].items)
    ]
    changes = [
        Change(found[0], replace(segments[0], items=tuple(retried[3:]))),
        Change(found[1], replace(segments[1], items=(segments[1].items[0], retried[4]))),
        Change(found[2], replace(segments[2], items=(), handled=segments[2].items)),
    ]
    assert await store.settle(batch, changes) == [True] * 3
    (after,) = await scanned(store, wanted)
    assert [(one.first, one.count, one.due) for one in after] == [
        (0, 7, ENQUEUED_AT + 3), (10, 2, 0.0), (20, 0, 0.0), (30, 10, 0.0),
    ]  # fmt: skip
    assert 0 <= after[0].updated_at - before.updated_at < 600
    assert before.updated_at <= after[3].updated_at <= after[0].updated_at


async def versions_with_segments_are_named(store: WorkStore, lane: Lane) -> None:
    others = [lane, replace(lane, version=f"{lane.version}-b"), replace(lane, queue="checks-2")]
    for other in others:
        batch = a_batch(other)
        assert await store.create(batch, some_segments(batch, 20)) == [None] * 2
    found = await store.versions()
    assert found == sorted(found)
    mine = [(queue, version) for queue, version in found if lane.version in version]
    assert mine == sorted((other.queue, other.version) for other in others)


async def bury(store: WorkStore, batch: Batch, count: int) -> list[DeadLetter]:
    """Dead letters of a new segment's items, in id order."""
    (segment,) = some_segments(batch, count)
    found = await put(store, batch, [segment])
    dead = tuple(a_letter(segment, item) for item in segment.items)
    assert await store.settle(batch, [Change(found[0], None, dead)]) == [True]
    return sorted(dead, key=lambda letter: letter.id)


def again(letter: DeadLetter, position: int, nonce: str = "again") -> Segment:
    """The segment that brings a dead letter's item back."""
    origin, _, was = letter.id.rpartition("-")
    item = StoredItem(position, letter.payload)
    return Segment(position, (item,), nonce, origin, int(was) - position, ENQUEUED_AT, EXPIRE_AT)


async def dead_letters_are_found_in_pages(store: WorkStore, lane: Lane) -> None:
    assert await store.graves(lane.queue + "-x") == []
    letters = await bury(store, a_batch(lane), 10)
    mine = [grave for grave in await store.graves(lane.queue) if grave.version == lane.version]
    assert mine == [lane]
    first = await store.find_dead(lane, "", 4)
    rest = await store.find_dead(lane, first[-1].letter.id, 100)
    assert [one.letter for one in first + rest] == letters
    assert await store.find_dead(lane, letters[-1].id, 100) == []


async def a_dead_letter_goes_back_whole(store: WorkStore, lane: Lane) -> None:
    letters = await bury(store, a_batch(lane), 3)
    target = a_batch(lane, 1)
    found = await store.find_dead(lane, "", 10)
    segment = again(letters[1], 15)
    assert await store.requeue(lane, found[1], target, segment)
    assert await store.dead_letters(lane, 10) == [letters[0], letters[2]]
    assert await contents(store, target) == [segment]
    assert segment.item_id(segment.items[0]) == letters[1].id
    assert await store.requeue(lane, found[1], target, segment), "a repeat is harmless"
    assert await contents(store, target) == [segment]


async def a_dead_letter_goes_back_once(store: WorkStore, lane: Lane) -> None:
    (letter,) = await bury(store, a_batch(lane), 1)
    target = a_batch(lane, 1)
    (found,) = await store.find_dead(lane, "", 10)
    rivals = [again(letter, n, f"rival {n}") for n in range(5)]
    answers = await asyncio.gather(*(store.requeue(lane, found, target, one) for one in rivals))
    assert sorted(answers) == [False] * 4 + [True]
    assert await contents(store, target) == [rivals[answers.index(True)]]
    assert await store.purge(lane, [found]) == [False]


async def a_dead_letter_buried_anew_is_another(store: WorkStore, lane: Lane) -> None:
    (letter,) = await bury(store, a_batch(lane), 1)
    (old,) = await store.find_dead(lane, "", 10)
    target = a_batch(lane, 1)
    segment = again(letter, 0)
    assert await store.requeue(lane, old, target, segment)
    (back,) = await store.read(target, 0, 10)
    anew = replace(letter, error="again", dead_at=letter.dead_at + 60)
    assert await store.settle(target, [Change(back, None, (anew,))]) == [True]
    assert not await store.requeue(lane, old, target, again(letter, 5, "late"))
    assert await store.purge(lane, [old]) == [False]
    assert await store.dead_letters(lane, 10) == [anew]
    assert await contents(store, target) == []


async def a_taken_place_leaves_a_dead_letter_buried(store: WorkStore, lane: Lane) -> None:
    (letter,) = await bury(store, a_batch(lane), 1)
    target = a_batch(lane, 1)
    theirs = some_segments(target, 1, nonce="theirs")
    await put(store, target, theirs)
    (found,) = await store.find_dead(lane, "", 10)
    try:
        await store.requeue(lane, found, target, again(letter, 0))
    except SegmentConflict:
        pass
    else:
        raise AssertionError("no SegmentConflict")
    assert await store.dead_letters(lane, 10) == [letter]
    assert await contents(store, target) == theirs


async def dead_letters_are_purged(store: WorkStore, lane: Lane) -> None:
    letters = await bury(store, a_batch(lane), 4)
    found = await store.find_dead(lane, "", 10)
    assert await store.purge(lane, []) == []
    assert await store.purge(lane, found[1:3]) == [True, True]
    assert await store.dead_letters(lane, 10) == [letters[0], letters[3]]
    assert await store.purge(lane, found[:2]) == [True, False]
    assert await store.dead_letters(lane, 10) == [letters[3]]


CHECKS: list[Check] = [
    a_scan_finds_all_in_key_order,
    a_scan_keeps_to_its_range,
    a_scan_tells_counts_and_times,
    versions_with_segments_are_named,
    dead_letters_are_found_in_pages,
    a_dead_letter_goes_back_whole,
    a_dead_letter_goes_back_once,
    a_dead_letter_buried_anew_is_another,
    a_taken_place_leaves_a_dead_letter_buried,
    dead_letters_are_purged,
]
