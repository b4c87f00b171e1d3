"""What a run in memory came to: batches, requests, and each item's outcome."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Generic, Literal, TypeVar

from forkjoin_gcp.items import Item

P = TypeVar("P")

MOST_SHOWN = 10
"""Chunks whose sizes a batch's repr shows."""


@dataclass(frozen=True)
class ItemOutcome(Generic[P]):
    """What became of one item.

    ``state`` is ``handled``, ``dead`` (a dead letter) or ``waiting`` (for another try). ``errors``
    has a text for each try that failed, and ``exception`` what the handler raised last. ``reason``
    is why the item is dead: ``rejected``, ``attempts`` or ``undecodable``.
    """

    id: str
    payload: P
    state: Literal["handled", "dead", "waiting"]
    attempts: int
    errors: tuple[str, ...] = ()
    reason: str = ""
    exception: BaseException | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class JoinedBatch(Generic[P]):
    """A batch that was joined: its items in order, and how many went into each request."""

    key: str
    items: tuple[Item[P], ...]
    chunks: tuple[int, ...]

    def __repr__(self) -> str:
        chunks = self.chunks if len(self.chunks) <= MOST_SHOWN else f"{len(self.chunks)} of them"
        return f"JoinedBatch({self.key!r}, {len(self.items)} items, chunks={chunks})"


@dataclass(frozen=True)
class Ran(Generic[P]):
    """What one ``run`` did: ``outcomes`` by item id, in the order of first tries.

    ``requests`` counts what Cloud Tasks would have sent; ``seconds`` is the virtual time passed.
    """

    batches: tuple[JoinedBatch[P], ...]
    outcomes: dict[str, ItemOutcome[P]]
    requests: int
    seconds: float

    def __repr__(self) -> str:
        return (
            f"Ran({len(self.handled)} handled, {len(self.dead)} dead, {len(self.waiting)} waiting, "
            f"{len(self.batches)} batches, {self.requests} requests, {self.seconds:g} s)"
        )

    @property
    def handled(self) -> list[ItemOutcome[P]]:
        """Items that were handled."""
        return [one for one in self.outcomes.values() if one.state == "handled"]

    @property
    def dead(self) -> list[ItemOutcome[P]]:
        """Items that were given up. ``dead_letters()`` of the queue has what is kept of them."""
        return [one for one in self.outcomes.values() if one.state == "dead"]

    @property
    def waiting(self) -> list[ItemOutcome[P]]:
        """Items that were tried and are to be tried again."""
        return [one for one in self.outcomes.values() if one.state == "waiting"]
