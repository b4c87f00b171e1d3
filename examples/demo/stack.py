"""Every process of the demo: started together, watched, ended together."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from forkjoin_gcp.emulators import LocalServiceError, LocalServices
from forkjoin_gcp.emulators.processes import LOOPBACK, ChildProcess, free_port

from . import interrupts, joins

QUEUE = "pages"
ROOT = Path(__file__).resolve().parents[2]
SERVICE = ROOT / "examples" / "service"
FUNCTION = ROOT / "functions" / "main.py"
READY_SECONDS = 60.0
GRACE_SECONDS = 2.0
"""For what is in flight at the end: nothing, but after an interrupt."""


@dataclass(frozen=True)
class Logs:
    """Where the processes write; all of it is in one directory."""

    directory: Path

    @property
    def results(self) -> Path:
        """One line a handled item, in the order they were handled."""
        return self.directory / "handled.jsonl"

    @property
    def joins(self) -> Path:
        """One line a request to the join function."""
        return self.directory / "joins.jsonl"

    def clear(self) -> None:
        """Remove what an earlier run left, and nothing else."""
        self.directory.mkdir(parents=True, exist_ok=True)
        for old in (self.results, self.joins, *self.directory.glob("*.log")):
            old.unlink(missing_ok=True)
        self.results.touch()
        self.joins.touch()


class Stack:
    """The three local services, the origin, the join function and the example service, ready."""

    def __init__(self, local: LocalServices, logs: Logs, join: int, service: int) -> None:
        self.local = local
        self.logs = logs
        self.origin = ""
        self.join = f"{LOOPBACK}:{join}"
        self.service = f"{LOOPBACK}:{service}"
        self.children: list[ChildProcess] = []

    def check(self) -> None:
        """Raise LocalServiceError if a process has ended by itself."""
        for child in [*self.local.processes, *self.children]:
            if not child.running:
                raise child.failure("ended by itself")

    def start(self) -> None:
        """Start the children and wait until they answer. Raises LocalServiceError."""
        origin = self._child("origin", "-m", "examples.demo.origin", piped=True)
        join = self._child(
            *("join", "-m", "functions_framework", "--source", str(FUNCTION), "--target", "join"),
            *("--host", LOOPBACK, "--port", self.join.rpartition(":")[2]),
        )
        service = self._child(
            *("service", "-m", "gunicorn", "--config", str(SERVICE / "gunicorn.conf.py")),
            *("--chdir", str(SERVICE), "--bind", self.service, "app:app"),
        )
        self.origin = json.loads(origin.read_line(READY_SECONDS))["address"]
        self.local.create_queue(f"{QUEUE}-1")
        join.wait_ready(lambda: _status(self.join, "/") == 405, READY_SECONDS)
        service.wait_ready(lambda: _status(self.service, "/healthz") == 200, READY_SECONDS)

    def _child(self, name: str, *arguments: str, piped: bool = False) -> ChildProcess:
        child = ChildProcess(
            name,
            [sys.executable, *arguments],
            self.logs.directory / f"{name}.log",
            env=self._environment(),
            piped=piped,
            grace=GRACE_SECONDS,
        )
        self.children.append(child)
        return child

    def _environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not _is_setting(name)}
        path = [str(ROOT), str(SERVICE), os.environ.get("PYTHONPATH", "")]
        return {
            **kept,
            **self.local.environment(),
            "PYTHONPATH": os.pathsep.join(filter(None, path)),
            "FORKJOIN_JOIN_URL": f"http://{self.join}/",
            "FORKJOIN_QUEUE": "examples.demo.join_pages:pages",
            "THREADS": "16",
            "RESULTS_FILE": str(self.logs.results),
            joins.VARIABLE: str(self.logs.joins),
        }

    def stop(self) -> None:
        """End everything and wait for it."""
        for child in self.children:
            child.ask_to_stop()
        self.local.stop()
        for child in self.children:
            child.stop()


@contextlib.contextmanager
def running(logs: Logs) -> Iterator[Stack]:
    """Everything, up and ready; all of it is gone when the block is left.

    Raises LocalServiceError when something is missing, does not start or dies.
    """
    for variable in ("no_proxy", "NO_PROXY"):  # no proxy can reach what listens on this machine
        os.environ[variable] = ",".join(filter(None, (os.environ.get(variable), LOOPBACK)))
    with LocalServices.start(logs.directory) as local:
        stack = Stack(local, logs, free_port(), free_port())
        try:
            stack.start()
            yield stack
        finally:
            with interrupts.held():
                stack.stop()


def brief(error: LocalServiceError) -> str:
    """The error in one sentence or two: the end of a log is left in the log."""
    said, _, rest = str(error).partition(" The end of its log ")
    return f"{said} See {rest.partition(':')[0]}." if rest else said


def _status(address: str, path: str) -> int | None:
    """The status that an HTTP server at host:port answers GET with, None where it does not."""
    connection = http.client.HTTPConnection(address, timeout=5.0)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def _is_setting(name: str) -> bool:
    """Whether a variable could be left over from a real deployment."""
    return name.startswith("FORKJOIN_") or name in ("GOOGLE_CLOUD_PROJECT", "GUNICORN_CMD_ARGS")
