"""`python -m benchmarks.cold_start`: what an instance of the join function does before it works.

Each round starts the function anew, as a new instance does: its import, until it listens, and the
first and second join request of 100 items each on the local services, without token checks.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

from forkjoin_gcp import ForkJoinQueue, Services
from forkjoin_gcp.emulators import LocalServices
from forkjoin_gcp.emulators.processes import ChildProcess, free_port
from forkjoin_gcp.names import Batch, Lane
from forkjoin_gcp.tasks import RootTask

ROOT = Path(__file__).parents[1]
ITEMS = 100
SECONDS = 120.0
MODULE = """
from forkjoin_gcp import ForkJoinQueue
cold = ForkJoinQueue("cold")
@cold.handler
async def handle(item): pass
"""
_IMPORT = """
import sys, time
sys.path.insert(0, {!r})
wall, cpu = time.perf_counter(), time.process_time()
import main
print(time.perf_counter() - wall, time.process_time() - cpu)
"""


@dataclass(frozen=True, slots=True)
class ColdStart:
    """One start, in seconds. ``first`` and ``second`` are join requests of 100 items each."""

    import_wall: float
    import_cpu: float
    listening: float
    first: float
    second: float


LABELS = {
    "import_wall": "import of `functions/main.py`, with a queue",
    "import_cpu": "the same, CPU",
    "listening": "start of functions-framework until it listens",
    "first": "first join request, 100 items, sent as soon as it listens",
    "second": "second join request, 100 items",
}


def measure(rounds: int) -> list[ColdStart]:
    """That many starts, one after another; one more first, which fills the caches."""
    with tempfile.TemporaryDirectory() as text, LocalServices.start() as local:
        directory = Path(text)
        (directory / "colds.py").write_text(MODULE)
        local.create_queue("cold-1", max_dispatches_per_second=0.001, max_attempts=1)
        return [_start(directory, local) for _ in range(rounds + 1)][1:]


def table(starts: list[ColdStart]) -> str:
    """Median and range of each figure, as Markdown."""
    lines = ["| what | median | range |", "| --- | --- | --- |"]
    for field in fields(ColdStart):
        values = [getattr(start, field.name) for start in starts]
        low, middle, high = min(values), statistics.median(values), max(values)
        lines.append(f"| {LABELS[field.name]} | {middle:.2f} s | {low:.2f} – {high:.2f} s |")
    return "\n".join(lines)


def _start(directory: Path, local: LocalServices) -> ColdStart:
    port = free_port()
    environ = {name: text for name, text in os.environ.items() if not name.startswith("FORKJOIN_")}
    environ |= local.environment() | {
        "FORKJOIN_QUEUE": "colds:cold",
        "FORKJOIN_JOIN_URL": "http://127.0.0.1:9/forkjoin",  # what is scheduled goes nowhere
        "FORKJOIN_ALLOW_UNAUTHENTICATED": "true",
        "PYTHONPATH": os.pathsep.join([str(directory), str(ROOT)]),
    }
    program = [sys.executable, "-c", _IMPORT.format(str(ROOT / "functions"))]
    answer = subprocess.run(
        program, env=environ, capture_output=True, text=True, timeout=SECONDS, check=True
    )
    wall, cpu = map(float, answer.stdout.split()[-2:])
    batches = list(_batches(environ))
    command = [str(Path(sys.executable).with_name("functions-framework"))]
    command += ["--source", str(ROOT / "functions" / "main.py"), "--target", "join"]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    began = time.perf_counter()
    child = ChildProcess("function", command, directory / "log", env=environ)
    try:
        child.wait_ready(lambda: _listens(port), SECONDS)
        listening = time.perf_counter() - began
        first, second = (_join(port, batch) for batch in batches)
    finally:
        child.stop()
    return ColdStart(wall, cpu, listening, first, second)


def _batches(environ: dict[str, str]) -> Iterator[Batch]:
    """Two batches that wait to be joined."""
    services = Services.from_env(environ)
    for _ in range(2):
        with ForkJoinQueue("cold", services=services, batch_period=0) as queue:
            ids = queue.enqueue_many({"n": n} for n in range(ITEMS))
        lane = Lane("cold", "v1")
        yield Batch.parse(lane.queue, lane.version, ids[0].rpartition("-")[0])


def _listens(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=1)
    with contextlib.suppress(OSError), contextlib.closing(connection):
        connection.connect()
        return True
    return False


def _join(port: int, batch: Batch) -> float:
    began = time.perf_counter()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS)
    with contextlib.closing(connection):
        headers = {"Content-Type": "application/json"}
        connection.request("POST", "/forkjoin", RootTask(batch).body(), headers)
        response = connection.getresponse()
        if response.status != 200:
            raise SystemExit(f"joining answered {response.status}: {response.read()!r}")
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cold_start", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, choices=range(1, 51), metavar="1..50")
    options = parser.parse_args()
    load = os.getloadavg()[0]
    print(table(measure(options.rounds)))
    print(f"\n{options.rounds} rounds; load average before {load:.1f}, {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
