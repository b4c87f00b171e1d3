"""What is to happen in a world, drawn from its seed: settings, callers, handlers, faults.

Each world has a few kinds of fault, and most have few of each: what two faults do together is seen
best where not everything fails at once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random
from typing import Any

from forkjoin_gcp.testing.simulation.ledger import Behaviour

FAULTS = (
    "service crash",
    "service stall",
    "function crash",
    "function stall",
    "memorystore loses calls",
    "memorystore slow",
    "memorystore away",
    "memorystore flushed",
    "memorystore evicts",
    "memorystore evicts leases",
    "memorystore fails over",
    "firestore loses calls",
    "firestore slow",
    "firestore away",
    "cloud tasks loses answers",
    "cloud tasks slow",
    "dispatched twice",
    "dispatched late",
    "names kept otherwise",
    "join answers lost",
    "clocks apart",
    "handlers fail",
    "handlers kill",
)

SWEPT_FAULTS = (
    "sweeper crash",
    "cloud tasks loses calls",
    "cloud tasks away",
    "tasks lost",
    "tasks given up",
    "firestore writes late",
    "failover unnoticed",
)
"""What only a sweeper makes good. They are in worlds that have one, beside all others."""

LOSING_FAULTS = (
    "memorystore flushed",
    "memorystore evicts",
    "memorystore evicts leases",
    "memorystore fails over",
    "failover unnoticed",
)
"""What a memory-only queue does not promise to survive."""

WORK_SECONDS = 6.0
"""In this time callers call and faults begin. Then everything heals, and must come to its end."""


@dataclass(frozen=True)
class Call:
    """A caller's call: when, in which service, and the numbers of its items."""

    at: float
    service: int
    numbers: tuple[int, ...]


@dataclass(frozen=True)
class Event:
    """A fault at a moment: ``kind`` is one of FAULTS, ``target`` a process's number."""

    at: float
    kind: str
    target: int = 0
    seconds: float = 0.0
    steps: int = 0


@dataclass
class Plan:
    """A world before it begins."""

    seed: int
    faults: tuple[str, ...]
    settings: dict[str, Any]
    services: int
    functions: int
    calls: list[Call] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    behaviours: dict[int, Behaviour] = field(default_factory=dict)
    rate: float = 0.0
    """Of calls on a link that go wrong where its faults are on."""
    skew: float = 0.0
    sweeps: bool = False
    tombstone: float = 3600.0
    lease_seconds: float = 1.0

    def has(self, *faults: str) -> bool:
        return any(fault in self.faults for fault in faults)

    def __str__(self) -> str:
        settings = " ".join(f"{name}={value}" for name, value in self.settings.items())
        items = sum(len(call.numbers) for call in self.calls)
        return (
            f"seed {self.seed}: {items} items in {len(self.calls)} calls, {self.services} services,"
            f" {self.functions} functions, {'swept' if self.sweeps else 'not swept'}; {settings};"
            f" faults: {', '.join(self.faults) or 'none'}"
        )


def draw_plan(seed: int, *, wanted: tuple[str, ...] = ()) -> Plan:
    """The plan of a seed. ``wanted`` faults are there whatever the seed says."""
    random = Random(f"plan {seed}")
    settings = _draw_settings(random)
    sweeps = random.random() < 0.4 or any(fault in SWEPT_FAULTS for fault in wanted)
    known = [*FAULTS, *(SWEPT_FAULTS if sweeps else ())]
    if any(fault in LOSING_FAULTS for fault in wanted):
        settings["storage"] = "firestore"
    if settings["storage"] == "memorystore":
        known = [fault for fault in known if fault not in LOSING_FAULTS]
    count = random.choice((0, 1, 1, 2, 2, 3, 3, 4, 6))
    faults = {*random.sample(known, count), *wanted}
    if "failover unnoticed" in faults:
        faults.add("memorystore fails over")
    plan = Plan(
        seed=seed,
        faults=tuple(fault for fault in (*FAULTS, *SWEPT_FAULTS) if fault in faults),
        settings=settings,
        sweeps=sweeps,
        services=random.choice((1, 2, 2, 3)),
        functions=random.choice((1, 2, 2)),
        rate=random.choice((0.02, 0.05, 0.15)),
    )
    _draw_calls(plan, random)
    _draw_behaviours(plan, random)
    for kind in plan.faults:
        _draw_events(plan, kind, random)
    plan.skew = random.choice((0.05, 1.0, 4.0)) if plan.has("clocks apart") else 0.0
    plan.settings["max_clock_skew"] = plan.skew
    plan.lease_seconds = random.choice((1.0, 1.0, 3.0))
    if plan.has("names kept otherwise"):
        plan.tombstone = random.choice((0.0, 0.0, 2.0, 1e9))
    return plan


