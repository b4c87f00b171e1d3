"""examples/service_async as it is deployed: uvicorn in a process of its own, and the function."""

from __future__ import annotations

import contextlib
import http.client
import json
import shutil
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import flask
import pytest

from forkjoin_gcp.emulators import LocalServices
from forkjoin_gcp.emulators.processes import free_port
from tests.integration.conftest import serving, wait_until
from tests.integration.function_process import environment, running_function

SERVICE = Path(__file__).parents[2] / "examples" / "service_async"


class Receiver:
    """Whom events are delivered to: notes them, fails each of /again once, refuses /never."""

    def __init__(self) -> None:
        self.app = flask.Flask(uuid.uuid4().hex)
        self.app.add_url_rule("/<path>", view_func=self._receive, methods=["POST"])
        self.received: dict[str, Any] = {}
        self.tries: list[str] = []
        self._lock = threading.Lock()

    def _receive(self, path: str) -> tuple[str, int]:
        key = flask.request.headers["Idempotency-Key"]
        with self._lock:
            again = key in self.tries
            self.tries.append(key)
            if path == "never" or (path == "again" and not again):
                return "", 404 if path == "never" else 503
            self.received[key] = flask.request.get_json()
        return "", 204


@dataclass
class Service:
    """The running service."""

    port: int
    process: subprocess.Popen[bytes]
    log: Path

    def ask(self, method: str, path: str, body: Any = None) -> tuple[int, Any, Any]:
        """Status, JSON and headers of the answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        with contextlib.closing(connection):
            headers = {"Content-Type": "application/json"}
            connection.request(
                method, path, json.dumps(body) if body is not None else None, headers
            )
            response = connection.getresponse()
            return response.status, json.loads(response.read()), response.headers


@contextlib.contextmanager
def running_service(directory: Path, variables: dict[str, str]) -> Iterator[Service]:
    """uvicorn with the service, answering its probe."""
    port, log = free_port(), directory / "service.log"
    command = [sys.executable, "-m", "uvicorn", "service:app", "--host", "127.0.0.1"]
    with log.open("wb") as sink:
        process = subprocess.Popen(
            [*command, "--port", str(port)],
            cwd=SERVICE, env=environment(SERVICE, **variables), stdout=sink, stderr=sink,
        )  # fmt: skip
    service = Service(port, process, log)

    def answers() -> bool:
        assert process.poll() is None, log.read_text()
        with contextlib.suppress(OSError):
            return service.ask("GET", "/healthz")[0] == 200
        return False

    try:
        wait_until(answers, 60)
        yield service
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def variables(local_services: LocalServices) -> dict[str, str]:
    environ = local_services.environment()
    environ["FORKJOIN_PROJECT"] = f"test-{uuid.uuid4().hex[:12]}"
    return environ


def test_events_get_to_their_receivers(
    local_services: LocalServices, variables: dict[str, str], tmp_path: Path
) -> None:
    receiver, join_port = Receiver(), free_port()
    variables |= {
        "FORKJOIN_PROJECT": local_services.project,
        "FORKJOIN_JOIN_URL": f"http://127.0.0.1:{join_port}/forkjoin",
        "FORKJOIN_QUEUE": "webhooks:webhooks",
    }
    local_services.create_queue("webhooks-1", max_attempts=-1)
    beside = tmp_path / "function"
    beside.mkdir()
    shutil.copy(SERVICE / "webhooks.py", beside)
    with (
        serving(receiver.app) as port,
        running_service(tmp_path, variables) as service,
        running_function(beside, join_port, **variables),
    ):
        url = f"http://127.0.0.1:{port}"

        def post(number: int) -> str:
            event = {"url": f"{url}/now", "event": {"n": number}}
            status, answer, _ = service.ask("POST", "/webhooks", event)
            assert status == 202, answer
            return str(answer["id"])

        with ThreadPoolExecutor(20) as pool:
            ids = list(pool.map(post, range(60)))
        batch = [{"url": f"{url}/now", "event": {"n": n}} for n in range(60, 200)]
        status, answer, _ = service.ask("POST", "/webhooks/batch", batch)
        assert (status, len(answer["ids"])) == (202, 140)
        ids += answer["ids"]
        assert len(set(ids)) == 200
        _, refused, _ = service.ask("POST", "/webhooks", {"url": f"{url}/never", "event": {}})
        wait_until(lambda: len(receiver.received) >= 200 and refused["id"] in receiver.tries)
        assert {key: event["n"] for key, event in receiver.received.items()} == dict(
            zip(ids, range(200), strict=True)
        )
        assert receiver.tries.count(refused["id"]) == 1, "it is rejected, and not tried again"

        service.process.send_signal(signal.SIGTERM)
        assert service.process.wait(20) in (0, -signal.SIGTERM), service.log.read_text()
        assert "Application shutdown complete" in service.log.read_text()


def test_what_is_wrong_is_answered(variables: dict[str, str], tmp_path: Path) -> None:
    variables |= {
        "FORKJOIN_JOIN_URL": "http://127.0.0.1:9/forkjoin",
        "FIRESTORE_EMULATOR_HOST": f"127.0.0.1:{free_port()}",  # away
    }
    event = {"url": "http://127.0.0.1:9/", "event": {}}
    with running_service(tmp_path, variables) as service:
        assert service.ask("GET", "/healthz")[0] == 200
        status, answer, _ = service.ask("POST", "/webhooks", {"url": "nowhere", "event": {}})
        assert (status, answer["detail"][0]["loc"]) == (422, ["body", "url"])
        assert service.ask("POST", "/webhooks/batch", [])[0] == 422
        large = {**event, "event": {"text": "x" * 1_000_000}}
        status, answer, _ = service.ask("POST", "/webhooks", large)
        assert (status, "bytes" in answer["detail"]) == (400, True), answer
        status, answer, headers = service.ask("POST", "/webhooks", event)
        assert (status, answer) == (503, {"detail": "try again later"})
        assert headers["Retry-After"] == "1"
