"""The local services as a whole: they start together, serve, and never outlive their starter."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
import redis
from google.api_core import exceptions
from google.auth.credentials import AnonymousCredentials
from google.cloud import firestore, tasks_v2
from google.cloud.tasks_v2.services.cloud_tasks.transports import CloudTasksGrpcTransport

from forkjoin_gcp.emulators import LocalServiceError, LocalServices
from forkjoin_gcp.emulators import firestore as firestore_emulator
from forkjoin_gcp.emulators.firestore import find_jar, find_java
from forkjoin_gcp.emulators.processes import ChildProcess, free_port

ROOT = Path(__file__).resolve().parents[2]
MARK = "FORKJOIN_TEST_RUN"
ENDING_TIMEOUT = 15.0

only_with_proc = pytest.mark.skipif(
    not Path("/proc/self/environ").exists(), reason="finds processes by /proc, which is Linux's"
)


@pytest.fixture
def google() -> None:
    """Skips where Java or Google's jar is missing; under CI=true that is an error."""
    try:
        find_java()
        find_jar()
    except LocalServiceError as missing:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(str(missing))


@pytest.fixture(autouse=True)
def own_firestore(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FIRESTORE_EMULATOR_HOST", raising=False)
    monkeypatch.delenv("FORKJOIN_FIRESTORE", raising=False)


@pytest.fixture(scope="module")
def local() -> Iterator[LocalServices]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("FIRESTORE_EMULATOR_HOST", raising=False)
        patch.delenv("FORKJOIN_FIRESTORE", raising=False)
        services = LocalServices.start()
    with services:
        yield services


@pytest.fixture
def mark() -> Iterator[str]:
    """A value of the environment variable MARK that the processes of one test carry. Valkey
    writes its title over its environment, but lives in a directory: that of the test, which
    carries the mark too."""
    value = uuid.uuid4().hex
    yield value
    for pid in marked(value):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@pytest.fixture
def home(mark: str, tmp_path: Path) -> Path:
    """A directory for local services, with the mark in its name."""
    return tmp_path / mark


def marked(value: str) -> list[int]:
    """The processes that run with that mark in their environment or their directory's name."""
    needle = f"{MARK}={value}".encode()
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            alive = b"\nState:\tZ" not in (entry / "status").read_bytes()
            in_environment = needle in (entry / "environ").read_bytes().split(b"\0")
            if alive and (in_environment or value in str((entry / "cwd").readlink())):
                found.append(int(entry.name))
    return found


def eventually(condition: Callable[[], bool]) -> bool:
    """Whether the condition of real processes comes true within ENDING_TIMEOUT."""
    deadline = time.monotonic() + ENDING_TIMEOUT
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.05)
    return condition()


def test_all_three_serve(local: LocalServices) -> None:
    environment = local.environment()
    assert environment["FORKJOIN_PROJECT"] == "forkjoin-local"
    assert environment["FORKJOIN_LOCATION"] == "us-central1"
    assert environment["FORKJOIN_INVOKER"] == "invoker@forkjoin-local.iam.gserviceaccount.com"

    with redis.Redis.from_url(environment["FORKJOIN_MEMORYSTORE"]) as client:
        assert client.ping()
        assert client.config_get("save") == {"save": ""}
        assert client.config_get("bind") == {"bind": "127.0.0.1"}

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FIRESTORE_EMULATOR_HOST", environment["FIRESTORE_EMULATOR_HOST"])
        store = firestore.Client(
            project=environment["FORKJOIN_PROJECT"], credentials=AnonymousCredentials()
        )
        store.document("things/one").set({"number": 1})
        assert store.document("things/one").get().to_dict() == {"number": 1}
        store.close()

    with urllib.request.urlopen(environment["FORKJOIN_CERTS_URL"], timeout=5) as response:
        assert json.load(response)["keys"][0]["alg"] == "RS256"
    with urllib.request.urlopen(local.cloud_tasks_admin + "/health", timeout=5) as response:
        assert response.status == 200


