"""The arithmetic of a run: percentiles, medians of rounds, ratios, verdicts. Pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least ``share`` (0 to 1) of the values do not exceed.

    Raises ValueError for no values.
    """
    if not values:
        raise ValueError("no values")
    rank = max(1, math.ceil(share * len(values)))
    return sorted(values)[rank - 1]


@dataclass(frozen=True, slots=True)
class Sample:
    """One round of one measurement. Latencies in ms; calls as the client itself counts them."""

    items: int
    seconds: float
    cpu_seconds: float
    p50_ms: float
    p99_ms: float
    calls: dict[str, int] = field(default_factory=dict)

    @property
    def rate(self) -> float:
        """Items a second."""
        return self.items / self.seconds

    @property
    def cpu_us(self) -> float:
        """Microseconds of the client's CPU an item."""
        return self.cpu_seconds / self.items * 1e6

    def per_item(self, call: str) -> float:
        return self.calls.get(call, 0) / self.items


def median(samples: Sequence[Sample], figure: Callable[[Sample], float]) -> float:
    """The median of a figure over rounds."""
    return statistics.median(figure(sample) for sample in samples)


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Of the medians of rounds that were taken in turn."""
    return statistics.median(ours) / statistics.median(theirs)


@dataclass(frozen=True, slots=True)
class Target:
    """What a figure is held to: at least, or at most, a limit."""

    name: str
    value: float
    limit: float
    at_least: bool
    unit: str = ""
    note: str = ""

    @property
    def met(self) -> bool:
        return self.value >= self.limit if self.at_least else self.value <= self.limit
