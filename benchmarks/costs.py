"""`python -m benchmarks.costs`: what a million items cost in calls, from calls that were counted.

Prices are those that docs/operations.md cites. What runs by the hour (Memorystore, the instances'
CPU and memory) and what lies about (storage, network) is not in it: that depends on the items.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

from benchmarks.enqueuing import PACED_RATE, Paced, measure_paced, warm_up
from benchmarks.served import open_served
from benchmarks.stage import Plan, staged

PRICES = {
    "writes": 0.9,
    "reads": 0.3,
    "deletes": 0.1,
    "operations": 0.4,
    "requests": 0.4,
}
"""US dollars a million, in a cheap single region, above all free quotas."""

BATCH_SIZE = 100
PACED_PLAN = Plan(paced_seconds=6.0)


@dataclass(frozen=True, slots=True)
class Charged:
    """What is charged, an item: Firestore's documents, Cloud Tasks' operations, which are creates
    (also refused ones) and deliveries, and Cloud Run's requests."""

    writes: float = 0.0
    reads: float = 0.0
    deletes: float = 0.0
    operations: float = 0.0
    requests: float = 0.0

    def dollars(self) -> float:
        """Of a million items."""
        return float(sum(getattr(self, name) * price for name, price in PRICES.items()))


TASK_AN_ITEM = Charged(operations=2, requests=1)
"""A create and a delivery; the item is in the task."""

IN_2010 = Charged(
    writes=1, reads=1, deletes=1, operations=1 + 1 / BATCH_SIZE, requests=1 / BATCH_SIZE
)
"""A document and a create for each item, most of them refused; a delivery for each hundred."""

ALONE = Charged(writes=1, reads=1, deletes=1, operations=2, requests=1)
"""This package's worst: every item is the only one of its batch."""


def charged(calls: Mapping[str, int], items: int) -> Charged:
    """What was charged for ``items``, by the package's own counters of both ends."""
    deliveries = max(calls.get("roots", 0), calls.get("chunks", 0))
    creates = calls.get("cloud_tasks.create_task", 0)
    return Charged(
        writes=calls.get("firestore.documents_written", 0) / items,
        reads=calls.get("firestore.documents_read", 0) / items,
        deletes=calls.get("firestore.documents_deleted", 0) / items,
        operations=(creates + deliveries) / items,
        requests=deliveries / items,
    )


def table(measured: Charged) -> str:
    """The comparison, as Markdown."""
    kinds = {
        f"this package, {PACED_RATE:,} items/s one by one (measured)": measured,
        "this package, each item alone in its batch": ALONE,
        "a task an item, Cloud Tasks alone": TASK_AN_ITEM,
        f"the 2010 protocol, {BATCH_SIZE} items a batch": IN_2010,
    }
    names = [field.name for field in fields(Charged)]
    lines = [f"| an item | {' | '.join(names)} | $ a million items |"]
    lines.append("| --- |" + " ---: |" * (len(names) + 1))
    for kind, each in kinds.items():
        counts = " | ".join(f"{getattr(each, name):.3g}" for name in names)
        lines.append(f"| {kind} | {counts} | {each.dollars():.2f} |")
    prices = " | ".join(f"{PRICES[name]:g}" for name in names)
    lines.append(f"| *$ a million of these* | {prices} | |")
    return "\n".join(lines)


def main() -> None:
    with staged() as stage:
        open_served(stage)
        warm_up(stage, PACED_PLAN)
        paced: Paced = measure_paced(stage, PACED_PLAN)
    print(table(charged(paced.counters, paced.round.sample.items)))


if __name__ == "__main__":
    main()
