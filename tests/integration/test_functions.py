"""functions/main.py as it is deployed: under functions-framework, over HTTP, with signed tokens."""

from __future__ import annotations

import configparser
import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPResponse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from jwt.algorithms import RSAAlgorithm
from packaging.requirements import Requirement

from forkjoin_gcp.names import Batch, Lane
from forkjoin_gcp.tasks import ChunkTask, RootTask

MAIN = Path(__file__).parents[2] / "functions" / "main.py"
PATH = "/forkjoin"
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


@dataclass
class Answer:
    status: int
    body: bytes
    headers: dict[str, str]

    @property
    def error(self) -> str | None:
        value = json.loads(self.body).get("error")
        assert value is None or isinstance(value, str)
        return value


class Issuer:
    """Signs tokens, and publishes the key of "known" only."""

    def __init__(self) -> None:
        self._keys = {name: rsa.generate_private_key(65_537, 2_048) for name in ("known", "other")}
        public = RSAAlgorithm.to_jwk(self._keys["known"].public_key(), as_dict=True)
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

    def token(self, key: str = "known", **changes: Any) -> str:
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
        return jwt.encode(claims | changes, self._keys[key], "RS256", headers={"kid": "known"})


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


def _command(port: int) -> list[str]:
    code = "from functions_framework._cli import _cli; _cli()"
    options = [
        "--source",
        str(MAIN),
        "--target",
        "join",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    return [sys.executable, "-c", code, *options]


def _environment(beside: Path, **variables: str) -> dict[str, str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith("FORKJOIN_")}
    places = [str(beside), str(MAIN.parents[1]), env.get("PYTHONPATH", "")]
    return {**env, "PYTHONPATH": os.pathsep.join(filter(None, places)), **variables}


@dataclass
class Function:
    """The running function: its port, what its queues did, and what it logged."""

    port: int
    record: Path
    log: Path

    def post(
        self,
        body: Any = TASK,
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

    def joined(self) -> list[str]:
        return self.record.read_text().splitlines() if self.record.exists() else []


def _answer(response: HTTPResponse) -> Answer:
    return Answer(response.status, response.read(), dict(response.headers))


@pytest.fixture(scope="module")
def function(issuer: Issuer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Function]:
    beside = tmp_path_factory.mktemp("function")
    (beside / "queues.py").write_text(QUEUES)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    running = Function(port, beside / "record", beside / "log")
    env = _environment(
        beside,
        RECORD=str(running.record),
        FORKJOIN_QUEUE="queues:feeds, queues:urgent",
        FORKJOIN_JOIN_URL="https://ignored.example",
        FORKJOIN_AUDIENCE=AUDIENCE,
        FORKJOIN_INVOKER=INVOKER,
        FORKJOIN_CERTS_URL=issuer.certs_url,
    )
    with running.log.open("wb") as log:
        process = subprocess.Popen(_command(port), env=env, cwd=beside, stdout=log, stderr=log)
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
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", running.port), 1):
            return
        time.sleep(0.05)
    pytest.fail(f"the function did not start: {running.log.read_text()}")


@pytest.mark.parametrize("path", ["/", "/forkjoin", "/forkjoin?x=1"])
def test_a_task_is_joined(function: Function, issuer: Issuer, path: str) -> None:
    before = len(function.joined())
    headers = {"X-CloudTasks-TaskRetryCount": "4", "X-CloudTasks-TaskName": "spoofed"}
    answer = function.post(CHUNK.body(), headers, path=path, token=issuer.token())
    assert (answer.status, answer.body) == (200, b"{}")
    assert function.joined()[before:] == [f"feeds {CHUNK.task_id} 4"]


def test_every_queue_named_is_served(function: Function, issuer: Issuer) -> None:
    task = RootTask(Batch(Lane("urgent", "v1"), 8))
    assert function.post(task.body(), token=issuer.token()).status == 200
    assert function.joined()[-1] == f"urgent {task.task_id} 0"


def chunked(body: bytes) -> Iterator[bytes]:
    for start in range(0, len(body), 4_096):
        yield body[start : start + 4_096]


def test_a_task_in_chunks_is_joined(function: Function, issuer: Issuer) -> None:
    answer = function.post(chunked(FEEDS.body().ljust(LIMIT)), token=issuer.token())
    assert answer.status == 200


Ask = Callable[[Function, Issuer], Answer]
WRONG: dict[str, tuple[Ask, int, str]] = {
    "get": (lambda f, i: f.post(None, method="GET", token=i.token()), 405, "only POST"),
    "put": (lambda f, i: f.post(method="PUT", token=i.token()), 405, "only POST"),
    "options": (lambda f, i: f.post(method="OPTIONS", token=i.token()), 405, "only POST"),
    "no method": (lambda f, i: f.post(method="PROPFIND", token=i.token()), 405, "only POST"),
    "no token": (lambda f, _: f.post(), 401, "no token"),
    "basic": (lambda f, _: f.post(headers={"Authorization": "Basic eDp5"}), 401, "not a bearer"),
    "garbage": (lambda f, _: f.post(token="garbage"), 401, "malformed"),
    "expired": (lambda f, i: f.post(token=i.token(exp=1)), 401, "expired"),
    "not yet valid": (
        lambda f, i: f.post(token=i.token(iat=int(time.time()) + 900)),
        401,
        "not valid yet",
    ),
    "audience": (lambda f, i: f.post(token=i.token(aud="https://a.example")), 401, "audience"),
    "issuer": (lambda f, i: f.post(token=i.token(iss="https://i.example")), 401, "issuer"),
    "account": (lambda f, i: f.post(token=i.token(email="x@y.z")), 403, "not the invoker"),
    "unverified": (
        lambda f, i: f.post(token=i.token(email_verified=False)),
        403,
        "not the invoker",
    ),
    "other key": (lambda f, i: f.post(token=i.token("other")), 401, "does not verify"),
    "signature off": (
        lambda f, i: f.post(token=i.token().rpartition(".")[0] + ".SIGNATURE_REMOVED_BY_GOOGLE"),
        401,
        "Cloud Run",
    ),
    "type": (
        lambda f, i: f.post(headers={"Content-Type": "text/plain"}, token=i.token()),
        415,
        "application/json",
    ),
    "no type": (
        lambda f, i: f.post(headers={"Content-Type": None}, token=i.token()),
        415,
        "application/json",
    ),
    "empty": (lambda f, i: f.post(b"", token=i.token()), 400, "Invalid JSON"),
    "not UTF-8": (lambda f, i: f.post(b'{"kind":"\xff"}', token=i.token()), 400, "Invalid JSON"),
    "nested": (lambda f, i: f.post(b"[" * LIMIT, token=i.token()), 400, "recursion limit"),
    "no task": (lambda f, i: f.post(b"{}", token=i.token()), 400, "kind"),
    "another queue": (
        lambda f, i: f.post(RootTask(Batch(Lane("x", "v1"), 7)).body(), token=i.token()),
        404,
        "'x'",
    ),
    "too large": (lambda f, i: f.post(b" " * (LIMIT + 1), token=i.token()), 413, "65,536"),
    "too large, in chunks": (
        lambda f, i: f.post(chunked(b" " * (LIMIT + 1)), token=i.token()),
        413,
        "65,536",
    ),
    "handlers' machinery": (
        lambda f, i: f.post(headers={"X-CloudTasks-TaskRetryCount": "503"}, token=i.token()),
        503,
        "try again later",
    ),
    "unexpected": (
        lambda f, i: f.post(headers={"X-CloudTasks-TaskRetryCount": "500"}, token=i.token()),
        503,
        "try again later",
    ),
}


@pytest.mark.parametrize(("ask", "status", "says"), WRONG.values(), ids=WRONG)
def test_a_wrong_request_is_refused(
    function: Function, issuer: Issuer, ask: Ask, status: int, says: str
) -> None:
    before = len(function.joined())
    answer = ask(function, issuer)
    assert answer.status == status
    assert says in (answer.error or "")
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.headers.get("Allow") == ("POST" if status == 405 else None)
    assert ("WWW-Authenticate" in answer.headers) == (status in (401, 403))
    assert ("Retry-After" in answer.headers) == (status == 503)
    assert SECRET.encode() not in answer.body
    assert b"Traceback" not in answer.body
    assert (len(function.joined()) > before) == (status == 503)


def test_an_unexpected_failure_is_logged_with_its_traceback(
    function: Function, issuer: Issuer
) -> None:
    function.post(headers={"X-CloudTasks-TaskRetryCount": "500"}, token=issuer.token())
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
    before, token, answers = len(function.joined()), issuer.token(), []

    def ask() -> None:
        answers.append(function.post(token=token).status)

    threads = [threading.Thread(target=ask) for _ in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [200] * 24
    assert len(function.joined()) == before + 24


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
        env=_environment(tmp_path, **{**COMPLETE, **variables}),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode == 0) == (not says)
    assert says in done.stderr


def test_it_requires_the_version_beside_it() -> None:
    requirements = (MAIN.parent / "requirements.txt").read_text().split()
    wanted = {found.name: found for found in map(Requirement, requirements)}
    settings = configparser.ConfigParser()
    settings.read(MAIN.parents[1] / "setup.cfg")
    assert wanted["forkjoin-gcp"].specifier.contains(settings["metadata"]["version"])
    assert wanted["functions-framework"].specifier.contains(version("functions-framework"))
