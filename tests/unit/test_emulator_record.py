"""The record and the lock by which a shell finds running services."""

import os
import stat
from pathlib import Path

import pytest

from forkjoin_gcp.emulators import LocalServiceError, record
from forkjoin_gcp.emulators.record import Record, ServiceRecord

RUNNING = Record(
    pid=os.getpid(),
    environment={"A": "b"},
    services=[ServiceRecord("valkey", "127.0.0.1:1", "127.0.0.1:1", None)],
)


def test_a_record_is_read_while_its_writer_runs_and_not_after(tmp_path: Path) -> None:
    with record.running_here(tmp_path):
        assert record.read(tmp_path) is None  # not ready yet
        record.write(tmp_path, RUNNING)
        assert record.read(tmp_path) == RUNNING
    assert record.read(tmp_path) is None
    record.write(tmp_path, RUNNING)  # as left by a process that was killed
    assert record.read(tmp_path) is None
    assert record.stop(tmp_path) is False


def test_a_new_run_is_not_taken_for_the_one_before(tmp_path: Path) -> None:
    record.write(tmp_path, RUNNING)
    with record.running_here(tmp_path):
        assert record.read(tmp_path) is None


def test_only_one_runs_in_a_directory(tmp_path: Path) -> None:
    with (
        record.running_here(tmp_path),
        pytest.raises(LocalServiceError, match="running already"),
        record.running_here(tmp_path),
    ):
        pass


def test_what_is_only_starting_is_not_stopped_blindly(tmp_path: Path) -> None:
    with (
        record.running_here(tmp_path),
        pytest.raises(LocalServiceError, match="just starting or stopping"),
    ):
        record.stop(tmp_path)


def test_the_directory_is_closed_to_others(tmp_path: Path) -> None:
    home = tmp_path / "home"
    record.prepare(home)
    assert stat.S_IMODE(home.stat().st_mode) == 0o700


def test_a_directory_of_another_user_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = os.getuid() + 1
    monkeypatch.setattr(os, "getuid", lambda: other)
    with pytest.raises(LocalServiceError, match="belongs to another user"):
        record.prepare(tmp_path)
    with pytest.raises(LocalServiceError, match="belongs to another user"):
        record.read(tmp_path)


def test_each_user_has_a_directory_of_their_own() -> None:
    assert record.default_directory().name == f"forkjoin-local-{os.getuid()}"