def _draw_settings(random: Random) -> dict[str, Any]:
    batch_size = random.choice((1, 2, 4, 4, 7))
    writer_timeout = random.choice((0.3, 1.0, 2.0))
    roomy = {"max_pending_items": 100_000, "enqueue_timeout": 30.0}
    narrow = {"max_pending_items": 5, "enqueue_timeout": random.choice((0.0, 0.5, 30.0))}
    return {
        **random.choice((roomy, roomy, roomy, narrow)),
        "batch_period": random.choice((0, 0.1, 0.3, 0.5)),
        "batch_size": batch_size,
        "max_batch_items": batch_size * random.choice((1, 3, 50)),
        "shards": random.choice((1, 2)),
        "lanes": random.choice((1, 1, 2)),
        "writer_timeout": writer_timeout,
        "acquire_timeout": random.choice((0.1, 0.5)),
        "acquire_attempts": random.choice((1, 3)),
        "concurrency": random.choice((1, 4)),
        "crash_limit": random.choice((1, 2, 3)),
        "max_attempts": random.choice((1, 2, 4)),
        "retry_min_backoff": random.choice((0.0, 0.5)),
        "retry_max_backoff": random.choice((0.5, 2.0)),
        "dispatch_deadline": 15.0,
        "storage": random.choice((*["firestore"] * 7, "memorystore")),
        "on_success": random.choice(("delete", "delete", "delete", "keep")),
    }


def _draw_calls(plan: Plan, random: Random) -> None:
    number = 0
    span = random.choice((0.3, 1.5, WORK_SECONDS))
    for _ in range(random.randint(3, 16)):
        count = random.choice((1, 1, 1, 2, 3, 6))
        numbers = tuple(range(number, number + count))
        number += count
        at = random.uniform(0.0, span)
        plan.calls.append(Call(at, random.randrange(plan.services), numbers))
    plan.calls.sort(key=lambda call: call.at)


def _draw_behaviours(plan: Plan, random: Random) -> None:
    slow = random.choice((0.0, 0.05, 0.5, 3.0))
    for call in plan.calls:
        for number in call.numbers:
            tries: tuple[str, ...] = ()
            always = ""
            if plan.has("handlers fail") and random.random() < 0.3:
                tries = tuple(
                    random.choice(("fail", "retry", "reject", "hang"))
                    for _ in range(random.randint(1, 3))
                )
            if plan.has("handlers kill") and random.random() < 0.1:
                tries = (*tries, "kill")
                always = random.choice(("", "kill"))
            if tries or slow:
                seconds = random.uniform(0.0, slow)
                plan.behaviours[number] = Behaviour(tries, always, seconds)


def _draw_events(plan: Plan, kind: str, random: Random) -> None:
    def at() -> float:
        return random.uniform(0.0, min(WORK_SECONDS, plan.calls[-1].at + 1.0))

    few = range(random.choice((1, 1, 2, 3)))
    if kind in ("service crash", "function crash"):
        many = plan.services if kind == "service crash" else plan.functions
        for _ in few:
            steps = random.choice((0, random.randint(1, 300)))
            plan.events.append(Event(at(), kind, random.randrange(many), steps=steps))
    elif kind in ("service stall", "function stall"):
        many = plan.services if kind == "service stall" else plan.functions
        for _ in few:
            seconds = random.choice((0.2, 1.0, 4.0, 14.0)) * random.uniform(0.3, 1.5)
            plan.events.append(Event(at(), kind, random.randrange(many), seconds))
    elif kind in ("memorystore away", "firestore away", "cloud tasks away"):
        plan.events.append(Event(at(), kind, random.randrange(2), random.uniform(0.1, 5.0)))
    elif kind == "sweeper crash":
        plan.events += [Event(at(), kind, steps=random.randint(1, 30)) for _ in few]
    elif kind in ("memorystore flushed", "memorystore evicts"):
        plan.events += [Event(at(), kind) for _ in few]
    elif kind == "memorystore evicts leases":
        plan.events += [Event(at() * 2, kind) for _ in range(random.choice((3, 30)))]
    elif kind == "memorystore fails over":
        for _ in few:
            plan.events.append(Event(at(), kind, seconds=random.choice((0.0, 0.05, 0.5, 1.5))))
