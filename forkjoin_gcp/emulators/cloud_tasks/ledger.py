"""What the emulator counts and remembers for its tests, its /stats page and a dashboard."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import asdict, dataclass
from typing import Any

COUNTERS = (
    "creates",
    "duplicates",
    "deletes",
    "dispatches",
    "completed",
    "retried",
    "exhausted",
    "gone",
    "purged",
)


@dataclass(frozen=True, slots=True)
class Dispatch:
    """One finished attempt. Times in seconds since the epoch."""

    name: str
    started: float
    finished: float
    status: int | None
    """The target's HTTP status; None if it gave no answer, then `error` says why."""
    error: str
    retry_count: int


class Ledger:
    """Counters since the start, in all and by queue, and the last `keep` dispatches."""

    def __init__(self, keep: int = 1_000) -> None:
        self._total: Counter[str] = Counter()
        self._queues: dict[str, Counter[str]] = {}
        self._responses: Counter[str] = Counter()
        self._refusals: Counter[str] = Counter()
        self._recent: deque[Dispatch] = deque(maxlen=keep)

    def count(self, queue_name: str, what: str, number: int = 1) -> None:
        """Adds to the counter `what` of the queue and of the whole."""
        self._total[what] += number
        counters = self._queues.get(queue_name)
        if counters is None:
            counters = self._queues[queue_name] = Counter()
        counters[what] += number

    def count_refusal(self, code: str) -> None:
        """Adds one to the calls refused with that gRPC status."""
        self._refusals[code] += 1

    def record(self, dispatch: Dispatch) -> None:
        """Books a finished attempt under its status, or under "error" if there was none."""
        self._responses["error" if dispatch.status is None else str(dispatch.status)] += 1
        self._recent.append(dispatch)

    def counters(self) -> dict[str, Any]:
        """The COUNTERS, `responses` by status ("error" for none) and `refusals` by code."""
        totals: dict[str, Any] = {name: self._total[name] for name in COUNTERS}
        totals["responses"] = dict(self._responses)
        totals["refusals"] = dict(self._refusals)
        return totals

    def queue_counters(self, queue_name: str) -> dict[str, int]:
        """The COUNTERS of one queue."""
        counters = self._queues.get(queue_name, Counter())
        return {name: counters[name] for name in COUNTERS}

    def recent(self, limit: int) -> list[dict[str, Any]]:
        """The last `limit` dispatches, newest first."""
        newest_first = list(reversed(self._recent))
        return [asdict(dispatch) for dispatch in newest_first[: max(0, limit)]]
