"""All processes under chaos: three services with persistence, two that enqueue, two that join."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import redis

from forkjoin_gcp.emulators import LocalServices
from forkjoin_gcp.emulators.cloud_tasks_service import CloudTasksService
from forkjoin_gcp.emulators.firestore_embedded_service import EmbeddedFirestoreService
from forkjoin_gcp.emulators.processes import ChildProcess, free_port, http_answers
from forkjoin_gcp.emulators.valkey import ValkeyService
from tests.chaos.members import Answering, Member, Started
from tests.chaos.pieces import HANDLED, NAME

ROOT = Path(__file__).resolve().parents[2]
READY_SECONDS = 60.0
LOST_SHARE = 0.05
FAULTS: Mapping[str, Any] = {
    "deliver_twice": 0.05,
    "delay": {"probability": 0.1, "seconds": 2.0},
    "reorder": 0.2,
    "lose_create_answer": 0.05,
    "refuse": {"probability": 0.02, "code": "UNAVAILABLE", "methods": ["CreateTask"]},
}
"""Of the Cloud Tasks emulator, all the time."""


class Stack:
    """Everything, each process a Member, on ports that stay the same when it is started anew."""

    def __init__(self, local: LocalServices, directory: Path, data: Path, seed: int) -> None:
        self.local = local
        self._directory = directory
        self._data = data
        self._seed = seed
        self._ports = {name: free_port() for name in ("front", "join-1", "join-2", "in-1", "in-2")}
        self.handled = directory / "handled"
        self.handled.mkdir()
        variables = local.environment()
        variables["FORKJOIN_JOIN_URL"] = f"http://127.0.0.1:{self.front_port}/"
        self.variables = variables
        valkey, firestore, tasks, tasks_http = self._service_ports()
        running = {process.name: process for process in local.processes}
        self.services = [
            self._service(
                running["valkey"], lambda: ValkeyService(directory, data=data, port=valkey)
            ),
            self._service(
                running["firestore"],
                lambda: EmbeddedFirestoreService(directory, data=data, port=firestore),
            ),
            self._service(
                running["cloud-tasks"], lambda: CloudTasksService(directory, data=data, port=tasks)
            ),
        ]
        self._tasks_http = f"127.0.0.1:{tasks_http}"
        self.joins = [self._member(name, self._join) for name in ("join-1", "join-2")]
        self.enqueuers = [
            self._member("in-1", self._threads),
            self._member("in-2", self._loop),
        ]

    @property
    def members(self) -> list[Member]:
        return [*self.services, *self.joins, *self.enqueuers]

    @property
    def front_port(self) -> int:
        return self._ports["front"]

    @property
    def join_addresses(self) -> list[tuple[str, int]]:
        return [("127.0.0.1", self._ports[name]) for name in ("join-1", "join-2")]

    @property
    def enqueuers_addresses(self) -> list[str]:
        return [f"127.0.0.1:{self._ports[name]}" for name in ("in-1", "in-2")]

    def start(self) -> None:
        """Raises LocalServiceError, by a member that does not come up."""
        self.local.create_queue(f"{NAME}-1", min_backoff=0.1, max_backoff=1.0, max_attempts=-1)
        self.set_faults(FAULTS)
        for member in [*self.joins, *self.enqueuers]:
            member.start()

    def end(self) -> None:
        for member in self.members:
            member.end()

    def set_faults(self, faults: Mapping[str, Any]) -> None:
        """Exactly these, until the emulator is started anew."""
        body = json.dumps({**faults, "seed": self._seed})
        connection = http.client.HTTPConnection(self._tasks_http, timeout=10)
        with contextlib.closing(connection):
            connection.request("PUT", "/faults", body)
            answer = connection.getresponse()
            assert answer.status == 200, answer.read()

    @contextlib.contextmanager
    def valkey(self) -> Iterator[redis.Redis]:
        client = redis.Redis.from_url(self.variables["FORKJOIN_MEMORYSTORE"], socket_timeout=5)
        with contextlib.closing(client):
            yield client

    def _service_ports(self) -> tuple[int, int, int, int]:
        hosts = ("FORKJOIN_MEMORYSTORE", "FIRESTORE_EMULATOR_HOST", "CLOUD_TASKS_EMULATOR_HOST")
        ports = [int(self.variables[name].rpartition(":")[2]) for name in hosts]
        return (*ports, int(self.local.cloud_tasks_admin.rpartition(":")[2]))  # type: ignore[return-value]

    def _service(self, running: ChildProcess, start: Callable[[], Started]) -> Member:
        is_tasks = running.name == "cloud-tasks"
        when_ready = (lambda: self.set_faults(FAULTS)) if is_tasks else None
        up = Answering(running, lambda: True, READY_SECONDS)
        return Member(running.name, start, up, when_ready=when_ready)

    def _member(self, name: str, start: Callable[[str], ChildProcess]) -> Member:
        address = f"127.0.0.1:{self._ports[name]}"

        def answers() -> bool:
            # The join function answers 405, which is answer enough.
            return http_answers(address, "/") or _answers_405(address)

        return Member(name, lambda: Answering(start(name), answers, READY_SECONDS))

    def _join(self, name: str) -> ChildProcess:
        return self._child(
            name,
            *("-m", "functions_framework", "--source", str(ROOT / "functions" / "main.py")),
            *("--target", "join", "--host", "127.0.0.1", "--port", str(self._ports[name])),
        )

    def _threads(self, name: str) -> ChildProcess:
        return self._child(
            name,
            *(
                "-m",
                "gunicorn",
                "--workers",
                "1",
                "--threads",
                "64",
                "--timeout",
                "0",
                "--no-control-socket",
            ),
            *("--bind", f"127.0.0.1:{self._ports[name]}", "tests.chaos.service:app"),
        )

    def _loop(self, name: str) -> ChildProcess:
        return self._child(name, "-m", "tests.chaos.loop_service", str(self._ports[name]))

    def _child(self, name: str, *arguments: str) -> ChildProcess:
        kept = {key: value for key, value in os.environ.items() if not key.startswith("FORKJOIN_")}
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        variables = {
            **self.variables,
            "FORKJOIN_QUEUE": "tests.chaos.pieces:pieces",
            "THREADS": "16",
            HANDLED: str(self.handled),
            "PYTHONPATH": path,
        }
        log = self._directory / f"{name}.log"
        return ChildProcess(name, [sys.executable, *arguments], log, env={**kept, **variables})


def _answers_405(address: str) -> bool:
    connection = http.client.HTTPConnection(address, timeout=1.0)
    with contextlib.closing(connection):
        try:
            connection.request("GET", "/")
            return connection.getresponse().status == 405
        except (OSError, http.client.HTTPException):
            return False
