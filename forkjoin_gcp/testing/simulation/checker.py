"""What must be so when a world has come to rest."""

from __future__ import annotations

import itertools
import json
import math
from typing import TYPE_CHECKING

from forkjoin_gcp.errors import QueueFull
from forkjoin_gcp.names import CLOCK_LANE
from forkjoin_gcp.testing.simulation.ledger import Behaviour, Handling, Ledger, Violation
from forkjoin_gcp.testing.simulation.plan import LOSING_FAULTS

if TYPE_CHECKING:
    from forkjoin_gcp.testing.simulation.world import World


NOT_TOLD = ("loses calls", "slow", "away", "writes late")


def _loses_creates(world: World) -> bool:
    """Whether the answer of a create may be lost, so that its writer repeats it.

    It may have been read and settled meanwhile. Then it is written again: handed over twice.
    """
    store = world.plan.settings["storage"]
    return world.plan.has(*(f"{store} {fault}" for fault in NOT_TOLD))


LOST_LEASES = ("memorystore loses calls", "memorystore slow", "memorystore away")


def check(world: World) -> None:
    """Raise Violation for the first thing that is not as it must be."""
    ledger = world.ledger
    _everybody_was_answered(world)
    if not ledger.lanes.forgives:
        _ids_are_unique(ledger)
    for number, item_id in ledger.accepted.items():
        _reached_an_end(world, number, item_id)
    _nothing_is_left(world)
    _dead_for_a_reason(world)
    _tasks_fan_in(world)
    for number in ledger.handlings:
        _handled_once(world, number)
        _kept_its_id(world, number)
        if not ledger.lanes.forgives:
            _stays_settled(world, number)


def _nothing_is_left(world: World) -> None:
    """No item is in the store any more, and no task waits.

    Without a sweeper, what was never accepted may be: its writer died, or gave up, before its root
    task was there.
    """
    for found in world.remains.found:
        if found.segment is None:
            raise Violation(f"what is stored at {found.first} is no segment: {found.defect}")
    for number, item_id in world.remains.numbers().items():
        if number in world.ledger.accepted or world.plan.sweeps:
            raise Violation(f"item {number} ({item_id}) is still in the store")
    if world.cloud.tasks.waiting:
        raise Violation(f"tasks are left: {', '.join(map(str, world.cloud.tasks.waiting))}")
    endless = [key for key, left in world.cloud.valkey.keys().items() if left is None]
    if endless:
        raise Violation(f"{endless[0].decode()} is left without a time to live")


def _tasks_fan_in(world: World) -> None:
    """However many ask for a task, one is created, as long as its name is kept."""
    if world.plan.has("names kept otherwise"):
        return
    seen: set[tuple[object, ...]] = set()
    for task in world.cloud.tasks.created:
        fields = json.loads(task.body)
        what = tuple(value for name, value in sorted(fields.items()) if name != "due")
        if what in seen:
            raise Violation(f"{task.task_id} was created though there was one: {fields}")
        seen.add(what)


def _everybody_was_answered(world: World) -> None:
    ledger = world.ledger
    for process, task in world.calls:
        if process.alive and not task.done():
            raise Violation(f"a caller in {process} was never answered")
        if task.done() and not task.cancelled() and (error := task.exception()):
            raise error
    for number, error in ledger.refused.items():
        if not world.plan.faults and not isinstance(error, QueueFull):
            raise Violation(f"item {number} was refused, and nothing went wrong: {error!r}")
    for number in ledger.offered:
        if number in ledger.accepted and number in ledger.refused:
            raise Violation(f"item {number} was accepted and refused")


def _ids_are_unique(ledger: Ledger) -> None:
    owners: dict[str, int] = {}
    run = [
        (number, each.item_id) for number in ledger.handlings for each in ledger.handlings[number]
    ]
    for number, item_id in [*ledger.accepted.items(), *run]:
        if owners.setdefault(item_id, number) != number:
            raise Violation(f"items {owners[item_id]} and {number} are both {item_id}")


