"""functions/main.py as it is deployed: under functions-framework, over HTTP, with signed tokens.

What is refused, and why, is in test_attacks.py.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from jwt.algorithms import RSAAlgorithm

from forkjoin_gcp.names import Batch, Lane
from forkjoin_gcp.tasks import ChunkTask, RootTask
from tests.integration.function_process import (
    MAIN,
    PATH,
    Function,
    environment,
    running_function,
)

INVOKER = "tasks@p.iam.gserviceaccount.com"
AUDIENCE = "https://join.example/forkjoin"
SECRET = "hunter2-the-payload"
FEEDS = RootTask(Batch(Lane("feeds", "v1"), 1_700_000_000_000))
TASK = FEEDS.body()
CHUNK = ChunkTask(FEEDS.batch, 100, 200, 3)
LIMIT = 65_536

# What a user puts beside main.py. It writes down what it is asked to do, and fails on demand.
QUEUES = f"""
import os
from forkjoin_gcp.config import Services
from forkjoin_gcp.errors import StoreUnavailable

class Queue:
    def __init__(self, name):
        self.name = name

    @property
    def services(self):
        return Services.from_env()

    def join(self, task, *, retry_count):
        with open(os.environ["RECORD"], "a") as record:
            record.write(f"{{self.name}} {{task.task_id}} {{retry_count}}\\n")
        if retry_count == 500:
            raise RuntimeError("{SECRET}")
        if retry_count == 503:
            raise StoreUnavailable("firestore is away")

