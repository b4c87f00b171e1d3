"""What the sweep function answers Cloud Scheduler."""

from __future__ import annotations

import json
import logging
import threading
from typing import Any, Unpack

import flask
import pytest

from forkjoin_gcp.config import Services
from forkjoin_gcp.endpoint import access, sweep_function
from forkjoin_gcp.errors import ConfigurationError, ServiceError, StoreUnavailable
from forkjoin_gcp.gcp import identity
from forkjoin_gcp.names import Batch, Lane
from forkjoin_gcp.sweeper import StaleBatch, SweepOptions, SweepReport

SERVICES = Services(
    project="p",
    join_url="https://join.example/forkjoin",
    invoker="tasks@p.iam.gserviceaccount.com",
    sweep_invoker="scheduler@p.iam.gserviceaccount.com",
    sweep_audience="https://sweep.example",
)
BATCH = Batch(Lane("feeds", "v1"), 1_700_000_000_000)
SECRET = "10.0.0.7 said no"


class Queue:
    """Records how it is swept, and reports what it is told to."""

    def __init__(self, name: str = "feeds", services: Services = SERVICES) -> None:
        self.name = name
        self.services = services
        self.sweeps: list[SweepOptions] = []
        self.report = SweepReport(name, False, documents=7, items=30)
        self.failure: Exception | None = None

    def sweep(self, **options: Unpack[SweepOptions]) -> SweepReport:
        self.sweeps.append(options)
        if self.failure is not None:
            raise self.failure
        return self.report


class Verifier:
    """Stands where the real one does: a token names the audience and the caller it is of."""

    def __init__(self, audience: str, invoker: str, _certs_url: str | None) -> None:
        self.audience, self.invoker = audience, invoker

    def verify(self, token: str) -> None:
        if token == "no-certificates":
            raise ServiceError(SECRET)
        audience, _, caller = token.partition("~")
        if audience != self.audience.removeprefix("https://"):
            raise identity.WrongToken("the token's audience is another")
        if caller != self.invoker.partition("@")[0]:
            raise identity.WrongCaller("the token is not the invoker's")


@pytest.fixture(autouse=True)
def _verifier(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity, "TokenVerifier", Verifier)
    monkeypatch.setattr(access, "_warned", threading.Lock())


GOOD = "sweep.example~scheduler"
Answered = tuple[int, dict[str, Any], dict[str, str]]


def ask(*queues: Any, token: str | None = GOOD, method: str = "POST", **options: Any) -> Answered:
    function = sweep_function(*queues, **options)
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    app = flask.Flask("sweep")
    with app.test_request_context("/", method=method, headers=headers):
        given = function(flask.request)
    return given.status_code, json.loads(b"".join(given.iter_encoded())), dict(given.headers)


def test_a_good_token_sweeps_and_is_told_what_was_found(caplog: pytest.LogCaptureFixture) -> None:
    queue = Queue()
    queue.report.stale = [StaleBatch(BATCH, 30, 1.5e9, True), StaleBatch(BATCH, 1, 1.5e9, False)]
    queue.report.unknown = [("others", "v1")]
    queue.report.resume = "feeds.v1:0:0:g"
    with caplog.at_level(logging.INFO):
        status, body, _ = ask(queue, max_documents=500)
    assert status == 200
    assert body == {
        "queues": [
            {
                "queue": "feeds", "dry_run": False, "documents": 7, "items": 30, "scheduled": 1,
                "stale": 2, "unknown": ["others.v1"], "errors": [], "resume": "feeds.v1:0:0:g",
            }
        ]
    }  # fmt: skip
    (options,) = queue.sweeps
    assert options["max_documents"] == 500
    assert 1 <= (options["seconds"] or 0) <= 150
    assert "others.v1" in caplog.text
    assert "begins elsewhere" in caplog.text


