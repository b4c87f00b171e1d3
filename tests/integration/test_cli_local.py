"""`forkjoin local` from a shell, by the scripts that stand for it in a checkout."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
import redis
from google.cloud import tasks_v2
from google.cloud.firestore_v1.services.firestore import FirestoreClient
from google.cloud.firestore_v1.services.firestore.transports import FirestoreGrpcTransport
from google.cloud.tasks_v2.services.cloud_tasks.transports import CloudTasksGrpcTransport

from forkjoin_gcp.emulators import record

SCRIPTS = Path(__file__).resolve().parents[2] / "emulator-scripts"
TIMEOUT = 60.0


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    record.stop(tmp_path)


def environment() -> dict[str, str]:
    """Ours, with the python that runs the tests first on the PATH and no Firestore given."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    found = {**os.environ, "PATH": path}
    found.pop("FIRESTORE_EMULATOR_HOST", None)
    found.pop("FORKJOIN_FIRESTORE", None)
    return found


def call(script: str, directory: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [SCRIPTS / script, "--dir", str(directory), *arguments],
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        env=environment(),
        check=False,
    )


def group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def assert_ends(groups: list[int]) -> None:
    deadline = time.monotonic() + 15
    while any(map(group_lives, groups)):
        assert time.monotonic() < deadline, f"of {groups} some still run"
        time.sleep(0.05)


def groups_of(directory: Path) -> list[int]:
    present = record.read(directory)
    assert present is not None
    groups = {service.name: service.process for service in present.services}
    assert groups.pop("dashboard") == present.pid
    return [group for group in groups.values() if group is not None]


