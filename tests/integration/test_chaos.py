"""A short `make chaos`: everything real, everything goes wrong, nothing accepted is lost."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.integration.conftest import wait_until

ROOT = Path(__file__).parents[2]
MEMBERS = ("valkey", "firestore", "cloud-tasks", "join-1", "join-2", "in-1", "in-2")


@contextmanager
def chaos(directory: Path, seconds: int) -> Iterator[subprocess.Popen[str]]:
    """In a process group of its own, as a shell would start it."""
    options = ["--seconds", str(seconds), "--rate", "200", "--directory", str(directory)]
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.chaos", *options],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def processes_of(directory: Path) -> list[str]:
    """The command lines of what is running there, or was told to write there."""
    found = []
    for each in Path("/proc").glob("[0-9]*"):
        try:
            command = (each / "cmdline").read_bytes()
            told = command + (each / "environ").read_bytes()
        except OSError:
            continue  # it has just ended
        if str(directory).encode() in told and int(each.name) != os.getpid():
            found.append(command.replace(b"\0", b" ").decode())
    return found


def wait_for(process: subprocess.Popen[str], text: str) -> str:
    """What was printed, up to the line that has ``text`` in it."""
    assert process.stdout is not None
    lines = ""
    for line in process.stdout:
        lines += line
        if text in line:
            return lines
    pytest.fail(f"ended before {text!r}:\n{lines}")


@pytest.mark.timeout(300)
def test_a_short_chaos_loses_nothing(tmp_path: Path) -> None:
    with chaos(tmp_path, 20) as process:
        printed, _ = process.communicate()
    print(printed)
    assert process.returncode == 0
    assert re.search(r"[\d,]+ accepted = [\d,]+ handled \+ .* \+ 0 LOST", printed)
    for member in MEMBERS:
        assert f"kill -9 {member}, " in printed
        assert f"SIGSTOP {member} for" in printed
    for act in ("FLUSHALL", "SCRIPT FLUSH", "lane forgotten"):
        assert f"{act}\n" in printed
    assert processes_of(tmp_path) == []


@pytest.mark.skipif(not Path("/proc").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_whatever_ends_it_leaves_no_process_behind(tmp_path: Path, how: signal.Signals) -> None:
    with chaos(tmp_path, 20) as process:
        wait_for(process, "SIGSTOP")
        assert len(processes_of(tmp_path)) > len(MEMBERS)
        process.send_signal(how)
        process.communicate()
        assert process.returncode == (-how if how == signal.SIGKILL else 128 + signal.SIGINT)
        wait_until(lambda: processes_of(tmp_path) == [])