def test_queues_share_the_time_and_know_of_each_other() -> None:
    feeds, urgent = Queue(), Queue("urgent")
    status, body, _ = ask(feeds, urgent, seconds=60.0)
    assert (status, len(body["queues"])) == (200, 2)
    assert 29 < (feeds.sweeps[0]["seconds"] or 0) <= 30
    assert 59 < (urgent.sweeps[0]["seconds"] or 0) <= 60, "what the first has left over"
    for queue in (feeds, urgent):
        assert set(queue.sweeps[0]["known"]) == {"feeds", "urgent"}


@pytest.mark.parametrize(
    ("token", "status", "challenge"),
    [
        (None, 401, "Bearer"),
        ("two words", 401, 'Bearer error="invalid_token"'),
        ("join.example/forkjoin~tasks", 401, 'Bearer error="invalid_token"'),
        ("join.example/forkjoin~scheduler", 401, 'Bearer error="invalid_token"'),
        ("sweep.example~tasks", 403, 'Bearer error="insufficient_scope"'),
    ],
)
def test_any_other_token_does_not(token: str | None, status: int, challenge: str) -> None:
    queue = Queue()
    answered, body, headers = ask(queue, token=token)
    assert answered == status
    assert headers["WWW-Authenticate"] == challenge
    assert set(body) == {"error"}
    assert queue.sweeps == []


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE"])
def test_only_post_sweeps(method: str) -> None:
    queue = Queue()
    status, _, headers = ask(queue, method=method)
    assert (status, headers["Allow"]) == (405, "POST")
    assert queue.sweeps == []


def test_a_queue_that_wants_another_caller_keeps_the_door_shut() -> None:
    other = SERVICES.model_copy(update={"sweep_invoker": "other@p.iam.gserviceaccount.com"})
    feeds, urgent = Queue(), Queue("urgent", other)
    assert ask(feeds, urgent)[0] == 403
    assert feeds.sweeps == urgent.sweeps == []


def test_anyone_may_where_that_is_asked_for() -> None:
    queue = Queue(services=Services(allow_unauthenticated=True))
    assert ask(queue, token=None)[0] == 200


@pytest.mark.parametrize("token", ["no-certificates", "sweep.example~scheduler"])
def test_failures_are_503_and_say_nothing(token: str, caplog: pytest.LogCaptureFixture) -> None:
    broken, sound = Queue(), Queue("sound")
    broken.failure = StoreUnavailable(SECRET)
    status, body, _ = ask(broken, sound, token=token)
    assert (status, body) == (503, {"error": "not everything could be swept"})
    assert SECRET in caplog.text
    if token != "no-certificates":
        assert len(sound.sweeps) == 1, "one queue does not keep the others"


@pytest.mark.parametrize("what", ["batch", "range"])
def test_what_could_not_be_swept_is_503_and_logged(
    what: str, caplog: pytest.LogCaptureFixture
) -> None:
    queue = Queue()
    if what == "batch":
        queue.report.stale = [StaleBatch(BATCH, 30, 1.5e9, None, SECRET)]
    else:
        queue.report.errors = [SECRET]
    assert ask(queue)[0] == 503
    assert SECRET in caplog.text


def test_what_the_environment_lacks_is_named() -> None:
    queue = Queue(services=SERVICES.model_copy(update={"sweep_audience": None}))
    with pytest.raises(ConfigurationError, match="set FORKJOIN_SWEEP_AUDIENCE"):
        sweep_function(queue, check=True)
    assert ask(queue)[0] == 503
    queue = Queue(services=SERVICES.model_copy(update={"sweep_invoker": None}))
    with pytest.raises(ConfigurationError, match="set FORKJOIN_SWEEP_INVOKER"):
        sweep_function(queue, check=True)


def test_what_makes_no_function_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="at least one queue"):
        sweep_function()
    with pytest.raises(ConfigurationError, match="two queues are called 'feeds'"):
        sweep_function(Queue(), Queue())
    with pytest.raises(ConfigurationError, match="max_documents=0"):
        sweep_function(Queue(), max_documents=0)
    with pytest.raises(ConfigurationError, match="seconds=0"):
        sweep_function(Queue(), seconds=0)
