"""emulator-scripts: start, stop and status from a shell."""

import contextlib
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from forkjoin_gcp.emulators import LocalServiceError, record
from forkjoin_gcp.emulators.firestore import find_jar, find_java

SCRIPTS = Path(__file__).resolve().parents[2] / "emulator-scripts"
TIMEOUT = 60.0


@pytest.fixture(scope="module", autouse=True)
def everything_needed_is_here() -> None:
    """Skips where Java or the jar is missing; under CI=true that is an error."""
    try:
        find_java()
        find_jar()
    except LocalServiceError as missing:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(str(missing))


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    record.stop(tmp_path)


def environment() -> dict[str, str]:
    """Ours, with the python that runs the tests first on the PATH and no Firestore given."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    found = {**os.environ, "PATH": path}
    found.pop("FIRESTORE_EMULATOR_HOST", None)
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
    groups = [service.process for service in present.services if service.process is not None]
    assert len(groups) == 3
    return groups


@contextlib.contextmanager
def foreground(directory: Path, *arguments: str) -> Iterator["subprocess.Popen[str]"]:
    process = subprocess.Popen(
        [SCRIPTS / "start", "--dir", str(directory), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        start_new_session=True,
    )
    with process:
        yield process


def test_detached_services_run_until_they_are_stopped(directory: Path) -> None:
    started = call("start", directory, "--detach", "--project", "mine")
    assert started.returncode == 0, started.stderr
    assert "export FORKJOIN_PROJECT=mine\n" in started.stdout
    assert all(line.startswith("export ") for line in started.stdout.splitlines())
    groups = groups_of(directory)

    status = call("status", directory)
    assert status.returncode == 0
    for word in ("valkey", "firestore", "cloud-tasks", "ok", "127.0.0.1:"):
        assert word in status.stdout

    again = call("start", directory, "--detach")
    assert again.stdout == started.stdout
    beside = call("start", directory)
    assert beside.returncode == 1
    assert "running already" in beside.stderr

    assert call("stop", directory).returncode == 0
    assert not any(map(group_lives, groups))
    status = call("status", directory)
    assert status.returncode == 1
    assert "Nothing runs" in status.stderr
    assert call("stop", directory).returncode == 0


def test_the_exports_can_be_evaluated(directory: Path) -> None:
    script = (
        f'eval "$({SCRIPTS}/start --detach --dir {directory})" && '
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
        assert process.stderr.readline() == "Ready. Ctrl-C stops all.\n"
        groups = groups_of(directory)
        os.killpg(process.pid, number)
        process.wait(TIMEOUT)
    assert process.returncode == (-number if number == signal.SIGKILL else 0)
    assert_ends(groups)
    assert record.read(directory) is None


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("after", [0.1, 0.5, 1.2])
def test_a_detached_start_that_is_interrupted_is_taken_back(
    directory: Path, number: signal.Signals, after: float
) -> None:
    with foreground(directory, "--detach") as process:
        time.sleep(after)
        process.send_signal(number)
        process.wait(TIMEOUT)
    deadline = time.monotonic() + TIMEOUT
    while record.is_held(directory):
        assert time.monotonic() < deadline, "still running"
        time.sleep(0.05)


def test_a_service_that_dies_ends_the_others_and_says_why(directory: Path) -> None:
    with foreground(directory) as process:
        assert process.stderr is not None
        process.stderr.readline()
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
        stopped = call("stop", directory)
        assert "Nothing runs" in stopped.stderr
        assert stranger.poll() is None
        stranger.kill()


def test_a_failed_detached_start_says_why(directory: Path) -> None:
    given = {**environment(), "FIRESTORE_EMULATOR_HOST": "127.0.0.1:9"}
    started = subprocess.run(
        [SCRIPTS / "start", "--detach", "--dir", str(directory)],
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