def test_queues_are_made_for_the_ordinary_client(local: LocalServices) -> None:
    name = local.create_queue(
        "made",
        max_dispatches_per_second=5,
        max_concurrent_dispatches=7,
        max_attempts=3,
        min_backoff=0.25,
        max_backoff=1,
        max_doublings=2,
        max_retry_duration=60,
    )
    assert name == "projects/forkjoin-local/locations/us-central1/queues/made"
    with grpc.insecure_channel(local.environment()["CLOUD_TASKS_EMULATOR_HOST"]) as channel:
        client = tasks_v2.CloudTasksClient(transport=CloudTasksGrpcTransport(channel=channel))
        queue = client.get_queue(name=name)
    assert queue.rate_limits.max_dispatches_per_second == 5
    assert queue.rate_limits.max_concurrent_dispatches == 7
    assert queue.retry_config.max_attempts == 3
    assert queue.retry_config.min_backoff.total_seconds() == 0.25
    assert queue.retry_config.max_backoff.total_seconds() == 1
    assert queue.retry_config.max_doublings == 2
    assert queue.retry_config.max_retry_duration.total_seconds() == 60
    with pytest.raises(exceptions.AlreadyExists):
        local.create_queue("made")
    assert "/europe-west1/" in local.create_queue("made", location="europe-west1")


@only_with_proc
def test_stopping_ends_all_and_may_be_repeated(
    monkeypatch: pytest.MonkeyPatch, mark: str, home: Path
) -> None:
    monkeypatch.setenv(MARK, mark)
    with LocalServices.start(home) as services:
        # A guardian and a service, three times over.
        assert len(marked(mark)) == 6
        services.stop()
        assert marked(mark) == []
        assert (home / "firestore.log").exists()


def test_a_directory_of_our_own_goes_with_the_services(
    local: LocalServices, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = local.environment()["FIRESTORE_EMULATOR_HOST"]
    monkeypatch.setenv("FIRESTORE_EMULATOR_HOST", address)
    with LocalServices.start() as services:
        directory = services.directory
        assert (directory / "valkey.log").exists()
    assert not directory.exists()


@only_with_proc
def test_what_is_missing_is_said_and_nothing_is_left(
    monkeypatch: pytest.MonkeyPatch, mark: str, tmp_path: Path
) -> None:
    monkeypatch.setenv(MARK, mark)
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LocalServiceError, match="Java was not found"):
        LocalServices.start(firestore="google")
    assert marked(mark) == []


@only_with_proc
@pytest.mark.usefixtures("google")
def test_a_service_that_dies_at_its_start_is_said_and_nothing_is_left(
    monkeypatch: pytest.MonkeyPatch, mark: str, tmp_path: Path
) -> None:
    java = tmp_path / "bin/java"
    java.parent.mkdir()
    java.write_text("#!/bin/sh\necho this Java is too old >&2\nexit 1\n")
    java.chmod(0o755)
    monkeypatch.setenv(MARK, mark)
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    with pytest.raises(LocalServiceError, match=r"firestore ended(.|\n)*this Java is too old"):
        LocalServices.start(tmp_path / "state", firestore="google")
    assert marked(mark) == []