@contextlib.contextmanager
def foreground(directory: Path, *arguments: str) -> Iterator["subprocess.Popen[str]"]:
    process = subprocess.Popen(
        [SCRIPTS / "up", "--dir", str(directory), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        start_new_session=True,
    )
    with process:
        yield process


def test_detached_services_run_until_they_are_stopped(directory: Path) -> None:
    started = call("up", directory, "--detach", "--project", "mine")
    assert started.returncode == 0, started.stderr
    assert "export FORKJOIN_PROJECT=mine\n" in started.stdout
    assert all(line.startswith("export ") for line in started.stdout.splitlines())
    groups = groups_of(directory)

    status = call("status", directory)
    assert status.returncode == 0
    for word in ("valkey", "firestore", "cloud-tasks", "ok", "127.0.0.1:"):
        assert word in status.stdout
        assert word in started.stderr
    assert call("env", directory).stdout == started.stdout
    (dashboard,) = re.findall(r"http://[\d.]+:\d+/", status.stdout)
    with urllib.request.urlopen(dashboard, timeout=30) as response:
        assert b"No queue yet" in response.read()

    again = call("up", directory, "--detach")
    assert again.stdout == started.stdout
    beside = call("up", directory)
    assert beside.returncode == 1
    assert "running already" in beside.stderr

    assert call("down", directory).returncode == 0
    assert not any(map(group_lives, groups))
    status = call("status", directory)
    assert status.returncode == 1
    assert "Nothing runs" in status.stderr
    assert call("down", directory).returncode == 0


def test_the_exports_can_be_evaluated(directory: Path) -> None:
    script = (
        f'eval "$({SCRIPTS}/up --detach --dir {directory})" && '
        'echo "$FORKJOIN_MEMORYSTORE $FIRESTORE_EMULATOR_HOST"'
    )
    said = subprocess.run(
        ["/bin/sh", "-c", script],
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        env=environment(),
        check=True,
    ).stdout.split()
    assert said[0].startswith("redis://127.0.0.1:")
    with urllib.request.urlopen(f"http://{said[1]}/", timeout=5) as response:
        assert response.status == 200


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_the_foreground_ends_all_with_itself(directory: Path, number: signal.Signals) -> None:
    with foreground(directory) as process:
        assert process.stderr is not None
        assert "Ready. Ctrl-C stops all.\n" in iter(process.stderr.readline, "")
        groups = groups_of(directory)
        os.killpg(process.pid, number)
        process.wait(TIMEOUT)
    assert process.returncode == (-number if number == signal.SIGKILL else 0)
    assert_ends(groups)
    assert record.read(directory) is None


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("after", [0.1, 0.5])
def test_a_detached_start_that_is_interrupted_is_taken_back(
    directory: Path, number: signal.Signals, after: float
) -> None:
    with foreground(directory, "--detach") as process:
        time.sleep(after)
        process.send_signal(number)
        process.wait(TIMEOUT)
    deadline = time.monotonic() + 5
    while record.is_held(directory) and time.monotonic() < deadline:
        time.sleep(0.05)
    if record.is_held(directory):  # the start was over before the interrupt: it stands, and ends
        call("down", directory)
    assert not record.is_held(directory)


def test_a_service_that_dies_ends_the_others_and_says_why(directory: Path) -> None:
    with foreground(directory) as process:
        assert process.stderr is not None
        assert "Ready. Ctrl-C stops all.\n" in iter(process.stderr.readline, "")
        groups = groups_of(directory)
        os.killpg(groups[0], signal.SIGKILL)
        _, said = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 1
    assert "valkey ended by itself" in said
    assert_ends(groups)


def test_a_record_left_behind_never_costs_a_stranger_its_life(directory: Path) -> None:
    """The process id of a run that was killed may be someone else's by now."""
    with subprocess.Popen(["/bin/sleep", "60"]) as stranger:
        record.write(directory, record.Record(stranger.pid, {}, []))
        stopped = call("down", directory)
        assert "Nothing runs" in stopped.stderr
        assert stranger.poll() is None
        stranger.kill()


def test_a_failed_detached_start_says_why(directory: Path) -> None:
    given = {**environment(), "FIRESTORE_EMULATOR_HOST": "127.0.0.1:9"}
    started = subprocess.run(
        [SCRIPTS / "up", "--detach", "--dir", str(directory)],
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        env=given,
        check=False,
    )
    assert started.returncode == 1
    assert started.stdout == ""
    assert "no Firestore emulator answers there" in started.stderr
    assert not record.is_held(directory)


def exported(directory: Path) -> dict[str, str]:
    lines = call("env", directory).stdout.splitlines()
    return dict(line.removeprefix("export ").split("=", 1) for line in lines)


def test_reset_empties_all_three_without_a_restart(directory: Path) -> None:
    assert call("up", directory, "--detach").returncode == 0
    groups = groups_of(directory)
    services = exported(directory)
    store = FirestoreStub(services["FIRESTORE_EMULATOR_HOST"])
    store.put("things/one")
    parent = "projects/forkjoin-local/locations/us-central1"
    with (
        redis.Redis.from_url(services["FORKJOIN_MEMORYSTORE"]) as valkey,
        grpc.insecure_channel(services["CLOUD_TASKS_EMULATOR_HOST"]) as channel,
    ):
        valkey.set("key", "value")
        tasks = tasks_v2.CloudTasksClient(transport=CloudTasksGrpcTransport(channel=channel))
        queue = tasks.create_queue(parent=parent, queue={"name": f"{parent}/queues/q"}).name
        request = tasks_v2.HttpRequest(url="http://127.0.0.1:9/")
        tasks.create_task(parent=queue, task=tasks_v2.Task(http_request=request))
        assert store.count() == 1

        done = call("reset", directory)
        assert done.returncode == 0, done.stderr
        assert valkey.keys() == []
        assert list(tasks.list_tasks(parent=queue)) == []
        assert store.count() == 0
    store.close()
    assert groups_of(directory) == groups


class FirestoreStub:
    """A client without the environment of the process."""

    def __init__(self, address: str) -> None:
        self._channel = grpc.insecure_channel(address)
        self._client = FirestoreClient(transport=FirestoreGrpcTransport(channel=self._channel))
        self._root = "projects/forkjoin-local/databases/(default)/documents"
        self._metadata = [("authorization", "Bearer owner")]

    def put(self, path: str) -> None:
        document = {"name": f"{self._root}/{path}"}
        self._client.update_document(document=document, metadata=self._metadata)

    def count(self) -> int:
        request = {"parent": self._root, "collection_id": "things"}
        return len(list(self._client.list_documents(request, metadata=self._metadata)))

    def close(self) -> None:
        self._channel.close()


def test_logs_are_shown_and_followed(directory: Path) -> None:
    assert "There are no logs" in call("logs", directory).stderr
    (directory / "valkey.log").write_text("one\ntwo\nthree\nunfinis")
    (directory / "up.log").write_text("begun\n")
    assert call("logs", directory, "-n", "2").stdout == (
        "up     | begun\nvalkey | two\nvalkey | three\n"
    )
    assert call("logs", directory, "up").stdout == "up | begun\n"
    assert "there are: up, valkey" in call("logs", directory, "other").stderr
    process = subprocess.Popen(
        [SCRIPTS / "logs", "--dir", str(directory), "--follow", "-n", "1", "valkey"],
        stdout=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "valkey | three\n"
        with (directory / "valkey.log").open("a") as log:
            log.write("hed\n")
        assert process.stdout.readline() == "valkey | unfinished\n"
        process.send_signal(signal.SIGINT)
    assert process.returncode == 0


def test_the_installed_command_says_what_it_can_do() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "forkjoin_gcp.cli", "local", "--help"],
        capture_output=True,
        text=True,
        check=True,
        cwd=SCRIPTS.parent,
    )
    for command in ("up", "status", "env", "logs", "reset", "down"):
        assert re.search(rf"^  {command} ", done.stdout, re.MULTILINE)
        assert (SCRIPTS / command).exists()


def test_a_wrong_choice_is_said(directory: Path) -> None:
    started = subprocess.run(
        [SCRIPTS / "up", "--dir", str(directory)],
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        env={**environment(), "FORKJOIN_FIRESTORE": "none"},
        check=False,
    )
    assert started.returncode == 1
    assert "it can be embedded or google" in started.stderr


def test_getting_ready_costs_less_than_three_seconds_of_processor(directory: Path) -> None:
    """And so, on a machine that is not busy, takes less. All processes together, to their end."""
    before = os.times()
    with foreground(directory) as process:
        assert process.stderr is not None
        assert "Ready. Ctrl-C stops all.\n" in iter(process.stderr.readline, "")
        process.send_signal(signal.SIGTERM)
        process.wait(TIMEOUT)
    after = os.times()
    used = after.children_user + after.children_system
    assert used - before.children_user - before.children_system < 3
