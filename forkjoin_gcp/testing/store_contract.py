"""What every WorkStore must do, as checks that any implementation can be put through.

Each check takes the store and a lane of a version of its own, where nothing is stored yet; all are
coroutines that raise AssertionError. ``CHECKS`` lists them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from typing import Any

from forkjoin_gcp.errors import SegmentConflict
from forkjoin_gcp.items import DeadLetter, Segment, StoredItem, build_segments, move_segment
from forkjoin_gcp.names import MAX_POSITIONS, Batch, Lane
from forkjoin_gcp.ports import Change, Found, Listed, WorkStore

INDEX = 1_700_000_000_000
BATCH_SIZE = 10
ENQUEUED_AT = 1_800_000_000.123456
EXPIRE_AT = 1_800_604_800.5

Check = Callable[[WorkStore, Lane], Coroutine[Any, Any, None]]


def a_batch(lane: Lane, number: int = 0) -> Batch:
    """The lane's batches, one a number."""
    return Batch(lane, INDEX + number)


def some_segments(
    batch: Batch, count: int, *, start: int = 0, nonce: str = "mine", batch_size: int = BATCH_SIZE
) -> list[Segment]:
    """The segments of ``count`` items that say their own position."""
    payloads = [f'{{"n":{n}}}' for n in range(start, start + count)]
    return build_segments(
        batch, start, batch_size, payloads,
        nonce=nonce, enqueued_at=ENQUEUED_AT, expire_at=EXPIRE_AT,
    )  # fmt: skip


def a_letter(segment: Segment, item: StoredItem, error: str = "no such host") -> DeadLetter:
    """The dead letter of one item."""
    return DeadLetter(
        segment.item_id(item), item.payload, "rejected", error, item.attempts + 1,
        segment.enqueued_at, ENQUEUED_AT + 60,
    )  # fmt: skip


async def put(store: WorkStore, batch: Batch, segments: Sequence[Segment]) -> list[Found]:
    """Create segments, and return them as they are read."""
    assert await store.create(batch, segments) == [None] * len(segments)
    found = await store.read(batch, segments[0].first, segments[-1].first + 1)
    assert [one.segment for one in found] == list(segments)
    return found


async def contents(store: WorkStore, batch: Batch) -> list[Segment | None]:
    """All that a batch has left."""
    return [one.segment for one in await store.read(batch, 0, MAX_POSITIONS)]


async def what_is_created_is_read_back(store: WorkStore, lane: Lane) -> None:
    batch = a_batch(lane)
    segments = some_segments(batch, 25)
    found = await put(store, batch, segments)
    assert [one.first for one in found] == [0, 10, 20]
    assert all(not one.defect for one in found)


async def every_field_survives(store: WorkStore, lane: Lane) -> None:
    batch = a_batch(lane)
    full = Segment(
        first=7,
        items=(
            StoredItem(9, '{"a":1}', attempts=2, due=ENQUEUED_AT + 0.25),
            StoredItem(12, '"b"'),
            StoredItem(13, "null", attempts=1),
        ),
        nonce="a nonce",
        origin=a_batch(lane, 99).key,
        shift=-5,
        enqueued_at=ENQUEUED_AT,
        expire_at=EXPIRE_AT,
        handled=(StoredItem(8, "8", attempts=1), StoredItem(10, "10", attempts=3)),
    )
    plain = replace(full, first=30, items=(StoredItem(30, "1"),), shift=4, handled=())
    apart = replace(plain, first=40, items=(StoredItem(41, "1"), StoredItem(42, "2")), shift=0)
    late = replace(plain, first=50, items=(StoredItem(50, "1", due=ENQUEUED_AT + 1),))
    await put(store, batch, [full, plain, apart, late])