def _reached_an_end(world: World, number: int, item_id: str) -> None:
    handled = any(each.item_id == item_id for each in world.ledger.successes(number))
    if not handled and item_id not in world.remains.dead:
        raise Violation(f"item {number}, accepted as {item_id}, was lost")


def _kept_its_id(world: World, number: int) -> None:
    """An item is run under the id that its caller was told."""
    accepted = world.ledger.accepted.get(number)
    for handling in world.ledger.handlings[number]:
        other = accepted is not None and handling.item_id != accepted
        if other and not _loses_creates(world):
            raise Violation(f"item {number}, accepted as {accepted}, was run as {handling.item_id}")


def _stays_settled(world: World, number: int) -> None:
    """What has left the store is not handled by a request that begins after that."""
    for handling in world.ledger.handlings[number]:
        settled = world.ledger.settled.get(handling.item_id, math.inf)
        if handling.delivery.began > settled and not _loses_creates(world):
            raise Violation(
                f"item {number} ({handling.item_id}) was settled at {settled:.3f}, and handled "
                f"again at {handling.began:.3f} by {handling.delivery.name}"
            )


def _handled_once(world: World, number: int) -> None:
    """Not twice, nor twice at once, unless something went wrong that allows for it."""
    tries = world.ledger.handlings[number]
    for first, second in itertools.combinations(tries, 2):
        if first.delivery is second.delivery:
            raise Violation(f"item {number} was run twice by {first.delivery.name}")
        beside = first.began < second.until and second.began < first.until
        twice = first.outcome == second.outcome == "succeed"
        if (beside or twice) and not _excused(world, first, second):
            how = "beside itself" if beside else "twice"
            raise Violation(
                f"item {number} ({first.item_id}) was handled {how}, and nothing went wrong: "
                f"{first.delivery.name} in {first.delivery.function} at {first.began:.3f}, "
                f"{second.delivery.name} in {second.delivery.function} at {second.began:.3f}"
            )


def _excused(world: World, first: Handling, second: Handling) -> bool:
    """Whether two tries could be: a lease, or the answer to a settling, was lost.

    It need not have been one of these two requests': one that was stalled may come back and settle
    a segment that another has in hand. Or the item moved while it was tried. A clock batch that is
    planned again may be cut otherwise.
    """
    both = (first, second)
    batches = {each.item_id.rpartition("-")[0] for each in both}
    return (
        any(each.delivery.troubles for each in both)
        or any(
            each.troubles and any(batch in each.name for batch in batches)
            for each in world.ledger.deliveries
        )
        or any(each.item_id in world.ledger.moved for each in both)
        or world.plan.has(*LOSING_FAULTS)
        or _loses_creates(world)
        or any(f"-{CLOCK_LANE}-" in each.delivery.name for each in both)
    )


def _dead_for_a_reason(world: World) -> None:
    """Nothing is a dead letter but for what its handler did."""
    for letter in world.remains.dead.values():
        number = json.loads(letter.payload)["n"]
        tries = world.ledger.handlings.get(number, [])
        behaviour = world.plan.behaviours.get(number, Behaviour())
        failures = [each for each in tries if each.outcome != "succeed"]
        allowed = {
            "rejected": any(each.outcome == "reject" for each in tries),
            "attempts": len(failures) >= world.cloud.config.max_attempts,
            "crashed": "kill" in (*behaviour.tries, behaviour.always)
            # A run that ended, and could not say so, counts as one that vanished.
            or world.plan.has("function crash", "function stall", *LOST_LEASES),
        }
        if not allowed.get(letter.reason):
            raise Violation(
                f"item {number} is a dead letter ({letter.reason}: {letter.error}) after "
                f"{', '.join(each.outcome for each in tries) or 'no try'}"
            )
