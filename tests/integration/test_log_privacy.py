"""What is in a payload stays out of the log, at INFO and above, whatever goes wrong."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from google.auth.credentials import AnonymousCredentials
from google.cloud import firestore

from forkjoin_gcp import ForkJoinQueue, PayloadError, Services
from forkjoin_gcp.emulators import LocalServices
from forkjoin_gcp.emulators.processes import free_port
from forkjoin_gcp.gcp.firestore_documents import SEGMENTS
from forkjoin_gcp.names import Batch, segment_id
from tests.integration.conftest import wait_until
from tests.integration.function_process import running_function

SECRET = "hunter2-the-payload"

# Beside main.py: a stricter type than those who enqueue have, and a handler that tells all it has.
LEAKY = """
import logging
from typing import Literal
from pydantic import BaseModel, field_validator
from forkjoin_gcp import ForkJoinQueue, Item, Reject, Retry

logging.basicConfig(level=logging.INFO)

class Strict(BaseModel):
    secret: str
    how: str
    kind: Literal["plain"] = "plain"

    @field_validator("secret")
    @classmethod
    def quotes_its_input(cls, value):
        if value.endswith("refused"):
            raise ValueError(f"I do not like {value!r}")
        return value

class NotAnExceptionError(BaseException):
    pass

leaky = ForkJoinQueue(
    "leaky", payload=Strict, batch_period=0.1, max_attempts=2,
    retry_min_backoff=0.1, retry_max_backoff=0.2,
)

@leaky.handler
async def leak(item):
    text = item.payload.secret
    how = item.payload.how
    if how == "raises":
        raise ValueError(text)
    if how == "raises a group":
        raise ExceptionGroup(text, [ValueError(text), KeyError(text)])
    if how == "raises from another":
        try:
            raise KeyError(text)
        except KeyError as error:
            raise RuntimeError(text) from error
    if how == "exits":
        raise SystemExit(text)
    if how == "raises what is no Exception":
        raise NotAnExceptionError(text)
    if how == "rejects":
        raise Reject(text)
    if how == "retries":
        raise Retry(text)
    raise AssertionError(text)
"""

WAYS = (
    "raises",
    "raises a group",
    "raises from another",
    "exits",
    "raises what is no Exception",
    "rejects",
    "retries",
)


def test_no_payload_text_is_logged_at_info(
    local_services: LocalServices,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Through everything that can go wrong with an item, on both sides."""
    (tmp_path / "leaky.py").write_text(LEAKY)
    local_services.create_queue("leaky-1", min_backoff=0.1, max_backoff=0.2)
    variables = {**local_services.environment(), "FORKJOIN_QUEUE": "leaky:leaky"}
    port = free_port()
    variables["FORKJOIN_JOIN_URL"] = f"http://127.0.0.1:{port}/"
    caplog.set_level(logging.INFO)
    monkeypatch.setenv("FIRESTORE_EMULATOR_HOST", variables["FIRESTORE_EMULATOR_HOST"])
    loose: dict[str, Any] = {"secret": SECRET, "how": "raises"}
    payloads = [
        *(loose | {"how": way} for way in WAYS),
        loose | {"secret": f"{SECRET} refused"},  # decodes no more: the type quotes it
        loose | {"kind": SECRET},
        loose | {"how": [SECRET]},
        {SECRET: SECRET},
    ]
    with (
        running_function(tmp_path, port, **variables) as function,
        ForkJoinQueue("leaky", services=Services.from_env(variables), batch_period=0.1) as queue,
    ):
        for wrong in ({SECRET: object()}, SECRET, loose | {"large": SECRET * 100_000}):
            with pytest.raises(PayloadError):
                queue.enqueue(wrong)  # type: ignore[arg-type]
        ids = queue.enqueue_many(payloads)
        spoil(local_services, Batch.parse("leaky", "v1", ids[0].rpartition("-")[0]))
        wait_until(lambda: len(queue.dead_letters()) == len(ids) + 1, 60)
        letters = queue.dead_letters()
        log = function.log.read_text()
    assert {letter.reason for letter in letters} == {"attempts", "rejected", "undecodable"}
    assert all(SECRET in letter.payload for letter in letters)
    assert sum(SECRET in letter.error for letter in letters) >= len(WAYS), "kept beside the payload"
    for text in ("handler raised ValueError", "NotAnExceptionError", "'dead': "):
        assert text in log, "INFO is logged, and of each try something is"
    assert SECRET not in log
    assert SECRET not in caplog.text


def spoil(local: LocalServices, batch: Batch) -> None:
    """Put a document that is no segment beside the batch's."""
    client = firestore.Client(project=local.project, credentials=AnonymousCredentials())
    place = client.document(f"{batch.path}/{SEGMENTS}/{segment_id(99)}")
    place.set({"payloads": SECRET, SECRET: [SECRET, {"deep": SECRET}], "count": SECRET})
    client.close()