async def any_text_survives(store: WorkStore, lane: Lane) -> None:
    batch = a_batch(lane)
    payloads = [
        '""',
        '"\\u0000"',
        '"日本語 😀 \u2028 é"',
        '{"quote":"\\"\\\\"}',
        "[" * 50 + "]" * 50,
    ]
    segments = build_segments(
        batch, 0, BATCH_SIZE, payloads,
        nonce="nönce", enqueued_at=ENQUEUED_AT, expire_at=EXPIRE_AT,
    )  # fmt: skip
    await put(store, batch, segments)


async def large_payloads_survive(store: WorkStore, lane: Lane) -> None:
    """More than one request holds, one of them of the longest payload there may be."""
    batch = a_batch(lane)
    payloads = [f'"{chr(97 + n) * 890_000}"' for n in range(6)] + ['"' + "é" * 440_000 + '"']
    segments = build_segments(
        batch, 0, BATCH_SIZE, payloads,
        nonce="mine", enqueued_at=ENQUEUED_AT, expire_at=EXPIRE_AT,
    )  # fmt: skip
    assert len(segments) == len(payloads)
    await put(store, batch, segments)


async def nothing_is_asked_for_nothing(store: WorkStore, lane: Lane) -> None:
    batch = a_batch(lane)
    assert await store.create(batch, []) == []
    assert await store.settle(batch, []) == []
    await store.discard(batch, [])
    assert await store.read(batch, 0, 100) == []
    assert await store.read(batch, 5, 5) == []
    assert await store.listing(batch) == []
    assert await store.dead_letters(lane, 10) == []


async def a_repeated_create_is_harmless(store: WorkStore, lane: Lane) -> None:
    batch = a_batch(lane)
    segments = some_segments(batch, 25)
    before = await put(store, batch, segments)
    assert await store.create(batch, segments) == [None] * 3
    assert await store.read(batch, 0, 30) == before


async def anothers_segment_is_a_conflict_and_stands(store: WorkStore, lane: Lane) -> None:
    batch = a_batch(lane)
    theirs = some_segments(batch, 10, start=10, nonce="theirs")
    await put(store, batch, theirs)
    mine = some_segments(batch, 30)
    first, second, third = await store.create(batch, mine)
    assert first is None
    assert isinstance(second, SegmentConflict)
    assert third is None
    assert await contents(store, batch) == [mine[0], theirs[0], mine[2]]


async def one_of_two_writers_gets_the_place(store: WorkStore, lane: Lane) -> None:
    batch = a_batch(lane)
    rivals = [some_segments(batch, 5, nonce=f"writer {n}") for n in range(6)]
    answers = await asyncio.gather(*(store.create(batch, segments) for segments in rivals))
    winners = [n for n, answer in enumerate(answers) if answer == [None]]
    assert len(winners) == 1
    assert await contents(store, batch) == rivals[winners[0]]


async def discard_takes_back_ones_own_alone(store: WorkStore, lane: Lane) -> None:
    batch = a_batch(lane)
    theirs = some_segments(batch, 10, start=10, nonce="theirs")
    mine = some_segments(batch, 30)
    await put(store, batch, theirs)
    await store.create(batch, mine)
    await store.discard(batch, mine)
    assert await contents(store, batch) == theirs
    await store.discard(batch, mine)
    await store.discard(a_batch(lane, 1), mine)
    assert await contents(store, batch) == theirs


async def a_listing_ascends_and_counts(store: WorkStore, lane: Lane) -> None:
    batch = a_batch(lane)
    segments = some_segments(batch, 12, start=95, batch_size=100) + some_segments(batch, 15)
    await put(store, batch, sorted(segments, key=lambda segment: segment.first))
    await put(store, a_batch(lane, 1), some_segments(a_batch(lane, 1), 5))
    assert await store.listing(batch) == [
        Listed(0, 10), Listed(10, 5), Listed(95, 5), Listed(100, 7),
    ]  # fmt: skip


