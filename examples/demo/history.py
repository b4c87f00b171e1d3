"""What happened to each batch, and when: the material of the report and of the pictures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from .joins import Join
from .outcome import Record


@dataclass
class Batch:
    """One batch. ``writes`` are times and numbers of items written; times are Unix times."""

    key: str
    writes: list[tuple[float, int]] = field(default_factory=list)
    joins: list[Join] = field(default_factory=list)

    @property
    def items(self) -> int:
        return sum(count for _, count in self.writes)

    @property
    def root(self) -> Join | None:
        """The request that closed it; of several, the first."""
        return next((join for join in self.joins if join.root), None)

    @property
    def began(self) -> float:
        return min([at for at, _ in self.writes] + [join.began for join in self.joins])

    @property
    def ended(self) -> float:
        return max([at for at, _ in self.writes] + [join.ended for join in self.joins])


def batches(records: Iterable[Record], joins: Iterable[Join]) -> list[Batch]:
    """All batches, in the order in which they began.

    An item belongs to the batch it was first written to, which its id names.
    """
    found: dict[str, Batch] = {}
    writes: Counter[tuple[str, float]] = Counter(
        (record["id"].rpartition("-")[0], record["enqueued_at"]) for record in records
    )
    for (key, at), count in sorted(writes.items()):
        found.setdefault(key, Batch(key)).writes.append((at, count))
    for join in sorted(joins, key=lambda join: join.began):
        found.setdefault(join.batch, Batch(join.batch)).joins.append(join)
    return sorted(found.values(), key=lambda batch: batch.began)


def pack(joins: Sequence[Join]) -> list[list[Join]]:
    """The joins in as few rows as will do, none over another of its row."""
    rows: list[list[Join]] = []
    for join in sorted(joins, key=lambda join: join.began):
        free = next((row for row in rows if row[-1].ended <= join.began), None)
        if free is None:
            rows.append([join])
        else:
            free.append(join)
    return rows
