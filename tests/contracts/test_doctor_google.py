"""What `forkjoin doctor` asks of Google alone, by the real clients and with the real messages."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import google.auth.exceptions
import grpc
import pytest
from google.auth.credentials import Credentials
from google.cloud.firestore_admin_v1 import Field, GetFieldRequest
from google.cloud.firestore_admin_v1.services.firestore_admin import FirestoreAdminAsyncClient
from google.cloud.firestore_admin_v1.services.firestore_admin.transports import (
    FirestoreAdminGrpcAsyncIOTransport,
)
from google.cloud.tasks_v2 import CloudTasksAsyncClient, GetQueueRequest, Queue
from google.cloud.tasks_v2.services.cloud_tasks.transports import CloudTasksGrpcAsyncIOTransport
from google.iam.v1 import iam_policy_pb2 as iam_messages

from forkjoin_gcp import QueueConfig, Services
from forkjoin_gcp.gcp.doctor import Finding, Status, Subject, permissions, task_queues
from forkjoin_gcp.gcp.doctor import firestore as database
from forkjoin_gcp.gcp.doctor.environment import check_environment
from tests.contracts.google_api import GoogleApi

INVOKER = "tasks@p.iam.gserviceaccount.com"
SERVICES = Services(
    project="p",
    location="l",
    memorystore="projects/p/locations/l/instances/i",
    join_url="https://join.example/forkjoin",
    invoker=INVOKER,
)
SUBJECT = Subject(SERVICES, {}, [QueueConfig("feeds")])
QUEUE = "projects/p/locations/l/queues/feeds-1"
State = Field.TtlConfig.State


def field(group: str, name: str = "expire_at") -> str:
    return f"projects/p/databases/(default)/collectionGroups/{group}/fields/{name}"


class Token(Credentials):  # type: ignore[misc]
    """Credentials of a service account."""

    service_account_email = "me@p.iam.gserviceaccount.com"

    def refresh(self, _request: Any) -> None:
        self.token = "ya29"


def with_credentials(monkeypatch: pytest.MonkeyPatch, project: str = "p") -> None:
    monkeypatch.setattr("google.auth.default", lambda **_: (Token(), project))


# TTL policies


def expiry(monkeypatch: pytest.MonkeyPatch, policy: Any, **others: Any) -> list[Finding]:
    """What is found where the API has this of the segments' expiry, and no field is indexed."""
    exempt = Field(index_config=Field.IndexConfig())
    fields = {"fj_segments": exempt, "fj_dead_letters": exempt, **others}

    async def run() -> list[Finding]:
        answers = {field(group, "*"): answer for group, answer in fields.items()}
        answers[field("fj_segments")] = policy
        service = "google.firestore.admin.v1.FirestoreAdmin"
        async with GoogleApi(service, {"GetField": GetFieldRequest}, answers) as api:
            client = api.client(FirestoreAdminAsyncClient, FirestoreAdminGrpcAsyncIOTransport)
            monkeypatch.setattr(database, "FirestoreAdminAsyncClient", client)
            return await database.check_expiry(SUBJECT)

    return asyncio.run(run())


def ttl(state: State) -> Field:
    return Field(ttl_config=Field.TtlConfig(state=state))


def test_a_policy_that_is_active_is_well(monkeypatch: pytest.MonkeyPatch) -> None:
    (found,) = expiry(monkeypatch, ttl(State.ACTIVE))
    assert found.status is Status.OK


def test_a_policy_that_is_missing_comes_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    (missing,) = expiry(monkeypatch, Field())
    assert missing.status is Status.FAULT
    assert "ttls update expire_at --collection-group=fj_segments" in missing.fix


def test_a_policy_under_way_or_not_to_be_seen_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    (found,) = expiry(monkeypatch, ttl(State.CREATING))
    assert (found.status, "being created" in found.text) == (Status.WARNING, True)
    (found,) = expiry(monkeypatch, (grpc.StatusCode.PERMISSION_DENIED, "no"))
    assert (found.status, "roles/datastore.viewer" in found.fix) == (Status.WARNING, True)


def test_fields_that_are_indexed_are_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    default = Field(index_config=Field.IndexConfig(uses_ancestor_config=True))
    _, found = expiry(monkeypatch, ttl(State.ACTIVE), fj_dead_letters=default)
    assert found.status is Status.WARNING
    assert "fj_dead_letters: every field is indexed" in found.text


# Task queues


