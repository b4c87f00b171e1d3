"""`python -m benchmarks.outage`: Memorystore goes away under a steady load, and comes back.

Local services, a process that enqueues, and this one, which serves the join endpoint and stops
Valkey: with SIGSTOP, so that it takes connections and never answers, or with SIGKILL, so that it
refuses them until another is started in its place. Thirty seconds at 500 items/s unless told.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import flask

from benchmarks.figures import percentile
from benchmarks.stage import say, wait_until
from forkjoin_gcp import ForkJoinQueue, Item, Services, join_blueprint
from forkjoin_gcp.config import Settings
from forkjoin_gcp.emulators import LocalServices
from forkjoin_gcp.emulators.processes import free_port
from forkjoin_gcp.emulators.valkey import ValkeyService
from forkjoin_gcp.testing.local import serving

Mode = Literal["stop", "kill"]
DRAIN_SECONDS = 180.0
"""How long all that was accepted may take to be handled after the last call."""


@dataclass(frozen=True)
class Course:
    """What is done. Times are seconds."""

    mode: Mode
    seconds: float = 30.0
    rate: float = 500.0
    around: float = 3.0
    """Of steady load before and after."""
    settings: Settings = field(default_factory=lambda: Settings())


@dataclass(frozen=True)
class Outcome:
    """What came of it. Waits are the seconds that calls took which began in the outage."""

    course: Course
    accepted: int
    failed: dict[str, int]
    waits: list[float]
    waits_before: list[float]
    lost: int
    twice: int
    drained_seconds: float
    counters: dict[str, int]

    def report(self) -> str:
        """A few lines for people."""
        limit = 2 * self.counters_limit
        return "\n".join(
            [
                f"Memorystore {self.course.mode}ped for {self.course.seconds:g} s "
                f"at {self.course.rate:g} items/s".replace("killped", "killed"),
                f"  accepted {self.accepted:,}, failed {sum(self.failed.values())} {self.failed}",
                f"  enqueue during the outage: p50 {percentile(self.waits, 0.5) * 1000:.0f} ms, "
                f"p99 {percentile(self.waits, 0.99) * 1000:.0f} ms, "
                f"longest {max(self.waits) * 1000:.0f} ms (to be below {limit * 1000:.0f} ms)",
                f"  before it: p50 {percentile(self.waits_before, 0.5) * 1000:.0f} ms, "
                f"p99 {percentile(self.waits_before, 0.99) * 1000:.0f} ms",
                f"  lost {self.lost}, handled more than once {self.twice}; "
                f"all handled {self.drained_seconds:.1f} s after the last call",
                f"  {self.counters}",
            ]
        )

    @property
    def counters_limit(self) -> float:
        """acquire_timeout."""
        return self.course.settings.get("acquire_timeout", 1.0)


def run(course: Course, local: LocalServices) -> Outcome:
    """One course on running local services, with a Valkey of its own."""
    name = f"outage-{os.getpid()}-{course.mode}"
    seen: Counter[str] = Counter()
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        valkey = _Valkey(directory)
        stack.callback(valkey.end)
        app = flask.Flask("outage")
        port = stack.enter_context(serving(app))
        environment = local.environment() | {
            "FORKJOIN_MEMORYSTORE": f"redis://{valkey.address}",
            "FORKJOIN_JOIN_URL": f"http://127.0.0.1:{port}/forkjoin",
        }
        services = Services.from_env(environment)
        queue = ForkJoinQueue(name, services=services, **course.settings)
        stack.enter_context(queue)

        @queue.handler
        async def note(item: Item[dict[str, Any]]) -> None:
            seen[item.id] += 1

        app.register_blueprint(join_blueprint(queue))
        local.create_queue(queue.config.task_queue(1))
        ledger = directory / "ledger.json"
        with _load(course, name, ledger, environment):
            time.sleep(course.around)
            gone = time.monotonic()
            valkey.leave(course.mode)
            time.sleep(course.seconds)
            valkey.come_back(course.mode)
            back = time.monotonic()
            time.sleep(course.around)
        told = json.loads(ledger.read_text())
        ended = time.monotonic()
        accepted = [one for _, _, one, _ in told["calls"] if one]
        with contextlib.suppress(TimeoutError):
            wait_until(lambda: len(seen) >= len(accepted), DRAIN_SECONDS, "all handled")
        drained = time.monotonic() - ended
    return Outcome(
        course,
        len(accepted),
        dict(Counter(error for *_, error in told["calls"] if error)),
        [took for began, took, *_ in told["calls"] if gone <= began < back],
        [took for began, took, *_ in told["calls"] if began < gone],
        len(set(accepted) - seen.keys()),
        sum(1 for times in seen.values() if times > 1),
        drained,
        told["counters"],
    )


class _Valkey:
    """A server that goes away, and its successor on the same port."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._port = free_port()
        self._start()

    @property
    def address(self) -> str:
        return self._service.address

    def leave(self, mode: Mode) -> None:
        number = signal.SIGSTOP if mode == "stop" else signal.SIGKILL
        os.killpg(self._service.process.pid, number)

    def come_back(self, mode: Mode) -> None:
        if mode == "stop":
            os.killpg(self._service.process.pid, signal.SIGCONT)
        else:
            self._service.stop()
            self._start()

    def end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._service.process.pid, signal.SIGCONT)
        self._service.stop()

    def _start(self) -> None:
        self._service = ValkeyService(self._directory, port=self._port)
        self._service.wait_ready()


@contextlib.contextmanager
def _load(course: Course, name: str, ledger: Path, environment: dict[str, str]) -> Iterator[None]:
    """A steady load while the context lasts; when it is over, the ledger is there."""
    command = [sys.executable, "-m", "benchmarks.steady", name, str(course.rate), str(ledger)]
    process = subprocess.Popen(
        [*command, json.dumps(course.settings)],
        env=os.environ | environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    watchdog = threading.Timer(course.seconds + 2 * course.around + DRAIN_SECONDS, process.kill)
    watchdog.start()
    try:
        assert process.stdout.readline(), "the load began"
        yield
        process.stdin.close()
        assert process.wait() == 0, "the load ended well"
    finally:
        watchdog.cancel()
        process.kill()
        process.wait()
        process.stdout.close()
        process.stdin.close()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.outage", description=__doc__)
    parser.add_argument("--seconds", type=float, default=30.0, help="of outage")
    parser.add_argument("--rate", type=float, default=500.0, help="items per second")
    parser.add_argument("--mode", choices=("stop", "kill", "both"), default="both")
    options = parser.parse_args()
    modes: list[Mode] = ["stop", "kill"] if options.mode == "both" else [options.mode]
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    failed = False
    with LocalServices.start(project="forkjoin-outage") as local:
        for mode in modes:
            say(f"{mode}: {options.seconds:g} s at {options.rate:g} items/s")
            outcome = run(Course(mode, options.seconds, options.rate), local)
            print(outcome.report())
            failed |= bool(outcome.failed or outcome.lost)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
