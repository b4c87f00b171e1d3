"""Runs seeds one after another and says what came of them."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from forkjoin_gcp.testing.simulation.defences import NONE, Defence
from forkjoin_gcp.testing.simulation.plan import Plan, draw_plan
from forkjoin_gcp.testing.simulation.world import World


@dataclass(frozen=True)
class Outcome:
    """What came of one seed. ``failure`` is empty where all was as it must be."""

    plan: Plan
    failure: str
    lines: Callable[[], list[str]]
    steps: int
    facts: dict[str, int]

    def text(self) -> str:
        """The whole schedule, and how it ended. The same in every run of the same seed."""
        return "\n".join([*self.lines(), self.failure or "all is as it must be", ""])


def run_seed(seed: int, defence: Defence = NONE) -> Outcome:
    """Run the world of one seed, with a defence taken away or none."""
    plan = draw_plan(seed, wanted=defence.faults)
    world = World(plan, defence)
    failure = ""
    try:
        world.run()
    except AssertionError as error:
        failure = f"{type(error).__name__}: {error}"
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        failure = f"unexpected {type(error).__name__}: {error} in {where.name}, line {where.lineno}"
    return Outcome(world.plan, failure, world.trace.lines, world.loop.steps, world.facts())


def run_seeds(seeds: Iterable[int], defence: Defence = NONE) -> Iterator[Outcome]:
    """Run seeds one after another."""
    for seed in seeds:
        yield run_seed(seed, defence)


def first_failure(seeds: Iterable[int], defence: Defence = NONE) -> Outcome | None:
    """The first seed that fails, or None."""
    return next((outcome for outcome in run_seeds(seeds, defence) if outcome.failure), None)
