"""How soon handlers begin: after the last writer's release, and over a large batch."""

from __future__ import annotations

import random
import statistics
from dataclasses import dataclass, field

from benchmarks.side_serving import Arrival
from benchmarks.stage import Plan, Stage, say, wait_until

RELEASE_PERIOD = 0.1
POLLING_SECONDS = 0.25


@dataclass(slots=True)
class Releases:
    """Seconds from the last release to the first handler."""

    old: list[float] = field(default_factory=list)
    new: list[float] = field(default_factory=list)


def measure_releases(stage: Stage, plan: Plan) -> Releases:
    """Both sides in turn, the reader having waited equally long. ``release`` and ``release-old``
    are served."""
    found = Releases()
    chance = random.Random(2010)
    for number in range(plan.releases + 1):
        if number % 5 == 0:
            say(f"release to first handler, {number} of {plan.releases}")
        wait = chance.uniform(0.0, POLLING_SECONDS)
        for peer, name, taken in (
            (stage.old, "release-old", found.old),
            (stage.new, "release", found.new),
        ):
            url = f"https://example.com/{name}/{number}"
            released_at: float = peer.call("release_once", name, url, wait)
            wait_until(lambda u=url: stage.serving.call("seen", u) is not None, 20, "item handled")  # type: ignore[misc]
            if number:  # the first one makes connections
                taken.append(stage.serving.call("seen", url) - released_at)
    stage.new.call("shut", "release")
    return found


@dataclass(frozen=True, slots=True)
class Spread:
    """How a large batch's requests came in: seconds after the first one, and tasks in a row."""

    last_start: float
    median_start: float
    depth: int
    """The last chunk's task was created by a request whose task was created by a request, …"""


@dataclass(slots=True)
class Large:
    old: list[Spread] = field(default_factory=list)
    new: list[Spread] = field(default_factory=list)


def measure_large(stage: Stage, plan: Plan) -> Large:
    """A batch of ``large_items`` with 100 a request; ``large`` and ``large-old`` are served."""
    found = Large()
    for number in range(plan.large_rounds):
        say(f"a batch of {plan.large_items:,}, round {number + 1} of {plan.large_rounds}")
        stage.new.call("many", "large", 1, plan.large_items)
        found.new.append(_spread(stage, "large", "large-1", plan.large_items))
        stage.meters.empty_store()
        stage.old.call("lay_out", "large-old", plan.large_items)
        found.old.append(_spread(stage, "large-old", "large-old", plan.large_items))
        stage.meters.empty_store()
    stage.new.call("shut", "large")
    return found


def _spread(stage: Stage, name: str, task_queue: str, items: int) -> Spread:
    wait_until(lambda: stage.serving.call("handled", name) >= items, 90, f"{name} handled")
    stage.serving.call("forget", name)
    arrivals: list[Arrival] = stage.serving.call("arrivals", task_queue)
    first: dict[str, Arrival] = {}
    for one in arrivals:  # a task's first try counts
        first.setdefault(one.task, one)
    # The 2010 chain ends with a request that finds nothing: it is no chunk.
    chunks = sorted(first.values(), key=lambda one: one.at)[: items // 100]
    starts = [one.at - chunks[0].at for one in chunks]
    depth = max(depth_of(one.task) for one in chunks)
    return Spread(starts[-1], statistics.median(starts), depth)


def depth_of(task_id: str) -> int:
    """How many tasks led to this one, by its id: the root's is 0.

    A task of 2010 ends in its generation. One of the package is ``hash_queue_version_batch``, and a
    chunk's ``…_first-generation`` besides.
    """
    if task_id.startswith("fjq-"):
        return int(task_id.rpartition("-")[2])
    parts = task_id.split("_")
    return 1 + int(parts[4].rpartition("-")[2]) if len(parts) == 5 else 0