async def read_keeps_to_its_range(store: WorkStore, lane: Lane) -> None:
    batch = a_batch(lane)
    for at in (0, 9, 10, 11, 19, 20, 99_999_999):
        await put(store, batch, some_segments(batch, 1, start=at))
    for first, stop, expected in (
        (0, 10, [0, 9]),
        (10, 20, [10, 11, 19]),
        (10, 19, [10, 11]),
        (12, 19, []),
        (20, 21, [20]),
        (21, MAX_POSITIONS, [99_999_999]),
        (0, 5_000, [0, 9, 10, 11, 19, 20]),
        (0, 10 * MAX_POSITIONS, [0, 9, 10, 11, 19, 20, 99_999_999]),
    ):
        found = await store.read(batch, first, stop)
        assert [one.first for one in found] == expected, (first, stop)
    assert await store.read(a_batch(lane, 1), 0, 100) == []
    assert await store.read(a_batch(replace(lane, number=1)), 0, 100) == []


async def a_handled_segment_is_kept_and_not_read(store: WorkStore, lane: Lane) -> None:
    batch = a_batch(lane)
    found = await put(store, batch, some_segments(batch, 20))
    segment = some_segments(batch, 20)[0]
    kept = replace(segment, items=(), handled=segment.items)
    assert await store.settle(batch, [Change(found[0], kept)]) == [True]
    assert [one.first for one in await store.read(batch, 0, 100)] == [10]
    assert await store.listing(batch) == [Listed(0, 0), Listed(10, 10)]


async def a_segment_moves_whole(store: WorkStore, lane: Lane) -> None:
    batch, target = a_batch(lane), a_batch(lane, 1)
    found = await put(store, batch, some_segments(batch, 20))
    source = some_segments(batch, 20)[0]
    pieces = move_segment(source, 20, BATCH_SIZE)
    assert await store.move(batch, found[0], target, pieces)
    assert await contents(store, target) == pieces
    assert [one.first for one in await store.read(batch, 0, 100)] == [10]
    ids = [piece.item_id(item) for piece in pieces for item in piece.items]
    assert ids == [batch.item_id(n) for n in range(10)]


async def a_segment_moves_in_pieces(store: WorkStore, lane: Lane) -> None:
    batch, target = a_batch(lane), a_batch(lane, 1)
    source = some_segments(batch, 10)[0]
    found = await put(store, batch, [source])
    pieces = move_segment(source, 6, BATCH_SIZE)
    assert [piece.first for piece in pieces] == [6, 10]
    assert await store.move(batch, found[0], target, pieces)
    assert await contents(store, target) == pieces
    assert await contents(store, batch) == []


async def a_repeated_move_is_harmless(store: WorkStore, lane: Lane) -> None:
    batch, target = a_batch(lane), a_batch(lane, 1)
    found = await put(store, batch, some_segments(batch, 10))
    pieces = move_segment(some_segments(batch, 10)[0], 3, BATCH_SIZE)
    assert await store.move(batch, found[0], target, pieces)
    assert await store.move(batch, found[0], target, pieces)
    assert await contents(store, target) == pieces


async def what_has_gone_does_not_move(store: WorkStore, lane: Lane) -> None:
    batch, target = a_batch(lane), a_batch(lane, 1)
    found = await put(store, batch, some_segments(batch, 10))
    assert await store.settle(batch, [Change(found[0], None)]) == [True]
    pieces = move_segment(some_segments(batch, 10)[0], 3, BATCH_SIZE)
    assert not await store.move(batch, found[0], target, pieces)
    assert await contents(store, target) == []


async def what_has_changed_does_not_move(store: WorkStore, lane: Lane) -> None:
    batch, target = a_batch(lane), a_batch(lane, 1)
    segment = some_segments(batch, 10)[0]
    found = await put(store, batch, [segment])
    left = replace(segment, items=segment.items[4:])
    assert await store.settle(batch, [Change(found[0], left)]) == [True]
    assert not await store.move(batch, found[0], target, move_segment(segment, 3, BATCH_SIZE))
    assert await contents(store, target) == []
    assert await contents(store, batch) == [left]