def test_a_firestore_that_runs_is_used_and_not_ended(
    local: LocalServices, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = local.environment()["FIRESTORE_EMULATOR_HOST"]
    monkeypatch.setenv("FIRESTORE_EMULATOR_HOST", address)
    with LocalServices.start() as second:
        assert second.environment()["FIRESTORE_EMULATOR_HOST"] == address
        assert len(second.processes) == 2
    with urllib.request.urlopen(f"http://{address}/", timeout=5) as response:
        assert response.status == 200


def test_a_firestore_that_does_not_answer_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{closed.getsockname()[1]}"
    monkeypatch.setenv("FIRESTORE_EMULATOR_HOST", address)
    with pytest.raises(LocalServiceError, match="no Firestore emulator answers there"):
        LocalServices.start()


@pytest.mark.usefixtures("google")
def test_googles_firestore_can_be_chosen(
    monkeypatch: pytest.MonkeyPatch, local: LocalServices, tmp_path: Path
) -> None:
    monkeypatch.setenv("FORKJOIN_FIRESTORE", "google")
    with LocalServices.start(tmp_path) as services:
        address = services.environment()["FIRESTORE_EMULATOR_HOST"]
        assert "Dev App Server is now running" in (tmp_path / "firestore.log").read_text()
        assert firestore_emulator.empty(address, services.project)
        monkeypatch.setenv("FIRESTORE_EMULATOR_HOST", "127.0.0.1:9")
        with LocalServices.start(firestore="embedded") as chosen:
            assert chosen.environment()["FIRESTORE_EMULATOR_HOST"] != "127.0.0.1:9"


def test_a_firestore_that_cannot_be_chosen_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FORKJOIN_FIRESTORE", "other")
    with pytest.raises(LocalServiceError, match="'other'; it can be embedded or google"):
        LocalServices.start()
    with pytest.raises(LocalServiceError, match="keeps nothing on disk"):
        LocalServices.start(firestore="google", data=tmp_path)


@contextlib.contextmanager
def store_of(services: LocalServices) -> Iterator[firestore.Client]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in services.environment().items():
            patch.setenv(name, value)
        client = firestore.Client(project=services.project, credentials=AnonymousCredentials())
        yield client
        client.close()


@pytest.mark.parametrize("gently", [True, False])
def test_a_restart_with_data_loses_nothing(*, gently: bool, tmp_path: Path) -> None:
    data = tmp_path / "data"
    task = tasks_v2.Task(
        name="projects/forkjoin-local/locations/us-central1/queues/kept/tasks/later",
        http_request=tasks_v2.HttpRequest(url="http://127.0.0.1:9/"),
        schedule_time=datetime.now(UTC) + timedelta(days=1),
    )
    with LocalServices.start(data=data) as services:
        with redis.Redis.from_url(services.environment()["FORKJOIN_MEMORYSTORE"]) as client:
            client.hset("key", "field", "kept")
        with store_of(services) as store:
            store.document("things/kept").set({"number": 1})
        queue = services.create_queue("kept")
        with tasks_of(services) as tasks:
            tasks.create_task(parent=queue, task=task)
        if not gently:
            for child in services.processes:
                os.killpg(child.pid, signal.SIGKILL)
    with LocalServices.start(data=data) as services:
        with redis.Redis.from_url(services.environment()["FORKJOIN_MEMORYSTORE"]) as client:
            assert client.hget("key", "field") == b"kept"
        with store_of(services) as store:
            assert store.document("things/kept").get().to_dict() == {"number": 1}
        with tasks_of(services) as tasks, pytest.raises(exceptions.AlreadyExists):
            tasks.create_task(parent=queue, task=task)
        with pytest.raises(LocalServiceError, match="is in use by other local services"):
            LocalServices.start(data=data)


@contextlib.contextmanager
def tasks_of(services: LocalServices) -> Iterator[tasks_v2.CloudTasksClient]:
    address = services.environment()["CLOUD_TASKS_EMULATOR_HOST"]
    with grpc.insecure_channel(address) as channel:
        yield tasks_v2.CloudTasksClient(transport=CloudTasksGrpcTransport(channel=channel))


def test_given_ports_are_taken_in_their_order() -> None:
    first = free_port()
    with LocalServices.start(port=first) as services:
        environment = services.environment()
        assert environment["FORKJOIN_MEMORYSTORE"] == f"redis://127.0.0.1:{first}"
        assert environment["FIRESTORE_EMULATOR_HOST"] == f"127.0.0.1:{first + 1}"
        assert environment["CLOUD_TASKS_EMULATOR_HOST"] == f"127.0.0.1:{first + 2}"
        assert services.cloud_tasks_admin == f"http://127.0.0.1:{first + 3}"


STARTER = """
import pathlib, sys
from forkjoin_gcp.emulators import LocalServices
print("begun", flush=True)
with LocalServices.start(pathlib.Path(sys.argv[1])):
    print("ready", flush=True)
    sys.stdin.read()
"""


@contextlib.contextmanager
def starter(mark: str, directory: Path) -> Iterator["subprocess.Popen[str]"]:
    """A process, leader of a group of its own, that has begun to start local services."""
    process = subprocess.Popen(
        [sys.executable, "-c", STARTER, str(directory)],
        cwd=ROOT,
        env={**os.environ, MARK: mark},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        yield process


@only_with_proc
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
# From the first fork to just before and after the services answer; None waits until they do.
@pytest.mark.parametrize("after", [0.0, 0.2, 1.0, None])
def test_an_interrupt_at_any_moment_leaves_nothing_running(
    number: signal.Signals, after: float | None, mark: str, home: Path
) -> None:
    with starter(mark, home) as process:
        if after is None:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            assert len(marked(mark)) == 7
        else:
            time.sleep(after)
        os.killpg(process.pid, number)  # as the terminal does on Ctrl-C
        process.wait(ENDING_TIMEOUT)
    assert eventually(lambda: not marked(mark)), [
        Path(f"/proc/{pid}/cmdline").read_bytes() for pid in marked(mark)
    ]


@only_with_proc
def test_a_fork_that_lives_on_does_not_keep_the_services(mark: str, home: Path) -> None:
    code = STARTER.replace("sys.stdin.read()", "import os, time; os.fork() or time.sleep(30)")
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(home)],
        cwd=ROOT,
        env={**os.environ, MARK: mark},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    assert process.wait(60) == 0
    assert eventually(lambda: len(marked(mark)) == 1)  # the fork itself


@only_with_proc
def test_a_command_deaf_to_sigterm_is_killed_with_all_it_started(mark: str, tmp_path: Path) -> None:
    script = "trap '' TERM; sleep 60 & echo ready; while :; do sleep 60; done"
    child = ChildProcess(
        "deaf",
        ["/bin/sh", "-c", script],
        tmp_path / "log",
        env={**os.environ, MARK: mark},
        piped=True,
        grace=0.1,
    )
    child.read_line(ENDING_TIMEOUT)
    assert child.running
    child.stop()
    assert eventually(lambda: not marked(mark))


@only_with_proc
def test_a_command_whose_guardian_was_killed_is_ended(mark: str, tmp_path: Path) -> None:
    environment = {**os.environ, MARK: mark}
    child = ChildProcess(
        "bereft",
        ["/bin/sh", "-c", "echo ready; exec sleep 60"],
        tmp_path / "log",
        env=environment,
        piped=True,
    )
    child.read_line(ENDING_TIMEOUT)
    os.kill(child.pid, signal.SIGKILL)
    assert eventually(lambda: not child.running)
    assert len(marked(mark)) == 1
    child.stop()
    assert eventually(lambda: not marked(mark))


def test_a_command_that_is_not_there_is_said(tmp_path: Path) -> None:
    child = ChildProcess("nothing", [str(tmp_path / "nothing")], tmp_path / "log")
    with pytest.raises(LocalServiceError, match="nothing ended before it was ready"):
        child.wait_ready(lambda: False, ENDING_TIMEOUT)
    child.stop()


def test_a_command_that_is_never_ready_is_said(tmp_path: Path) -> None:
    child = ChildProcess("idle", ["/bin/sleep", "60"], tmp_path / "log")
    with pytest.raises(LocalServiceError, match=r"idle was not ready within 0\.1 s"):
        child.wait_ready(lambda: False, 0.1)
    child.stop()
