"""The local services themselves, one after the other: each by itself, and all three by their
command."""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.figures import Target
from benchmarks.local_cloud_tasks import CloudTasksFigures, measure_cloud_tasks
from benchmarks.local_firestore import FirestoreFigures, measure_firestore
from benchmarks.report import machine, number, table, target_table
from benchmarks.stage import say
from benchmarks.usage import cpu_of_ended

BEGIN, END = "<!-- begin: measured by `make bench-local` -->\n", "<!-- end: local -->\n"
"""Between these marks of a page stands what was measured last."""

READY = "Ready."


@dataclass(frozen=True, slots=True)
class LocalPlan:
    """How much of everything: about a minute."""

    starts: int = 5
    rounds: int = 5
    documents: int = 10_000
    creates: int = 3_000
    dispatches: int = 2_500
    held: int = 1_000


QUICK_LOCAL = LocalPlan(starts=1, rounds=1, documents=2_000, creates=300, dispatches=700, held=50)


@dataclass(frozen=True, slots=True)
class Ups:
    """Starts of all by `forkjoin local up`: until ready, and the processor time to their end."""

    seconds: list[float]
    cpu_seconds: list[float]


@dataclass(frozen=True, slots=True)
class LocalResults:
    plan: LocalPlan
    firestore: FirestoreFigures
    cloud_tasks: CloudTasksFigures
    ups: Ups
    seconds: float
    load_before: float


def measure_local(plan: LocalPlan) -> LocalResults:
    """Everything, in one run."""
    began, load_before = time.monotonic(), os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="forkjoin-bench-") as name:
        directory = Path(name)
        say("the embedded Firestore")
        firestore = measure_firestore(
            directory, starts=plan.starts, rounds=plan.rounds, size=plan.documents
        )
        say("the Cloud Tasks emulator")
        cloud_tasks = measure_cloud_tasks(
            directory,
            rounds=plan.rounds,
            creates=plan.creates,
            dispatches=plan.dispatches,
            held=plan.held,
        )
        say("forkjoin local up")
        ups = [_up(directory / f"up{number}") for number in range(plan.starts)]
    seconds, used = ([up[part] for up in ups] for part in (0, 1))
    return LocalResults(
        plan, firestore, cloud_tasks, Ups(seconds, used), time.monotonic() - began, load_before
    )


def _up(directory: Path) -> tuple[float, float]:
    used, began = cpu_of_ended(), time.perf_counter()
    command = [sys.executable, "-m", "forkjoin_gcp.cli", "local", "up", "--dir", str(directory)]
    environment = {n: v for n, v in os.environ.items() if n != "FIRESTORE_EMULATOR_HOST"}
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stderr is not None
        said = []
        for line in process.stderr:
            said.append(line)
            if line.startswith(READY):
                break
        else:
            raise RuntimeError(f"forkjoin local up did not start: {''.join(said)}")
        seconds = time.perf_counter() - began
        process.send_signal(signal.SIGTERM)
        process.stderr.read()
    return seconds, cpu_of_ended() - used


def local_targets(results: LocalResults) -> list[Target]:
    """What the local services are held to, as measured."""
    firestore, tasks = results.firestore, results.cloud_tasks
    creates = [each.rate_a_core for each in tasks.named]
    rate = statistics.median(each.rate for each in firestore.batch_write)
    return [
        Target("embedded Firestore: until it is ready",
               statistics.median(firestore.ready_seconds), 1, at_least=False, unit="s"),
        Target("embedded Firestore: documents of 1 KB written a second, 100 a `BatchWrite`",
               rate, 15_000, at_least=True),
        Target(f"embedded Firestore: memory with {firestore.documents:,} of them",
               firestore.resident_mb, 400, at_least=False, unit="MB"),
        Target("Cloud Tasks emulator: creates with a name a second of its processor time",
               statistics.median(creates), 1_500, at_least=True),
        Target("Cloud Tasks emulator: 40 names in 4,000 creates at once, of which not exactly one "
               "was granted", tasks.wrong_names, 0, at_least=False),
        Target("Cloud Tasks emulator: dispatches a second, of a queue's 500",
               tasks.dispatch_rate, 490, at_least=True),
        Target("Cloud Tasks emulator: requests open at once",
               tasks.held_at_once, results.plan.held, at_least=True),
        Target("`forkjoin local up`: until all are ready",
               statistics.median(results.ups.seconds), 3, at_least=False, unit="s"),
    ]  # fmt: skip


def local_markdown(results: LocalResults) -> str:
    return "\n\n".join(
        [
            machine(results.plan.rounds, results.seconds, results.load_before),
            target_table(local_targets(results)),
            _processor(results),
        ]
    )


def _processor(results: LocalResults) -> str:
    """What a busy machine does not change much."""
    firestore, tasks = results.firestore, results.cloud_tasks

    def median(values: Sequence[float]) -> str:
        return number(statistics.median(values))

    rows = [
        ["embedded Firestore, until it is ready, s", median(firestore.ready_cpu_seconds)],
        ["writing a document of 1 KB by `BatchWrite`, µs",
         median([each.cpu_us for each in firestore.batch_write])],
        ["writing a document of 1 KB by `Commit`, µs",
         median([each.cpu_us for each in firestore.commit])],
        ["creating a task with a name, µs", median([1e6 / c.rate_a_core for c in tasks.named])],
        ["creating a task without one, µs", median([1e6 / c.rate_a_core for c in tasks.unnamed])],
        ["dispatching a task, µs", number(tasks.dispatch_cpu_us)],
        ["`forkjoin local up` to its end, all processes, s", median(results.ups.cpu_seconds)],
    ]  # fmt: skip
    return table(["processor time of", ""], rows)