async def a_move_to_a_taken_place_does_nothing(store: WorkStore, lane: Lane) -> None:
    batch, target = a_batch(lane), a_batch(lane, 1)
    found = await put(store, batch, some_segments(batch, 10))
    theirs = some_segments(target, 5, start=10, nonce="theirs")
    await put(store, target, theirs)
    pieces = move_segment(some_segments(batch, 10)[0], 5, BATCH_SIZE)
    try:
        await store.move(batch, found[0], target, pieces)
    except SegmentConflict:
        pass
    else:
        raise AssertionError("no SegmentConflict")
    assert await contents(store, target) == theirs
    assert await store.read(batch, 0, 10) == found


async def a_move_to_a_place_of_its_own_group_does_nothing(store: WorkStore, lane: Lane) -> None:
    batch, target = a_batch(lane), a_batch(lane, 1)
    first, second = some_segments(batch, 20)
    found = await put(store, batch, [first, second])
    assert await store.move(batch, found[0], target, move_segment(first, 0, BATCH_SIZE))
    try:
        await store.move(batch, found[1], target, move_segment(second, 0, BATCH_SIZE))
    except SegmentConflict:
        pass
    else:
        raise AssertionError("no SegmentConflict")
    assert await contents(store, batch) == [second]
    assert await contents(store, target) == move_segment(first, 0, BATCH_SIZE)


def halves(segment: Segment, count: int) -> list[Segment]:
    """The segment, cut after its first ``count`` items."""
    rest = segment.items[count:]
    return [
        replace(segment, items=segment.items[:count]),
        replace(segment, first=rest[0].position, items=rest, handled=()),
    ]


async def a_segment_is_split(store: WorkStore, lane: Lane) -> None:
    batch = a_batch(lane)
    found = await put(store, batch, some_segments(batch, 20))
    segment = some_segments(batch, 20)[0]
    pieces = halves(segment, 4)
    assert await store.split(batch, found[0], pieces)
    assert [one.segment for one in await store.read(batch, 0, 10)] == pieces
    assert await store.listing(batch) == [Listed(0, 4), Listed(4, 6), Listed(10, 10)]
    ids = [piece.item_id(item) for piece in pieces for item in piece.items]
    assert ids == [batch.item_id(n) for n in range(10)]


async def a_moved_and_tried_segment_is_split(store: WorkStore, lane: Lane) -> None:
    batch = a_batch(lane)
    items = tuple(StoredItem(n, str(n), n % 3, ENQUEUED_AT + n % 2) for n in (11, 13, 17))
    segment = Segment(
        10, items, "mine", a_batch(lane, 9).key, 30, ENQUEUED_AT, EXPIRE_AT,
        handled=(StoredItem(12, "12", 1),),
    )  # fmt: skip
    (found,) = await put(store, batch, [segment])
    pieces = halves(segment, 1)
    assert await store.split(batch, found, pieces)
    assert await contents(store, batch) == pieces
    assert [one.first for one in await store.read(batch, 13, 20)] == [13]


async def a_repeated_split_is_harmless(store: WorkStore, lane: Lane) -> None:
    batch = a_batch(lane)
    segment = some_segments(batch, 10)[0]
    (found,) = await put(store, batch, [segment])
    pieces = halves(segment, 5)
    assert await store.split(batch, found, pieces)
    assert await store.split(batch, found, pieces)
    assert await contents(store, batch) == pieces


async def what_has_gone_or_changed_is_not_split(store: WorkStore, lane: Lane) -> None:
    batch = a_batch(lane)
    segments = some_segments(batch, 20)
    found = await put(store, batch, segments)
    left = replace(segments[0], items=segments[0].items[4:])
    changes = [Change(found[0], left), Change(found[1], None)]
    assert await store.settle(batch, changes) == [True] * 2
    assert not await store.split(batch, found[0], halves(segments[0], 5))
    assert not await store.split(batch, found[1], halves(segments[1], 5))
    assert await contents(store, batch) == [left]


