"""What enqueuing costs: at full load, by a caller alone, and at a steady rate."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

from benchmarks.accounting import Calls
from benchmarks.figures import Sample
from benchmarks.stage import UNREAD, UNREAD_PERIOD, Plan, Stage, say, wait_until

MANY = "many"
"""The queue of ``enqueue_many``: one for all rounds, as the raw writes have one connection."""

THREADS = 64
COROUTINES = 256
OTHER_THREADS = (16, 128, 256)
"""Caller counts at which the 2010 port is tried beside THREADS, so that it has the best of its own
in the comparison with COROUTINES callers."""


@dataclass(frozen=True, slots=True)
class Round:
    """One round: what the client measured, and what the services counted."""

    sample: Sample
    counted: Calls

    @property
    def round_trips(self) -> float:
        """To Memorystore, an item, as Valkey counted them."""
        return self.counted.memorystore / self.sample.items

    @property
    def creates(self) -> float:
        """Of tasks, an item, as the Cloud Tasks emulator counted them."""
        return self.counted.creates / self.sample.items

    @property
    def disagreement(self) -> float:
        """How far the client's own counts are from the services', as a share of the larger."""
        pairs = (
            (self.sample.calls.get("memorystore.round_trip", 0), self.counted.memorystore),
            (self.sample.calls.get("cloud_tasks.create_task", 0), self.counted.creates),
        )
        return max(abs(own - theirs) / max(own, theirs, 1) for own, theirs in pairs)


@dataclass(slots=True)
class Throughput:
    """Rounds by kind, taken in turn, and the caller count that suits the 2010 port best."""

    rounds: dict[str, list[Round]] = field(default_factory=dict)
    best_threads: int = THREADS
    recorded: tuple[int, int] = (0, 0)
    """Requests and documents of the ceiling."""

    def samples(self, kind: str) -> list[Sample]:
        return [each.sample for each in self.rounds[kind]]

    @property
    def best_2010(self) -> str:
        return f"old_{self.best_threads}"


def warm_up(stage: Stage, plan: Plan) -> None:
    """Write for a while in both ways: the emulators' first thousands of calls are slow."""
    say("warming up")
    _old(stage, "warm", THREADS, plan.round_seconds)
    _new(stage, "warm", "threads", THREADS, plan.round_seconds)
    stage.meters.empty_store()


def measure_throughput(stage: Stage, plan: Plan) -> Throughput:
    """Rounds of every kind in turn. No task runs meanwhile: all lie ``UNREAD_PERIOD`` ahead."""
    found = Throughput()
    found.best_threads = _best_threads(stage, plan)
    stage.new_queue("ceiling", package=True)
    stage.new_queue(MANY, package=True)
    stage.new.call("open", MANY, UNREAD, None)
    stage.new.call("warm_up", MANY)
    found.recorded = stage.raw.call("record", "ceiling", plan.many_items)
    for number in range(plan.rounds + 1):
        say(f"full load, round {number} of {plan.rounds}" + " (to warm up)" * (not number))
        threads = sorted({THREADS, found.best_threads})
        for kind, measure in _measurements(stage, plan, number, threads):
            taken = measure()
            stage.meters.empty_store()
            if number:
                found.rounds.setdefault(kind, []).append(taken)
    stage.new.call("shut", MANY)
    return found


def _measurements(
    stage: Stage, plan: Plan, number: int, threads: Sequence[int]
) -> Iterator[tuple[str, Callable[[], Round]]]:
    """The measurements of one round, in the order in which they are taken."""
    seconds = plan.round_seconds if number else plan.round_seconds / 2
    for each in threads:
        yield f"old_{each}", partial(_old, stage, f"r{number}", each, seconds)
    yield "aenqueue", partial(_new, stage, f"tasks-{number}", "tasks", COROUTINES, seconds)
    yield "enqueue", partial(_new, stage, f"threads-{number}", "threads", THREADS, seconds)
    for _ in range(plan.many_pairs):  # each is over in a fraction of a second
        yield "many", partial(_many, stage, plan)
        yield "build", partial(_raw, stage, "build")
        yield "replay", partial(_raw, stage, "replay")


def _best_threads(stage: Stage, plan: Plan) -> int:
    """Tried for a short while each: the figures themselves come from the rounds."""
    say("which number of threads suits the 2010 port best")
    rates = {}
    for threads in (THREADS, *OTHER_THREADS):
        rates[threads] = _old(stage, "try", threads, min(1.5, plan.round_seconds)).sample.rate
        stage.meters.empty_store()
    return max(rates, key=rates.__getitem__)


