"""functions/main.py as it is deployed: under functions-framework, a process of its own."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import Any

import pytest

from forkjoin_gcp.emulators.processes import free_port

MAIN = Path(__file__).parents[2] / "functions" / "main.py"
PATH = "/forkjoin"
READY_SECONDS = 60.0


@dataclass
class Answer:
    """One answer of the function, or of the server that it runs under."""

    status: int
    body: bytes
    headers: dict[str, str]

    @property
    def error(self) -> str | None:
        value = json.loads(self.body).get("error")
        assert value is None or isinstance(value, str)
        return value


@dataclass
class Function:
    """The running function: its port, what its queues wrote down, and what it logged."""

    port: int
    record: Path
    log: Path

    def post(
        self,
        body: Any,
        headers: dict[str, str | None] | None = None,
        *,
        method: str = "POST",
        path: str = PATH,
        token: str | None = None,
    ) -> Answer:
        """One request. A header set to None is left out; an iterable body is sent in chunks."""
        given = {"Content-Type": "application/json", **(headers or {})}
        if token is not None:
            given["Authorization"] = f"Bearer {token}"
        sent = {name: value for name, value in given.items() if value is not None}
        with contextlib.closing(HTTPConnection("127.0.0.1", self.port, timeout=20)) as connection:
            connection.request(method, path, body, sent)
            return _answer(connection.getresponse())

    def send(self, raw: bytes, *, end: bool = False) -> Answer:
        """Bytes as they are, and the first answer. With ``end`` nothing more is to follow."""
        with socket.create_connection(("127.0.0.1", self.port), 20) as connection:
            connection.sendall(raw)
            if end:
                connection.shutdown(socket.SHUT_WR)
            response = HTTPResponse(connection)
            response.begin()
            return _answer(response)

    def recorded(self) -> list[str]:
        return self.record.read_text().splitlines() if self.record.exists() else []


def _answer(response: HTTPResponse) -> Answer:
    return Answer(response.status, response.read(), dict(response.headers))


def environment(beside: Path, **variables: str) -> dict[str, str]:
    """This process's variables without its settings, with these, for a main.py that finds its
    queues in the directory ``beside``."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("FORKJOIN_")}
    places = [str(beside), str(MAIN.parents[1]), env.get("PYTHONPATH", "")]
    return {**env, "PYTHONPATH": os.pathsep.join(filter(None, places)), **variables}


@contextlib.contextmanager
def running_function(
    beside: Path, port: int = 0, target: str = "join", **variables: str
) -> Iterator[Function]:
    """The function, answering. RECORD names the file that its queues may write to."""
    running = Function(port or free_port(), beside / "record", beside / "log")
    env = environment(beside, RECORD=str(running.record), **variables)
    code = "from functions_framework._cli import _cli; _cli()"
    options = ["--source", str(MAIN), "--target", target, "--host", "127.0.0.1"]
    command = [sys.executable, "-c", code, *options, "--port", str(running.port)]
    with running.log.open("wb") as log:
        process = subprocess.Popen(command, env=env, cwd=beside, stdout=log, stderr=log)
    try:
        _wait_until_up(process, running)
        yield running
    finally:
        process.terminate()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_until_up(process: subprocess.Popen[bytes], running: Function) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", running.port), 1):
            return
        time.sleep(0.05)
    pytest.fail(f"the function did not start: {running.log.read_text()}")