async def a_split_to_a_taken_place_does_nothing(store: WorkStore, lane: Lane) -> None:
    batch = a_batch(lane)
    segment = some_segments(batch, 10)[0]
    theirs = some_segments(batch, 2, start=5, nonce="theirs")[0]
    (found,) = await put(store, batch, [segment])
    await put(store, batch, [theirs])
    try:
        await store.split(batch, found, halves(segment, 5))
    except SegmentConflict:
        pass
    else:
        raise AssertionError("no SegmentConflict")
    assert await contents(store, batch) == [segment, theirs]


async def a_segment_is_split_or_settled_not_both(store: WorkStore, lane: Lane) -> None:
    for n in range(5):
        batch = a_batch(lane, n)
        segment = some_segments(batch, 10)[0]
        (found,) = await put(store, batch, [segment])
        pieces = halves(segment, 5)
        was_split, settled = await asyncio.gather(
            store.split(batch, found, pieces),
            store.settle(batch, [Change(found, None)]),
        )
        assert was_split is not settled[0]
        assert await contents(store, batch) == (pieces if was_split else [])


async def settling_deletes_and_replaces(store: WorkStore, lane: Lane) -> None:
    batch = a_batch(lane)
    segments = some_segments(batch, 30)
    found = await put(store, batch, segments)
    retried = [replace(item, attempts=1, due=ENQUEUED_AT + 10) for item in segments[1].items[::3]]
    left = replace(segments[1], items=tuple(retried), expire_at=EXPIRE_AT + 10)
    assert await store.settle(batch, [Change(found[0], None), Change(found[1], left)]) == [True] * 2
    assert await contents(store, batch) == [left, segments[2]]
    assert await store.listing(batch) == [Listed(10, 4), Listed(20, 10)]
    assert await store.dead_letters(lane, 10) == []


async def settling_puts_dead_letters_down(store: WorkStore, lane: Lane) -> None:
    batch = a_batch(lane)
    segments = some_segments(batch, 20)
    found = await put(store, batch, segments)
    left = replace(segments[0], items=segments[0].items[2:])
    some = tuple(a_letter(segments[0], item, "é 日本") for item in segments[0].items[:2])
    rest = tuple(a_letter(segments[1], item) for item in segments[1].items)
    changes = [Change(found[0], left, some), Change(found[1], None, rest)]
    assert await store.settle(batch, changes) == [True] * 2
    assert await contents(store, batch) == [left]
    assert await store.dead_letters(lane, 100) == sorted(some + rest, key=lambda each: each.id)


async def each_change_stands_for_itself(store: WorkStore, lane: Lane) -> None:
    """What was changed in the meantime is left alone, and its dead letters are not put down."""
    batch = a_batch(lane)
    segments = some_segments(batch, 50)
    found = await put(store, batch, segments)
    others = [replace(segment, items=segment.items[5:]) for segment in segments]
    theirs = [Change(found[n], others[n]) for n in (0, 1)] + [Change(found[n], None) for n in (2,)]
    assert await store.settle(batch, theirs) == [True] * 3
    mine = [
        Change(found[0], replace(segments[0], items=segments[0].items[:1])),
        Change(found[1], None, (a_letter(segments[1], segments[1].items[0]),)),
        Change(found[2], others[2], (a_letter(segments[2], segments[2].items[0]),)),
        Change(found[3], others[3], (a_letter(segments[3], segments[3].items[0]),)),
        Change(found[4], None),
    ]
    assert await store.settle(batch, mine) == [False, False, False, True, True]
    assert await contents(store, batch) == [others[0], others[1], others[3]]
    assert await store.dead_letters(lane, 10) == list(mine[3].dead)


