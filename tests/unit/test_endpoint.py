"""What the join endpoint answers, asked through each of its doors."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any

import flask
import pytest
from hypothesis import given
from hypothesis import strategies as st
from werkzeug.routing import Rule

from forkjoin_gcp.config import Services
from forkjoin_gcp.endpoint import access, join_blueprint, join_function
from forkjoin_gcp.endpoint.core import (
    MAX_BODY_BYTES,
    JoinEndpoint,
    JoinRequest,
    Refused,
)
from forkjoin_gcp.errors import (
    ChunkBusy,
    ConfigurationError,
    HandlerError,
    QueueClosed,
    ServiceError,
    StoreUnavailable,
)
from forkjoin_gcp.gcp import identity
from forkjoin_gcp.names import Batch, Lane
from forkjoin_gcp.tasks import ChunkTask, RootTask, Task

SERVICES = Services(
    project="p", join_url="https://join.example/forkjoin", invoker="tasks@p.iam.gserviceaccount.com"
)
ROOT = RootTask(Batch(Lane("feeds", "v1"), 1_700_000_000_000))
CHUNK = ChunkTask(ROOT.batch, 100, 200, 3)
OTHER = RootTask(Batch(Lane("other", "v1"), 7))
JSON = {"Content-Type": "application/json"}
GOOD = {**JSON, "Authorization": "Bearer good"}
SECRET = "hunter2-the-payload"


class Queue:
    """Records what it is asked to do."""

    def __init__(self, name: str = "feeds", services: Services | Exception = SERVICES) -> None:
        self.name = name
        self.calls: list[tuple[Task, int]] = []
        self.failure: BaseException | None = None
        self._services = services

    @property
    def services(self) -> Services:
        if isinstance(self._services, Exception):
            raise self._services
        return self._services

    def join(self, task: Task, *, retry_count: int) -> None:
        self.calls.append((task, retry_count))
        if self.failure is not None:
            raise self.failure


class Verifier:
    """Stands where the real one does: the token says what becomes of it."""

    def __init__(self, audience: str, _invoker: str, _certs_url: str | None) -> None:
        self.audience = audience

    def verify(self, token: str) -> None:
        if token == "stranger":
            raise identity.WrongCaller("the token is not the invoker's")
        if token == "no-certificates":
            raise ServiceError("the certificates at https://certs.example: HTTP status 500")
        if token == "crash":
            raise RuntimeError(SECRET)
        if token not in {"good", f"good-for-{self.audience}"}:
            raise identity.WrongToken("the token's signature does not verify")


@pytest.fixture(autouse=True)
def _verifier(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity, "TokenVerifier", Verifier)
    monkeypatch.setattr(access, "_warned", threading.Lock())


# (status, error, headers): what any door gives back
Answer = tuple[int, str | None, dict[str, str]]
Door = Callable[..., Answer]


def ask_core(*queues: Any) -> Door:
    endpoint = JoinEndpoint(*queues)

    def ask(method: str = "POST", headers: dict[str, str] = GOOD, body: bytes = b"") -> Answer:
        given = endpoint.answer(JoinRequest(method, headers, body))
        return given.status, json.loads(given.body).get("error"), dict(given.headers)

    return ask


def _ask_app(app: flask.Flask, path: str) -> Door:
    client = app.test_client()

    def ask(method: str = "POST", headers: dict[str, str] = GOOD, body: bytes = b"") -> Answer:
        with client.open(path, method=method, headers=headers, data=body) as response:
            assert response.content_type == "application/json"
            error = None if method == "HEAD" else json.loads(response.data).get("error")
            return response.status_code, error, dict(response.headers)

    return ask


def ask_blueprint(*queues: Any) -> Door:
    app = flask.Flask("service")
    app.register_blueprint(join_blueprint(*queues))
    return _ask_app(app, "/forkjoin")


def ask_function(*queues: Any) -> Door:
    app = flask.Flask("function")
    function = join_function(*queues)
    app.url_map.add(Rule("/<path:path>", endpoint="run"))
    app.view_functions["run"] = lambda path: function(flask.request)
    return _ask_app(app, "/any/path")


doors = pytest.mark.parametrize("door", [ask_core, ask_blueprint, ask_function])


@doors
@pytest.mark.parametrize("task", [ROOT, CHUNK, RootTask(ROOT.batch, full=True)])
def test_a_task_is_joined(door: Callable[..., Door], task: Task) -> None:
    queue = Queue()
    assert door(queue)(body=task.body())[:2] == (200, None)
    assert queue.calls == [(task, 0)]


BODY = json.loads(ROOT.body())
WRONG: list[Any] = [
    # id, changes of a good request, status, the reason says
    ("get", {"method": "GET"}, 405, "only POST"),
    ("put", {"method": "PUT"}, 405, "only POST"),
    ("options", {"method": "OPTIONS"}, 405, "only POST"),
    ("delete", {"method": "DELETE"}, 405, "only POST"),
    ("no token", {"headers": JSON}, 401, "no token"),
    ("basic", {"headers": {**JSON, "Authorization": "Basic Z29vZDo="}}, 401, "not a bearer"),
    ("bare token", {"headers": {**JSON, "Authorization": "good"}}, 401, "not a bearer"),
    ("empty token", {"headers": {**JSON, "Authorization": "Bearer "}}, 401, "not a bearer"),
    ("two", {"headers": {**JSON, "Authorization": "Bearer good,Bearer good"}}, 401, "not a bearer"),
    ("bad token", {"headers": {**JSON, "Authorization": "Bearer bad"}}, 401, "signature"),
    ("stranger", {"headers": {**JSON, "Authorization": "Bearer stranger"}}, 403, "not the invoker"),
    ("fetch", {"headers": {**JSON, "Authorization": "Bearer no-certificates"}}, 503, "try again"),
    ("crash", {"headers": {**JSON, "Authorization": "Bearer crash"}}, 503, "try again"),
    ("no type", {"headers": {"Authorization": "Bearer good"}}, 415, "application/json"),
    ("form", {"headers": {**GOOD, "Content-Type": "text/json"}}, 415, "application/json"),
    ("too large", {"body": b" " * (MAX_BODY_BYTES + 1)}, 413, "65,536 bytes"),
    ("empty", {"body": b""}, 400, "Invalid JSON"),
    ("not JSON", {"body": b"task=root"}, 400, "Invalid JSON"),
    ("not UTF-8", {"body": b'{"kind": "\xff\xfe"}'}, 400, "Invalid JSON"),
    ("UTF-16", {"body": ROOT.body().decode().encode("utf-16")}, 400, "Invalid JSON"),
    ("nested", {"body": b"[" * 60_000}, 400, "recursion limit"),
    ("nested objects", {"body": b'{"kind":' * 8_000}, 400, "recursion limit"),
    ("list", {"body": b"[]"}, 400, "body:"),
    ("null", {"body": b"null"}, 400, "body:"),
    ("huge number", {"body": b"9" * 60_000}, 400, "body:"),
    ("no batch", {"body": json.dumps(BODY | {"batch": None}).encode()}, 400, "batch:"),
    ("a field more", {"body": json.dumps(BODY | {"more": SECRET}).encode()}, 400, "more:"),
    ("wrong kind", {"body": json.dumps(BODY | {"kind": SECRET}).encode()}, 400, "kind:"),
    ("bad key", {"body": json.dumps(BODY | {"batch": "0-0-0"}).encode()}, 400, "batch key"),
    (
        "wrong hash",
        {"body": json.dumps(BODY | {"batch": "00000000-0-1"}).encode()},
        400,
        "batch key",
    ),
    ("bad version", {"body": json.dumps(BODY | {"version": "../v1"}).encode()}, 400, "version"),
    ("unknown queue", {"body": OTHER.body()}, 404, "'other'"),
]


@doors
@pytest.mark.parametrize(
    ("changes", "status", "says"), [row[1:] for row in WRONG], ids=[row[0] for row in WRONG]
)
def test_a_wrong_request_is_refused(
    door: Callable[..., Door], changes: dict[str, Any], status: int, says: str
) -> None:
    queue = Queue()
    got, error, headers = door(queue)(**{"body": ROOT.body(), **changes})
    assert got == status
    assert error is not None
    assert says in error
    assert SECRET not in error
    assert len(error) <= 200
    assert queue.calls == []
    assert headers.get("Allow") == ("POST" if status == 405 else None)
    assert headers.get("WWW-Authenticate", "").startswith("Bearer") == (status in (401, 403))
    assert headers.get("Retry-After") == ("5" if status == 503 else None)


@doors
def test_head_is_refused_without_a_body(door: Callable[..., Door]) -> None:
    assert door(Queue())(method="HEAD")[0] == 405


@doors
@pytest.mark.parametrize(
    "failure",
    [
        StoreUnavailable("firestore: " + SECRET),
        ServiceError(),
        QueueClosed(),
        HandlerError("feeds: no handler is declared"),
        ConfigurationError("FORKJOIN_PROJECT"),
        RuntimeError(SECRET),
        RecursionError(SECRET),
    ],
)
def test_a_failure_inside_is_503_and_says_nothing(
    door: Callable[..., Door], failure: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    queue = Queue()
    queue.failure = failure
    status, error, headers = door(queue)(body=ROOT.body())
    assert (status, error, headers["Retry-After"]) == (503, "try again later", "5")
    logged = [record for record in caplog.records if record.name.startswith("forkjoin_gcp")]
    assert len(logged) == 1
    assert logged[0].levelno >= logging.WARNING
    expected = isinstance(failure, (ServiceError, QueueClosed, HandlerError, ConfigurationError))
    assert bool(logged[0].exc_info) is not expected


@doors
@pytest.mark.parametrize(
    ("after", "seconds"), [(0.0, "1"), (0.2, "1"), (1.0, "1"), (9.4, "10"), (10.0, "10")]
)
def test_a_busy_chunk_is_put_off_and_slows_no_queue_down(
    door: Callable[..., Door], after: float, seconds: str, caplog: pytest.LogCaptureFixture
) -> None:
    queue = Queue()
    queue.failure = ChunkBusy(after=after)
    status, error, headers = door(queue)(body=CHUNK.body())
    assert (status, error, headers["Retry-After"]) == (409, "the chunk is busy", seconds)
    assert not [one for one in caplog.records if one.levelno > logging.INFO], "nothing is wrong"


@pytest.mark.parametrize("failure", [SystemExit(1), KeyboardInterrupt()])
def test_the_end_of_the_process_is_not_caught(failure: BaseException) -> None:
    queue = Queue()
    queue.failure = failure
    with pytest.raises(type(failure)):
        ask_core(queue)(body=ROOT.body())


@doors
@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("7", 7),
        ("0", 0),
        (" 12 ", 12),
        ("", 0),
        ("-1", 0),
        ("1.5", 0),
        ("1e3", 0),
        ("0x10", 0),
        ("1_000", 0),
        ("7, 9", 0),
        ("9" * 5_000, 0),
    ],
)
def test_the_retry_count_is_a_number_or_nothing(
    door: Callable[..., Door], text: str, count: int
) -> None:
    queue = Queue()
    headers = {**GOOD, "x-cloudtasks-taskretrycount": text}
    assert door(queue)(headers=headers, body=ROOT.body())[0] == 200
    assert queue.calls == [(ROOT, count)]


@doors
def test_headers_that_pretend_open_nothing(door: Callable[..., Door]) -> None:
    queue = Queue()
    spoofed = {
        **JSON,
        "User-Agent": "Google-Cloud-Tasks",
        "X-CloudTasks-QueueName": "feeds-1",
        "X-CloudTasks-TaskName": ROOT.task_id,
        "X-AppEngine-QueueName": "feeds-1",
        "X-Serverless-Authorization": "Bearer good",
        "Proxy-Authorization": "Bearer good",
        "X-Forwarded-Authorization": "Bearer good",
        "X-Goog-Authenticated-User-Email": f"accounts.google.com:{SERVICES.invoker}",
        "X-HTTP-Method-Override": "POST",
    }
    assert door(queue)(headers=spoofed, body=ROOT.body())[0] == 401
    assert queue.calls == []


@doors
def test_the_scheme_is_taken_in_any_case_and_the_type_with_parameters(
    door: Callable[..., Door],
) -> None:
    headers = {"authorization": "bEaReR good", "content-type": "Application/JSON; charset=utf-8"}
    assert door(Queue())(headers=headers, body=ROOT.body())[0] == 200


class Reader:
    """A body that would go on for ever, and how much of it was asked for."""

    def __init__(self, pieces: Iterator[bytes] | None = None) -> None:
        self.read = 0
        self._pieces = pieces

    def __call__(self, size: int) -> bytes:
        piece = next(self._pieces, b"") if self._pieces else b" " * min(size, 1_000)
        assert len(piece) <= size
        self.read += len(piece)
        return piece


def test_an_endless_body_is_read_to_the_limit_and_no_further() -> None:
    reader = Reader()
    assert JoinEndpoint(Queue()).answer(JoinRequest("POST", GOOD, reader)).status == 413
    assert reader.read == MAX_BODY_BYTES + 1


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        (JSON, 401),
        ({**GOOD, "Authorization": "Bearer bad"}, 401),
        ({**GOOD, "Content-Type": "text/plain"}, 415),
        ({**GOOD, "Content-Length": str(MAX_BODY_BYTES + 1)}, 413),
        ({**GOOD, "Content-Length": "9" * 5_000}, 413),
    ],
)
def test_nothing_is_read_of_what_the_headers_refuse(headers: dict[str, str], status: int) -> None:
    reader = Reader()
    assert JoinEndpoint(Queue()).answer(JoinRequest("POST", headers, reader)).status == status
    assert reader.read == 0


@pytest.mark.parametrize("length", ["0", "-5", "ten", "", "12"])
def test_a_length_that_lies_changes_nothing(length: str) -> None:
    queue = Queue()
    body = iter([ROOT.body()[:10], ROOT.body()[10:]])
    request = JoinRequest("POST", {**GOOD, "Content-Length": length}, Reader(body))
    assert JoinEndpoint(queue).answer(request).status == 200
    assert queue.calls == [(ROOT, 0)]


def test_a_body_of_the_limit_is_taken() -> None:
    queue = Queue()
    assert ask_core(queue)(body=ROOT.body().ljust(MAX_BODY_BYTES))[0] == 200


@pytest.mark.parametrize(
    ("failure", "status"), [(OSError("gone"), 400), (Refused(408, "slow"), 408)]
)
def test_a_body_that_breaks_off(failure: Exception, status: int) -> None:
    def read(_size: int) -> bytes:
        raise failure

    assert JoinEndpoint(Queue()).answer(JoinRequest("POST", GOOD, read)).status == status


def test_the_limit_of_the_app_is_a_refusal_too() -> None:
    app = flask.Flask("service")
    app.config["MAX_CONTENT_LENGTH"] = 50
    app.register_blueprint(join_blueprint(Queue()))
    assert _ask_app(app, "/forkjoin")(body=ROOT.body())[0] == 413


@given(st.binary(max_size=200), st.dictionaries(st.text(max_size=20), st.text(max_size=50)))
def test_no_bytes_and_no_headers_make_it_raise(body: bytes, headers: dict[str, str]) -> None:
    endpoint = JoinEndpoint(Queue(services=Services(allow_unauthenticated=True)))
    merged = {**headers, "Content-Type": "application/json"}
    assert endpoint.answer(JoinRequest("POST", merged, body)).status == 400
    assert JoinEndpoint(Queue()).answer(JoinRequest("POST", headers, body)).status == 401


def test_a_reason_is_one_printable_line(caplog: pytest.LogCaptureFixture) -> None:
    body = json.dumps(BODY | {"a\r\nFAKE LOG LINE\x1b[31m" + "x" * 9_000: 1}).encode()
    status, error, _ = ask_core(Queue())(body=body)
    assert (status, len(error or "")) == (400, 200)
    assert (error or "").isprintable()
    assert all(record.getMessage().isprintable() for record in caplog.records)


# Who may call


def test_without_a_check_anyone_may_call_and_one_warning_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    queue = Queue(services=Services(allow_unauthenticated=True))
    for ask in (ask_core(queue), ask_blueprint(queue)):
        assert ask(headers=JSON, body=ROOT.body())[0] == 200
        assert ask(headers=JSON, body=ROOT.body())[0] == 200
    (warning,) = caplog.records
    assert warning.levelno == logging.WARNING
    assert "FORKJOIN_ALLOW_UNAUTHENTICATED" in warning.getMessage()


@pytest.mark.parametrize(
    ("services", "variable"),
    [
        (Services(join_url="https://j.example"), "FORKJOIN_INVOKER"),
        (Services(invoker="a@b.c"), "FORKJOIN_JOIN_URL"),
        (ConfigurationError("FORKJOIN_LOCATION='…'"), "FORKJOIN_LOCATION"),
    ],
)
@pytest.mark.parametrize("headers", [GOOD, JSON])
def test_a_setting_that_is_missing_is_503_and_named_in_the_log(
    services: Services, variable: str, headers: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    queue = Queue(services=services)  # declared: nothing happens yet
    status, error, _ = ask_core(queue)(headers=headers, body=ROOT.body())
    assert (status, error) == (503, "try again later")
    assert variable in caplog.text
    with pytest.raises(ConfigurationError, match=variable):
        join_function(queue, check=True)
    with pytest.raises(ConfigurationError, match=variable):
        join_blueprint(queue, check=True)


def test_a_token_opens_the_queues_it_is_for_and_no_other() -> None:
    feeds = Queue("feeds", SERVICES.model_copy(update={"audience": "A"}))
    other = Queue("other", SERVICES.model_copy(update={"audience": "B"}))
    ask = ask_core(feeds, other)
    for_a = {**JSON, "Authorization": "Bearer good-for-A"}
    assert ask(headers=for_a, body=ROOT.body())[0] == 200
    assert ask(headers=for_a, body=OTHER.body())[0] == 401
    assert (len(feeds.calls), len(other.calls)) == (1, 0)


def test_an_open_queue_opens_no_other() -> None:
    feeds, other = Queue(), Queue("other", Services(allow_unauthenticated=True))
    ask = ask_core(feeds, other)
    assert ask(headers=JSON, body=OTHER.body())[0] == 200
    assert ask(headers=JSON, body=ROOT.body())[0] == 401
    assert feeds.calls == []


def test_a_queue_that_is_set_wrong_does_not_close_the_others() -> None:
    feeds, other = Queue(), Queue("other", Services())
    ask = ask_core(feeds, other)
    assert ask(body=ROOT.body())[0] == 200
    assert ask(body=OTHER.body())[0] == 503
    assert ask(headers={**JSON, "Authorization": "Bearer bad"}, body=ROOT.body())[0] == 503


# Declaring


@pytest.mark.parametrize(
    ("queues", "says"),
    [
        ((), "at least one"),
        (("feeds",), "not a fork-join queue"),
        ((threading.Thread(),), "not a fork-join queue"),
        ((Queue(), Queue()), "two queues are called 'feeds'"),
    ],
)
def test_what_cannot_be_served_is_refused_when_declared(queues: tuple[Any, ...], says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        join_function(*queues)


def test_an_app_may_have_several_blueprints() -> None:
    app = flask.Flask("service")
    feeds, other = Queue(), Queue("other")
    app.register_blueprint(join_blueprint(feeds))
    app.register_blueprint(join_blueprint(other, rule="/other", name="other"), url_prefix="/in")
    assert _ask_app(app, "/forkjoin")(body=ROOT.body())[0] == 200
    assert _ask_app(app, "/in/other")(body=OTHER.body())[0] == 200
    assert _ask_app(app, "/in/other")(body=ROOT.body())[0] == 404


def test_many_threads_are_answered_at_once() -> None:
    all_in = threading.Barrier(8, timeout=20)

    class Waiting(Queue):
        def join(self, task: Task, *, retry_count: int) -> None:
            all_in.wait()
            super().join(task, retry_count=retry_count)

    queue = Waiting()
    ask = ask_core(queue)
    threads = [threading.Thread(target=ask, kwargs={"body": ROOT.body()}) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(queue.calls) == 8