def _old(stage: Stage, label: str, threads: int, seconds: float) -> Round:
    name = f"old-{label}-{threads}"
    stage.new_queue(name, package=False)
    stage.old.call("open", name, UNREAD_PERIOD, None)
    stage.old.call("warm_up", name)
    return _metered(stage, lambda: stage.old.call("threads", name, threads, seconds))


def _new(stage: Stage, name: str, method: str, *args: float) -> Round:
    stage.new_queue(name, package=True)
    stage.new.call("open", name, UNREAD, None)
    stage.new.call("warm_up", name)
    taken = _metered(stage, lambda: stage.new.call(method, name, *args))
    stage.new.call("shut", name)
    return taken


def _many(stage: Stage, plan: Plan) -> Round:
    return _metered(stage, lambda: stage.new.call("many", MANY, 1, plan.many_items))


def _raw(stage: Stage, method: str) -> Round:
    return _metered(stage, lambda: stage.raw.call(method))


def _metered(stage: Stage, run: Callable[[], Sample]) -> Round:
    before = stage.meters.calls()
    sample = run()
    return Round(sample, stage.meters.calls() - before)


@dataclass(slots=True)
class Idle:
    """Latencies of a caller alone, in seconds, by kind."""

    first_old: list[float] = field(default_factory=list)
    first_new: list[float] = field(default_factory=list)
    within_old: list[float] = field(default_factory=list)
    within_new: list[float] = field(default_factory=list)


IDLE_PERIOD = 0.05
IDLE_PAUSE = 0.15
"""Longer than the period: each item is the first of its batch, and creates its task."""


def measure_idle(stage: Stage, plan: Plan) -> Idle:
    """Blocks of both sides in turn. The queues ``idle`` and ``idle-old`` are served."""
    found = Idle()
    stage.new_queue("within", package=True)
    stage.new_queue("within-old", package=False)
    stage.new.call("open", "within", UNREAD, None)
    stage.old.call("open", "within-old", UNREAD_PERIOD, None)
    for name in ("idle", "within"):
        stage.old.call("warm_up", f"{name}-old")
        stage.new.call("warm_up", name)
    for block in range(plan.idle_blocks):
        say(f"a caller alone, block {block + 1} of {plan.idle_blocks}")
        first, within = (plan.idle_calls, IDLE_PAUSE), (plan.idle_calls * 4, 0.005)
        found.first_old += stage.old.call("alone", "idle-old", *first)
        found.first_new += stage.new.call("alone", "idle", *first)
        found.within_old += stage.old.call("alone", "within-old", *within)
        found.within_new += stage.new.call("alone", "within", *within)
    stage.new.call("shut", "idle")
    stage.new.call("shut", "within")
    return found


PACED_RATE = 1_000
PACED_PERIOD = 0.5


@dataclass(frozen=True, slots=True)
class Paced:
    """A steady rate, served to the end: calls an item of both sides together."""

    round: Round
    written: float
    """Firestore documents written, an item."""
    firestore_calls: float
    """Calls to Firestore of all kinds, an item."""
    counters: dict[str, int]
    """Of client and server together."""


def measure_paced(stage: Stage, plan: Plan) -> Paced:
    """One item at a time, PACED_RATE a second; the queue ``paced`` is served."""
    say(f"{PACED_RATE:,} items/s one by one for {plan.paced_seconds:g} s")
    stage.new.call("warm_up", "paced")
    wait_until(lambda: stage.serving.call("handled", "paced") >= 20, 20, "warm-up items handled")
    stage.serving.call("forget", "paced")
    served_before = stage.serving.call("counters", "paced")

    def run() -> Sample:
        sample: Sample = stage.new.call("paced", "paced", PACED_RATE, plan.paced_seconds)
        wait_until(
            lambda: stage.serving.call("handled", "paced") >= sample.items, 60, "items handled"
        )
        return sample

    taken = _metered(stage, run)
    served = stage.serving.call("counters", "paced")
    calls = dict(taken.sample.calls)
    for key, value in served.items():
        calls[key] = calls.get(key, 0) + value - served_before.get(key, 0)
    stage.new.call("shut", "paced")
    items = taken.sample.items
    kinds = ("batch_write", "commit", "run_query", "batch_get")
    return Paced(
        taken,
        calls.get("firestore.documents_written", 0) / items,
        sum(calls.get(f"firestore.{kind}", 0) for kind in kinds) / items,
        calls,
    )