async def a_repeated_settling_changes_nothing(store: WorkStore, lane: Lane) -> None:
    batch = a_batch(lane)
    segments = some_segments(batch, 40)
    found = await put(store, batch, segments)
    left = replace(segments[0], items=segments[0].items[5:])
    changes = [
        Change(found[0], left),
        Change(found[1], None),
        Change(found[2], replace(left, first=20), (a_letter(segments[2], segments[2].items[0]),)),
        Change(found[3], None, (a_letter(segments[3], segments[3].items[0]),)),
    ]
    assert await store.settle(batch, changes) == [True] * 4
    before = await store.read(batch, 0, 100), await store.dead_letters(lane, 10)
    await store.settle(batch, changes)
    assert (await store.read(batch, 0, 100), await store.dead_letters(lane, 10)) == before


async def one_of_two_readers_settles(store: WorkStore, lane: Lane) -> None:
    batch = a_batch(lane)
    segment = some_segments(batch, 10)[0]
    found = await put(store, batch, [segment])
    lefts = [replace(segment, items=segment.items[n:]) for n in range(1, 7)]
    answers = await asyncio.gather(
        *(store.settle(batch, [Change(found[0], left)]) for left in lefts)
    )
    winners = [n for n, answer in enumerate(answers) if answer == [True]]
    assert len(winners) == 1
    assert await contents(store, batch) == [lefts[winners[0]]]


async def a_segment_is_moved_or_settled_not_both(store: WorkStore, lane: Lane) -> None:
    for n in range(5):
        batch, target = a_batch(lane, 2 * n), a_batch(lane, 2 * n + 1)
        segment = some_segments(batch, 10)[0]
        found = await put(store, batch, [segment])
        pieces = move_segment(segment, 0, BATCH_SIZE)
        moved, settled = await asyncio.gather(
            store.move(batch, found[0], target, pieces),
            store.settle(batch, [Change(found[0], None)]),
        )
        assert moved is not settled[0]
        assert await contents(store, target) == (pieces if moved else [])
        assert await contents(store, batch) == []


async def dead_letters_are_the_queues_own_in_order(store: WorkStore, lane: Lane) -> None:
    kept: list[DeadLetter] = []
    for n in range(3):
        batch = a_batch(lane, n)
        segments = some_segments(batch, 12)
        found = await put(store, batch, segments)
        dead = [tuple(a_letter(each, item) for item in each.items) for each in segments]
        await store.settle(
            batch, [Change(one, None, each) for one, each in zip(found, dead, strict=True)]
        )
        kept += [letter for each in dead for letter in each]
    kept.sort(key=lambda letter: letter.id)
    assert await store.dead_letters(lane, 1_000) == kept
    assert await store.dead_letters(lane, 5) == kept[:5]
    for other in (replace(lane, queue="other"), replace(lane, version="other")):
        assert await store.dead_letters(other, 10) == []


CHECKS: list[Check] = [
    what_is_created_is_read_back,
    every_field_survives,
    any_text_survives,
    large_payloads_survive,
    nothing_is_asked_for_nothing,
    a_repeated_create_is_harmless,
    anothers_segment_is_a_conflict_and_stands,
    one_of_two_writers_gets_the_place,
    discard_takes_back_ones_own_alone,
    a_listing_ascends_and_counts,
    read_keeps_to_its_range,
    a_handled_segment_is_kept_and_not_read,
    a_segment_moves_whole,
    a_segment_moves_in_pieces,
    a_repeated_move_is_harmless,
    what_has_gone_does_not_move,
    what_has_changed_does_not_move,
    a_move_to_a_taken_place_does_nothing,
    a_move_to_a_place_of_its_own_group_does_nothing,
    a_segment_is_split,
    a_moved_and_tried_segment_is_split,
    a_repeated_split_is_harmless,
    what_has_gone_or_changed_is_not_split,
    a_split_to_a_taken_place_does_nothing,
    a_segment_is_split_or_settled_not_both,
    settling_deletes_and_replaces,
    settling_puts_dead_letters_down,
    each_change_stands_for_itself,
    a_repeated_settling_changes_nothing,
    one_of_two_readers_settles,
    a_segment_is_moved_or_settled_not_both,
    dead_letters_are_the_queues_own_in_order,
]