def queues(monkeypatch: pytest.MonkeyPatch, queue: Any, *allowed: str) -> list[Finding]:
    """What is found of one queue, in which this account has those permissions."""

    def answer(request: Any) -> Any:
        if isinstance(request, iam_messages.TestIamPermissionsRequest):
            return iam_messages.TestIamPermissionsResponse(permissions=allowed)
        return queue

    async def run() -> list[Finding]:
        calls = {
            "GetQueue": GetQueueRequest,
            "TestIamPermissions": iam_messages.TestIamPermissionsRequest,
        }
        async with GoogleApi("google.cloud.tasks.v2.CloudTasks", calls, {QUEUE: answer}) as api:
            client = api.client(CloudTasksAsyncClient, CloudTasksGrpcAsyncIOTransport)
            monkeypatch.setattr(task_queues, "connect_client", lambda _: client())
            return await task_queues.check_task_queues(SUBJECT)

    return asyncio.run(run())


def a_queue(**fields: Any) -> Queue:
    return Queue(name=QUEUE, state=Queue.State.RUNNING, **fields)


def test_a_queue_that_may_be_used_is_well(monkeypatch: pytest.MonkeyPatch) -> None:
    (found,) = queues(monkeypatch, a_queue(), "cloudtasks.tasks.create")
    assert found.status is Status.OK


def test_a_queue_in_which_we_may_create_nothing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    _, found = queues(monkeypatch, a_queue())
    assert found.status is Status.FAULT
    assert "roles/cloudtasks.enqueuer" in found.fix


def test_a_queue_that_may_not_be_looked_at_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    refused = (grpc.StatusCode.PERMISSION_DENIED, "no")
    (found,) = queues(monkeypatch, refused, "cloudtasks.tasks.create")
    assert found.status is Status.WARNING


# Credentials and the invoker


def test_no_credentials_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(**_: Any) -> Any:
        raise google.auth.exceptions.DefaultCredentialsError("none here")

    monkeypatch.setattr("google.auth.default", missing)
    (found,) = asyncio.run(permissions.check_credentials(SUBJECT))
    assert found.status is Status.FAULT
    assert "none here" in found.text
    assert "application-default login" in found.fix


def test_credentials_of_another_project_are_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    with_credentials(monkeypatch)
    (found,) = asyncio.run(permissions.check_credentials(SUBJECT))
    assert (found.status, "me@p.iam" in found.text) == (Status.OK, True)
    with_credentials(monkeypatch, project="other")
    (found,) = asyncio.run(permissions.check_credentials(SUBJECT))
    assert found.status is Status.WARNING


class Iam(ThreadingHTTPServer):
    """IAM's REST API: the permissions an account has on service accounts, or a status."""

    answer: tuple[int, list[str]] = (200, [])
    asked: tuple[str, Any] = ("", None)


@pytest.fixture
def iam(monkeypatch: pytest.MonkeyPatch) -> Iterator[Iam]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert isinstance(self.server, Iam)
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self.server.asked = self.path, json.loads(body)
            status, permitted = self.server.answer
            answer = json.dumps({"permissions": permitted} if permitted else {}).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            pass

    with_credentials(monkeypatch)
    with Iam(("127.0.0.1", 0), Handler) as server:
        url = f"http://127.0.0.1:{server.server_port}/v1/projects/-/serviceAccounts"
        monkeypatch.setattr(permissions, "IAM_URL", url)
        thread = Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("answer", "status", "text"),
    [
        ((200, ["iam.serviceAccounts.actAs"]), Status.OK, "may carry the token"),
        ((200, []), Status.FAULT, "may not act as"),
        ((404, []), Status.FAULT, "there is no service account"),
        ((403, []), Status.WARNING, "IAM answered 403"),
    ],
)
def test_iam_says_whether_we_may_act_as_the_invoker(
    answer: tuple[int, list[str]], status: Status, text: str, iam: Iam
) -> None:
    iam.answer = answer
    (found,) = asyncio.run(permissions.check_invoker(SUBJECT))
    assert (found.status, text in found.text) == (status, True), found
    path, body = iam.asked
    assert (
        path == f"/v1/projects/-/serviceAccounts/{INVOKER.replace('@', '%40')}:testIamPermissions"
    )
    assert body == {"permissions": ["iam.serviceAccounts.actAs"]}


# The environment of a deployment


def test_a_deployments_environment_has_nothing_of_a_test() -> None:
    (found,) = asyncio.run(check_environment(SUBJECT))
    assert found.status is Status.OK
    services = SERVICES.model_copy(
        update={
            "join_url": "http://join.example",
            "certs_url": "http://127.0.0.1:9/certs",
            "allow_unauthenticated": True,
            "firestore_emulator_host": "127.0.0.1:9",
        }
    )
    findings = asyncio.run(check_environment(Subject(services, {})))
    assert {one.status for one in findings} == {Status.FAULT}
    told = " ".join(one.text for one in findings)
    for variable in ("JOIN_URL", "CERTS_URL", "ALLOW_UNAUTHENTICATED"):
        assert f"FORKJOIN_{variable}" in told
    assert "FIRESTORE_EMULATOR_HOST" in told