feeds, urgent = Queue("feeds"), Queue("urgent")
text = "no queue"
"""


class Issuer:
    """Signs tokens, and publishes the key."""

    def __init__(self) -> None:
        self._key = rsa.generate_private_key(65_537, 2_048)
        public = RSAAlgorithm.to_jwk(self._key.public_key(), as_dict=True)
        key_set = {"keys": [{**public, "kid": "known", "alg": "RS256", "use": "sig"}]}

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = json.dumps(key_set).encode()
                self.send_response(200)
                self.send_header("Cache-Control", "public, max-age=3600")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.certs_url = f"http://127.0.0.1:{self.server.server_port}/certs"

    def token(self, **changes: str) -> str:
        now = int(time.time())
        claims = {
            "iss": "https://accounts.google.com",
            "aud": AUDIENCE,
            "sub": "1",
            "email": INVOKER,
            "email_verified": True,
            "iat": now,
            "exp": now + 3_600,
        }
        return jwt.encode(claims | changes, self._key, "RS256", headers={"kid": "known"})


@pytest.fixture(scope="module")
def issuer() -> Iterator[Issuer]:
    issuer = Issuer()
    thread = threading.Thread(target=issuer.server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield issuer
    finally:
        issuer.server.shutdown()
        issuer.server.server_close()
        thread.join()


@pytest.fixture(scope="module")
def function(issuer: Issuer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Function]:
    beside = tmp_path_factory.mktemp("function")
    (beside / "queues.py").write_text(QUEUES)
    with running_function(
        beside,
        FORKJOIN_QUEUE="queues:feeds, queues:urgent",
        FORKJOIN_JOIN_URL="https://ignored.example",
        FORKJOIN_AUDIENCE=AUDIENCE,
        FORKJOIN_INVOKER=INVOKER,
        FORKJOIN_CERTS_URL=issuer.certs_url,
    ) as running:
        yield running


@pytest.mark.parametrize("path", ["/", "/forkjoin", "/forkjoin?x=1"])
def test_a_task_is_joined(function: Function, issuer: Issuer, path: str) -> None:
    before = len(function.recorded())
    headers = {"X-CloudTasks-TaskRetryCount": "4", "X-CloudTasks-TaskName": "spoofed"}
    answer = function.post(CHUNK.body(), headers, path=path, token=issuer.token())
    assert (answer.status, answer.body) == (200, b"{}")
    assert function.recorded()[before:] == [f"feeds {CHUNK.task_id} 4"]


def test_every_queue_named_is_served(function: Function, issuer: Issuer) -> None:
    task = RootTask(Batch(Lane("urgent", "v1"), 8))
    assert function.post(task.body(), token=issuer.token()).status == 200
    assert function.recorded()[-1] == f"urgent {task.task_id} 0"


def chunked(body: bytes) -> Iterator[bytes]:
    for start in range(0, len(body), 4_096):
        yield body[start : start + 4_096]


def test_a_task_in_chunks_is_joined(function: Function, issuer: Issuer) -> None:
    answer = function.post(chunked(FEEDS.body().ljust(LIMIT)), token=issuer.token())
    assert answer.status == 200


@pytest.mark.parametrize("retry_count", ["503", "500"])
def test_a_failure_inside_is_tried_again_and_says_nothing(
    function: Function, issuer: Issuer, retry_count: str
) -> None:
    before = len(function.recorded())
    headers: dict[str, str | None] = {"X-CloudTasks-TaskRetryCount": retry_count}
    answer = function.post(TASK, headers, token=issuer.token())
    assert (answer.status, answer.error) == (503, "try again later")
    assert answer.headers["Retry-After"] == "5"
    assert len(function.recorded()) == before + 1


def test_an_unexpected_failure_is_logged_with_its_traceback(
    function: Function, issuer: Issuer
) -> None:
    function.post(TASK, {"X-CloudTasks-TaskRetryCount": "500"}, token=issuer.token())
    log = function.log.read_text()
    assert "Traceback" in log
    assert f"RuntimeError: {SECRET}" in log
    assert issuer.token()[:40] not in log


@pytest.mark.parametrize("token", [None, "good"])
def test_a_large_body_is_refused_before_it_is_sent(
    function: Function, issuer: Issuer, token: str | None
) -> None:
    """The answer comes though the client has sent only headers: nobody waits for 10 GB."""
    authorization = f"Authorization: Bearer {issuer.token()}\r\n" if token else ""
    head = (
        f"POST {PATH} HTTP/1.1\r\nHost: x\r\n{authorization}Content-Type: application/json\r\n"
        "Content-Length: 10000000000\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", function.port), 10) as connection:
        connection.sendall(head.encode())
        status_line = connection.recv(65_536).split(b"\r\n")[0]
    assert status_line.split()[1] == (b"413" if token else b"401")


def test_many_requests_at_once(function: Function, issuer: Issuer) -> None:
    before, token, answers = len(function.recorded()), issuer.token(), []

    def ask() -> None:
        answers.append(function.post(TASK, token=token).status)

    threads = [threading.Thread(target=ask) for _ in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [200] * 24
    assert len(function.recorded()) == before + 24


# Settings that stop the deployment

COMPLETE = {"FORKJOIN_JOIN_URL": AUDIENCE, "FORKJOIN_INVOKER": INVOKER}


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({}, "FORKJOIN_QUEUE is not set"),
        ({"FORKJOIN_QUEUE": " , "}, "FORKJOIN_QUEUE is not set"),
        ({"FORKJOIN_QUEUE": "queues"}, "FORKJOIN_QUEUE='queues': must be module:attribute"),
        ({"FORKJOIN_QUEUE": "queues:"}, "must be module:attribute"),
        ({"FORKJOIN_QUEUE": "nowhere:feeds"}, "no module 'nowhere'"),
        ({"FORKJOIN_QUEUE": "queues.deep:feeds"}, "no module 'queues.deep'"),
        ({"FORKJOIN_QUEUE": "queues:missing"}, "no attribute 'missing'"),
        ({"FORKJOIN_QUEUE": "queues:text"}, "not a queue but a str"),
        ({"FORKJOIN_QUEUE": "queues:Queue"}, "not a queue but a type"),
        ({"FORKJOIN_QUEUE": "broken:feeds"}, "No module named 'not_installed'"),
        ({"FORKJOIN_QUEUE": "queues:feeds", "FORKJOIN_INVOKER": ""}, "set FORKJOIN_INVOKER"),
        ({"FORKJOIN_QUEUE": "queues:feeds", "FORKJOIN_JOIN_URL": ""}, "set FORKJOIN_JOIN_URL"),
        ({"FORKJOIN_QUEUE": "queues:feeds,queues:feeds"}, ""),
        ({"FORKJOIN_QUEUE": "queues:feeds", "FUNCTION_TARGET": "sweep"}, "FORKJOIN_SWEEP_AUDIENCE"),
    ],
)
def test_a_wrong_setting_is_named(tmp_path: Path, variables: dict[str, str], says: str) -> None:
    (tmp_path / "queues.py").write_text(QUEUES)
    (tmp_path / "broken.py").write_text("import not_installed\n")
    done = subprocess.run(
        [sys.executable, str(MAIN)],
        env=environment(tmp_path, **{**COMPLETE, **variables}),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode == 0) == (not says)
    assert says in done.stderr
