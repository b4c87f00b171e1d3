"""Dead letters are found, purged, and requeued: under virtual time, beside the real protocol."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from forkjoin_gcp.dead_letters import PAGE, DeadLetterReport, DeadLetters
from forkjoin_gcp.errors import (
    ConfigurationError,
    Reject,
    SchedulerUnavailable,
    StoreUnavailable,
    TaskQueueNotFound,
)
from forkjoin_gcp.items import DeadLetter, Item, Segment
from forkjoin_gcp.names import Batch, Lane
from forkjoin_gcp.ports import Buried, Release, TaskRequest
from tests.unit.outage import REFUSED, Outage
from tests.unit.rig import Rig, rigged


class DeadRig(Rig):
    """Rejects every item while ``rejects`` is set."""

    def __init__(self, **settings: Any) -> None:
        self.rejects = True
        super().__init__(self._reject, **settings)
        self.dead = DeadLetters(self.config, self.ports, self.counters)

    async def _reject(self, item: Item[Any]) -> None:
        if self.rejects:
            raise Reject("not now")

    async def bury(self, *numbers: int) -> list[str]:
        """Put items in and let them be rejected; their ids."""
        ids = await self.put(*numbers)
        await self.drain()
        return ids

    @property
    def buried(self) -> list[str]:
        return sorted(self.store.buried)


@rigged
async def test_requeued_items_reach_the_handler_under_their_ids_with_no_attempts() -> None:
    rig = DeadRig(batch_size=10)
    ids = await rig.bury(*range(25))
    assert rig.buried == sorted(ids)
    rig.rejects = False
    report = await rig.dead.requeue({})
    assert report == DeadLetterReport(dry_run=False, found=25, done=25)
    assert rig.buried == []
    assert rig.left == 25
    await rig.drain()
    assert sorted(item.id for item in rig.handled) == sorted(ids)
    assert {item.attempt for item in rig.handled} == {1}
    assert rig.numbers == list(range(25))
    assert rig.left == 0
    assert rig.counters["dead_letters_requeued"] == 25


@rigged
async def test_what_is_rejected_again_is_a_dead_letter_again() -> None:
    rig = DeadRig()
    ids = await rig.bury(1, 2)
    for _ in range(3):
        assert (await rig.dead.requeue({})).done == 2
        await rig.drain()
        assert rig.buried == sorted(ids)
    rig.rejects = False
    await rig.dead.requeue({})
    await rig.drain()
    assert sorted(item.id for item in rig.handled) == sorted(ids)


@rigged
async def test_an_item_that_had_moved_keeps_its_first_id() -> None:
    rig = DeadRig()
    release = rig.index.release
    late = [Release.LATE]

    async def late_once(lane: Lane, index: int, *, scheduled: bool) -> Release:
        verdict = await release(lane, index, scheduled=scheduled)
        return late.pop() if late else verdict

    rig.index.release = late_once  # type: ignore[method-assign]
    ids = await rig.bury(1, 2, 3)
    assert rig.counters["segments_moved"] == 1
    assert rig.buried == sorted(ids)
    rig.rejects = False
    await rig.dead.requeue({})
    await rig.drain()
    assert sorted(item.id for item in rig.handled) == sorted(ids)


@rigged
async def test_a_choice_narrows_what_is_meant() -> None:
    rig = DeadRig()
    ids = await rig.bury(*range(4))
    letter = rig.store.buried[ids[3]][1]
    rig.store.buried[ids[3]] = Lane("rig", "v1"), replace(letter, reason="undecodable")
    await asyncio.sleep(1_000)
    (newer,) = await rig.bury(4)

    async def found(**choice: Any) -> list[str]:
        limit = choice.pop("limit", None)
        report = await rig.dead.requeue(choice, limit, dry_run=True)
        assert (report.done, report.gone, report.failed) == (0, 0, {})
        letters = await rig.dead.find(choice, limit)
        assert report.found == len(letters)
        return sorted(one.id for one in letters)

    assert await found() == sorted([*ids, newer])
    assert await found(reason="undecodable") == [ids[3]]
    assert await found(older_than=500) == sorted(ids)
    assert await found(newer_than=500) == [newer]
    assert await found(older_than=500, newer_than=600) == []
    assert await found(ids=[ids[1], newer, "nobodys-0"]) == sorted([ids[1], newer])
    assert await found(ids=[ids[1]], reason="undecodable") == []
    assert await found(ids=[]) == []
    assert len(await found(limit=3)) == 3
    assert len(rig.buried) == 5, "a dry run changes nothing"
    assert (await rig.dead.requeue({"reason": "undecodable"})).done == 1
    assert len(rig.buried) == 4


@rigged
async def test_every_id_is_found_by_itself() -> None:
    rig = DeadRig()
    ids = await rig.bury(*range(120))
    for one in ids:
        assert [letter.id for letter in await rig.dead.find({"ids": [one]})] == [one]


@rigged
async def test_old_versions_dead_letters_are_there_too() -> None:
    old = DeadRig(version="v1")
    ids = await old.bury(1, 2)
    new = DeadRig(version="v2")
    new.store, new.index = old.store, old.index
    new.use(new.runner.handler)
    new.dead = DeadLetters(new.config, new.ports, new.counters)
    ids += await new.bury(3)
    assert [letter.id for letter in await new.dead.find({})] == sorted(ids)
    assert (await new.dead.requeue({}, 1)).done == 1
    new.rejects = False
    assert (await new.dead.requeue({})).done == 2
    await new.drain()
    assert sorted(item.id for item in new.handled) == sorted(ids)


@rigged
async def test_many_are_requeued_page_by_page_and_told_on_the_way() -> None:
    rig = DeadRig()
    count = 2 * PAGE + 50
    await rig.bury(*range(count))
    told: list[int] = []
    rig.rejects = False
    report = await rig.dead.requeue({}, progress=lambda so_far: told.append(so_far.done))
    assert told == [PAGE, 2 * PAGE, count]
    assert report.done == count
    await rig.drain()
    assert rig.numbers == list(range(count))


@rigged
async def test_a_requeue_that_comes_after_the_fence_moves_its_items() -> None:
    rig = DeadRig()
    ids = await rig.bury(*range(5))
    rig.rejects = False
    requeue = rig.store.requeue

    async def slow(grave: Lane, one: Buried, target: Batch, segment: Segment) -> bool:
        await asyncio.sleep(60)  # longer than a reader waits
        return await requeue(grave, one, target, segment)

    rig.store.requeue = slow  # type: ignore[method-assign]
    report, _ = await asyncio.gather(rig.dead.requeue({}), rig.drain())
    await rig.drain()
    assert report.done == 5
    assert rig.counters["release_late"] == 1
    assert rig.counters["segments_moved"] == 5
    assert sorted(item.id for item in rig.handled) == sorted(ids)


@rigged
async def test_without_memorystore_items_go_back_by_the_clock_lane() -> None:
    rig = DeadRig()
    ids = await rig.bury(*range(12))
    outage = Outage(rig)
    rig.dead = DeadLetters(rig.config, rig.ports, rig.counters)
    outage.mode = REFUSED
    rig.rejects = False
    assert (await rig.dead.requeue({})).done == 12
    assert rig.batches[-1].lane.is_clock
    await rig.drain()
    await rig.dead.close()
    assert sorted(item.id for item in rig.handled) == sorted(ids)


@rigged
async def test_an_item_that_somebody_else_took_is_gone() -> None:
    rig = DeadRig()
    await rig.bury(1, 2)
    rig.rejects = False
    one, two = await asyncio.gather(rig.dead.requeue({}), rig.dead.requeue({}))
    assert one.done + two.done == 2
    assert one.gone + two.gone == 2
    await rig.drain()
    assert rig.numbers == [1, 2]


@rigged
async def test_without_a_task_queue_nothing_is_done() -> None:
    rig = DeadRig()
    ids = await rig.bury(1, 2)

    async def missing(task: TaskRequest) -> bool:
        raise TaskQueueNotFound("no queue rig-1")

    rig.scheduler.create = missing  # type: ignore[method-assign]
    with pytest.raises(TaskQueueNotFound):
        await rig.dead.requeue({})
    assert rig.buried == sorted(ids)
    assert rig.left == 0
    assert all(not state.writers for state in rig.index._open.values()), "the hold was given back"


@rigged
async def test_with_cloud_tasks_away_they_wait_for_a_sweep() -> None:
    rig = DeadRig()
    await rig.bury(1, 2)
    create = rig.scheduler.create

    async def away(task: TaskRequest) -> bool:
        raise SchedulerUnavailable

    rig.rejects = False
    rig.scheduler.create = away  # type: ignore[method-assign]
    assert (await rig.dead.requeue({})).done == 2
    rig.scheduler.create = create  # type: ignore[method-assign]
    await rig.drain()
    assert rig.handled == []
    await asyncio.sleep(2_000)
    await rig.sweeper.run()
    await rig.drain()
    assert rig.numbers == [1, 2]


@rigged
async def test_one_that_fails_does_not_keep_the_others() -> None:
    rig = DeadRig()
    ids = await rig.bury(1, 2, 3)
    requeue = rig.store.requeue

    async def partly(grave: Lane, one: Buried, target: Batch, segment: Segment) -> bool:
        if one.letter.id == ids[1]:
            raise StoreUnavailable("no answer")
        return await requeue(grave, one, target, segment)

    rig.rejects = False
    rig.store.requeue = partly  # type: ignore[method-assign]
    report = await rig.dead.requeue({})
    assert (report.found, report.done, report.failed) == (3, 2, {ids[1]: "no answer"})
    assert rig.buried == [ids[1]]
    await rig.drain()
    assert rig.numbers == [1, 3]


@rigged
async def test_what_is_no_items_dead_letter_can_only_be_purged() -> None:
    rig = DeadRig()
    letter = DeadLetter("by-hand", "{}", "rejected", "", 1, 1.0, 1.0)
    rig.store.buried["by-hand"] = Lane("rig", "v1"), letter
    report = await rig.dead.requeue({})
    assert report.failed == {"by-hand": "no item's id: only purging it is possible"}
    assert (await rig.dead.purge({})).done == 1
    assert rig.buried == []


@rigged
async def test_purging_deletes_what_is_meant_and_no_more() -> None:
    rig = DeadRig()
    ids = await rig.bury(*range(5))
    assert (await rig.dead.purge({}, dry_run=True)).found == 5
    assert len(rig.buried) == 5
    report = await rig.dead.purge({"ids": ids[:2]})
    assert (report.found, report.done, report.gone) == (2, 2, 0)
    assert rig.buried == sorted(ids[2:])
    assert (await rig.dead.purge({}, 1)).done == 1
    assert (await rig.dead.purge({})).done == 2
    assert rig.buried == []
    assert rig.counters["dead_letters_purged"] == 5
    assert len(rig.scheduler.created) == 1


@rigged
async def test_wrong_choices_are_refused() -> None:
    rig = DeadRig()
    wrong: list[tuple[Any, int | None, str]] = [
        ({"reason": "bad"}, None, "reason='bad': must be one of attempts, crashed, rejected"),
        ({"older_than": -1.0}, None, "older_than=-1.0: must be seconds"),
        ({"newer_than": float("nan")}, None, "newer_than=nan"),
        ({}, 0, "limit=0"),
        ({"ids": "one-0"}, None, "not one text"),
        ({"ids": ["a/b"]}, None, "'a/b' is no item's id"),
        ({"idz": []}, None, "unknown: idz"),
    ]
    for choice, limit, message in wrong:
        for act in (rig.dead.find, rig.dead.requeue, rig.dead.purge):
            with pytest.raises(ConfigurationError, match=message):
                await act(choice, limit)
