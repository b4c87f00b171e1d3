"""What is known from outside of a simulated world: what was accepted, and what was handled."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from forkjoin_gcp.items import DeadLetter
from forkjoin_gcp.ports import Change, Found
from forkjoin_gcp.testing.simulation.network import Witness


@dataclass(frozen=True)
class Behaviour:
    """What the handler does with an item: ``tries`` one after another, then it succeeds.

    ``always`` is done at each try. Tries are ``fail``, ``retry``, ``reject``, ``hang``, ``kill``.
    """

    tries: tuple[str, ...] = ()
    always: str = ""
    seconds: float = 0.01
    after: float = 1.0

    def of_try(self, number: int) -> str:
        """What happens at the ``number``-th try, from 1."""
        if self.always:
            return self.always
        return self.tries[number - 1] if number <= len(self.tries) else "succeed"


@dataclass(eq=False)
class Delivery(Witness):
    """One request of a task at a function. ``troubles`` is what went wrong in its sight."""

    name: str = ""
    function: str = ""
    began: float = 0.0
    ended: float | None = None
    status: int | None = None


@dataclass(eq=False)
class Handling:
    """One try of an item."""

    item_id: str
    number: int
    delivery: Delivery
    began: float
    ended: float | None = None
    outcome: str = ""

    def end(self, outcome: str, now: float) -> None:
        """It is over: of several who say so, the first is right."""
        if self.ended is None:
            self.ended, self.outcome = now, outcome

    @property
    def until(self) -> float:
        """When nothing of it ran any more, at the latest."""
        ends = (self.ended, self.delivery.ended)
        return min((end for end in ends if end is not None), default=math.inf)


@dataclass
class Remains:
    """What is stored when a world has come to rest: segments with items left, and dead letters."""

    found: list[Found] = field(default_factory=list)
    dead: dict[str, DeadLetter] = field(default_factory=dict)

    def numbers(self) -> dict[int, str]:
        """The items that are left, and their ids."""
        return {
            json.loads(item.payload)["n"]: one.segment.item_id(item)
            for one in self.found
            if one.segment is not None
            for item in one.segment.items
        }


class Violation(AssertionError):
    """Something that must always hold did not."""


class LaneBook:
    """What lane scripts were seen to hand out and to fence, whatever became of their answers."""

    def __init__(self) -> None:
        self._ends: dict[tuple[bytes, int], int] = {}
        self._fenced: dict[bytes, int] = {}
        self.forgives = False
        """In a world where counters may go back unnoticed: then positions may come again."""

    def watch(
        self, script: str, keys: Sequence[bytes], args: Sequence[bytes], reply: object
    ) -> None:
        """A script has run. Raises Violation for positions or indexes that come again."""
        if script == "fence" and not self.forgives:
            self._fenced[keys[0]] = max(self._fenced.get(keys[0], 0), int(args[2]))
        if script.endswith("reserve") and isinstance(reply, list):
            index, start = map(int, (reply[-1] if script != "reserve" else reply)[:2])
            if index < (floor := int(args[1])):
                raise Violation(f"index {index} was given to a process that had seen {floor}")
            self._reserved(keys[0], index, start, int(args[-3]))

    def _reserved(self, lane: bytes, index: int, start: int, count: int) -> None:
        if self.forgives:
            return
        if index <= self._fenced.get(lane, 0):
            raise Violation(f"index {index} of {lane.decode()} was reserved after its fence")
        if start < self._ends.get((lane, index), 0):
            raise Violation(f"position {start} of {index} of {lane.decode()} was handed out twice")
        self._ends[lane, index] = start + count


@dataclass
class Ledger:
    """Items by their number, which their payload says and nothing changes."""

    behaviours: dict[int, Behaviour] = field(default_factory=dict)
    offered: list[int] = field(default_factory=list)
    accepted: dict[int, str] = field(default_factory=dict)
    refused: dict[int, Exception] = field(default_factory=dict)
    handlings: dict[int, list[Handling]] = field(default_factory=dict)
    moved: set[str] = field(default_factory=set)
    settled: dict[str, float] = field(default_factory=dict)
    """When a worker was told that an item has left the store, by item id."""
    deliveries: list[Delivery] = field(default_factory=list)
    lanes: LaneBook = field(default_factory=lambda: LaneBook())

    def settle(self, change: Change, now: float) -> None:
        """A worker was told that ``change`` was made."""
        segment = change.found.segment
        if segment is not None:
            left = {item.position for item in change.left.items} if change.left else set()
            for item in segment.items:
                if item.position not in left:
                    self.settled.setdefault(segment.item_id(item), now)

    def accept(self, number: int, item_id: str) -> None:
        self.accepted[number] = item_id

    def begin(self, item_id: str, number: int, delivery: Delivery, now: float) -> Handling:
        handling = Handling(item_id, number, delivery, now)
        self.handlings.setdefault(number, []).append(handling)
        return handling

    def successes(self, number: int) -> list[Handling]:
        return [each for each in self.handlings.get(number, []) if each.outcome == "succeed"]
