"""The figures of a run, from what the processes counted themselves."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .clients import Posted
from .history import Batch
from .joins import Join
from .outcome import Handled, Record

VALKEY_CALLS = ("evalsha", "eval", "script|load", "blpop")
"""What a queue sends; everything else in Valkey's statistics runs inside a script or sets up."""


@dataclass(frozen=True)
class Counted:
    """What was read from the processes when all was done."""

    service: Mapping[str, int]
    """The counters of the enqueuing queue."""
    join: Mapping[str, int]
    """The counters of the joining queue, over all its processes."""
    cloud_tasks: Mapping[str, Any]
    """The statistics of the emulator's queue."""
    valkey: Mapping[str, int]
    """Calls by command, by Valkey's own account."""
    origin: Mapping[str, Any]
    """What the local origin served, and how long it made its clients wait for it."""


@dataclass(frozen=True)
class Figures:
    """What the report shows. Times are seconds, calls are numbers for the whole run."""

    lines: int
    lines_out: int
    handled: int
    lost: int
    """Accepted by the service, and no result came."""
    failed: int
    not_accepted: int
    delivered_again: int
    posted_again: int
    batches: int
    tasks_created: int
    tasks_deduplicated: int
    requests: int
    requests_failed: int
    firestore: dict[str, int]
    memorystore: int
    cloud_tasks: int
    latency_p50: float
    latency_p99: float
    post_p50: float
    post_p99: float
    wall_seconds: float
    fetch_seconds: float
    """All fetches in a row, as the handlers measured them: each among hundreds of others."""
    origin_served: int
    origin_seconds: float
    """All pages of the local origin in a row, by its own account."""
    origin_waiting_max: int

    @property
    def firestore_calls(self) -> int:
        """Requests to Firestore, not documents."""
        return sum(n for name, n in self.firestore.items() if not name.startswith("documents_"))

    @property
    def one_at_a_time_seconds(self) -> float:
        """What one worker would wait in all, fetching one page after another.

        Of local pages only what the origin itself took: a fetch among hundreds of others, on the
        same few processors, takes longer than it would alone.
        """
        return self.origin_seconds if self.origin_served >= self.handled else self.fetch_seconds

    @property
    def complete(self) -> bool:
        """Whether every line has its one line, and everything accepted was handled."""
        return self.lines_out == self.lines and not self.lost


def figures(
    merged: Sequence[Record],
    lines_out: int,
    posted: Posted,
    handled: Handled,
    batches: Sequence[Batch],
    joins: Sequence[Join],
    counted: Counted,
) -> Figures:
    """Work the figures out. ``lines_out``: lines that have exactly one result on disk."""
    done = list(handled.by_line.values())
    # From the client's request on: more than the queue's own share, and what its caller waits for.
    waits = sorted(record["handled_at"] - posted.asked_at[record["line"]] for record in done)
    posts = sorted(posted.answer_seconds)
    began = min(posted.asked_at.values(), default=0.0)
    ended = max((record["handled_at"] for record in done), default=began)
    tasks = counted.cloud_tasks
    return Figures(
        lines=len(merged),
        lines_out=lines_out,
        handled=len(done),
        lost=len(posted.ids.keys() - handled.by_line.keys()),
        failed=sum(1 for record in done if record["error"]),
        not_accepted=len(merged) - len(posted.ids.keys() | handled.by_line.keys()),
        delivered_again=handled.delivered_again,
        posted_again=handled.posted_again,
        batches=sum(1 for batch in batches if batch.joins),
        tasks_created=tasks["creates"],
        tasks_deduplicated=tasks["duplicates"],
        requests=tasks["dispatches"],
        requests_failed=sum(1 for join in joins if not join.done),
        firestore=_firestore(counted),
        memorystore=sum(counted.valkey.get(name, 0) for name in VALKEY_CALLS),
        cloud_tasks=tasks["creates"] + tasks["duplicates"],
        latency_p50=quantile(waits, 0.50),
        latency_p99=quantile(waits, 0.99),
        post_p50=quantile(posts, 0.50),
        post_p99=quantile(posts, 0.99),
        wall_seconds=ended - began,
        fetch_seconds=sum(record["fetch_seconds"] for record in done),
        origin_served=counted.origin["served"],
        origin_seconds=counted.origin["seconds"],
        origin_waiting_max=counted.origin["waiting_max"],
    )


def joined_counters(joins: Iterable[Join]) -> Counter[str]:
    """The counters of all joining processes together: each only ever counts up."""
    latest: dict[int, Counter[str]] = {}
    for join in joins:
        latest[join.process] = latest.get(join.process, Counter()) | Counter(join.counters)
    return sum(latest.values(), Counter())


def quantile(ascending: Sequence[float], share: float) -> float:
    """The value below which ``share`` of the values lie; 0 of none."""
    if len(ascending) < 2:
        return ascending[0] if ascending else 0.0
    return statistics.quantiles(ascending, n=1_000, method="inclusive")[round(share * 1_000) - 1]


def _firestore(counted: Counted) -> dict[str, int]:
    both = Counter(counted.service) + Counter(counted.join)
    prefix = "firestore."
    return {
        name.removeprefix(prefix): count
        for name, count in sorted(both.items())
        if name.startswith(prefix)
    }
