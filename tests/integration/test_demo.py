"""The demo as a user starts it: what it leaves in its directory, and what it says."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import uuid
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from examples.demo.origin import content
from forkjoin_gcp.emulators import LocalServiceError, valkey
from tests.integration.conftest import wait_until

ROOT = Path(__file__).parents[2]
MARK = "DEMO_TEST_MARK"
READY_SECONDS = 60.0

pytestmark = pytest.mark.timeout(180)


@pytest.fixture(autouse=True)
def _needed() -> None:
    """Skips where Valkey is missing; under CI=true that is an error."""
    try:
        valkey.find_server()
    except LocalServiceError as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(str(error))


class Demo:
    """A running demo, in a process group of its own, all of whose descendants bear a mark."""

    def __init__(self, output: Path, *arguments: str, **variables: str) -> None:
        self.output = output
        self.mark = uuid.uuid4().hex
        self.log = output.with_suffix(".said")
        with self.log.open("wb") as sink:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "examples.demo", "--output", str(output), *arguments],
                cwd=ROOT,
                env={**os.environ, MARK: self.mark, **variables},
                stdout=sink,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def said(self) -> str:
        return self.log.read_text()

    def wait_for(self, text: str) -> None:
        deadline = time.monotonic() + READY_SECONDS
        while not re.search(text, self.said):
            assert self.process.poll() is None, self.said
            assert time.monotonic() < deadline, self.said
            time.sleep(0.005)

    def interrupt(self) -> None:
        """Ctrl-C, as a terminal sends it: to the whole group in the foreground."""
        os.killpg(self.process.pid, signal.SIGINT)

    def end(self) -> int:
        return self.process.wait(READY_SECONDS)

    def alive(self) -> dict[int, str]:
        """The processes that bear the mark, with their commands. Zombies do not count.

        Valkey writes its title over its environment; it is known by its working directory.
        """
        found = {}
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                marked = f"{MARK}={self.mark}".encode() in (entry / "environ").read_bytes()
                if marked or self.output in (entry / "cwd").readlink().parents:
                    command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                    found[int(entry.name)] = command
            except OSError:
                continue
        return found

    def results(self) -> list[dict[str, Any]]:
        text = (self.output / "results.jsonl").read_text()
        return [json.loads(line) for line in text.splitlines()]


Start = Callable[..., Demo]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    started: list[Demo] = []

    def make(*arguments: str, **variables: str) -> Demo:
        demo = Demo(tmp_path / f"out{len(started)}", *arguments, **variables)
        started.append(demo)
        return demo

    yield make
    for demo in started:
        if demo.process.poll() is None:
            demo.process.terminate()
            demo.process.wait(READY_SECONDS)


def test_every_line_comes_to_one_result(start: Start) -> None:
    # Left over from a deployment, or from a network behind a proxy: nothing of it matters here.
    left_over = {
        "FORKJOIN_AUDIENCE": "https://elsewhere.example",
        "FORKJOIN_DATABASE": "elsewhere",
        "GOOGLE_CLOUD_PROJECT": "elsewhere",
        "http_proxy": "http://127.0.0.1:1",
        "https_proxy": "http://127.0.0.1:1",
    }
    demo = start("--count", "600", **left_over)
    assert demo.end() == 0, demo.said
    results = demo.results()
    assert [result["line"] for result in results] == list(range(1, 601))
    assert len({result["id"] for result in results}) == 600
    for number, result in enumerate(results, 1):
        page = content(number)
        assert result["status"] == 200
        assert result["error"] is None
        assert result["bytes"] == len(page)
        assert result["sha256"] == hashlib.sha256(page).hexdigest()
    assert "each exactly once" in demo.said
    tasks = re.search(r"tasks created +([\d,]+)", demo.said)
    assert tasks
    assert int(tasks[1]) <= 600 * 0.05
    assert re.search(r"\^.*\^", demo.said)
    assert re.search(r"1.*R", demo.said)
    assert ET.parse(demo.output / "demo.svg").getroot().tag.endswith("svg")
    assert not demo.alive()


def test_bad_lines_have_results_too(start: Start, tmp_path: Path) -> None:
    lines = [
        "# a comment",
        "http://127.0.0.1:1/nobody-listens",
        "",
        "http://127.0.0.1:1/nobody-listens",
        "no url",
        "http://",
        "ftp://127.0.0.1/x",
    ]
    given = tmp_path / "urls.txt"
    given.write_text("\ufeff" + "\r\n".join(lines))
    demo = start("--input", str(given))
    assert demo.end() == 0, demo.said
    results = demo.results()
    assert [(result["line"], result["url"]) for result in results] == list(enumerate(lines, 1))
    wanted = ["comment", "connect", "blank", "connect", "not an http", "400", "not an http"]
    for result, part in zip(results, wanted, strict=True):
        assert part in result["error"]
        assert result["sha256"] is None
    assert [result["attempt"] for result in results] == [None, 3, None, 3, None, None, None]


def test_nothing_to_post(start: Start, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").touch()
    demo = start("--input", str(tmp_path / "empty.txt"))
    assert demo.end() == 0, demo.said
    assert demo.results() == []


def _ended_by_interrupt(demo: Demo) -> None:
    assert demo.end() == 130, demo.said
    assert demo.said.splitlines()[-1].startswith("Interrupted")
    assert "Traceback" not in demo.said
    # A child that was just being started is not waited for: it ends by itself, a moment later.
    wait_until(lambda: not demo.alive(), 15)


LINUX = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks into /proc")


@LINUX
@pytest.mark.parametrize("seconds", [0.0, 0.1, 0.5, 1.2, 2.0])
def test_an_interrupt_while_starting(start: Start, seconds: float) -> None:
    demo = start("--count", "200")
    demo.wait_for("Starting")
    time.sleep(seconds)
    demo.interrupt()
    _ended_by_interrupt(demo)


@LINUX
@pytest.mark.parametrize("moment", ["Posting", r"posted [1-9]", "handled 200 of 200", "--> time"])
def test_an_interrupt_while_running(start: Start, moment: str) -> None:
    demo = start("--count", "200")
    demo.wait_for(moment)
    demo.interrupt()
    status = demo.end()
    assert "Traceback" not in demo.said
    assert not demo.alive()
    if status == 0:  # too late: it was done
        assert moment in ("handled 200 of 200", "--> time")
    else:
        _ended_by_interrupt(demo)


@LINUX
def test_an_impatient_user(start: Start) -> None:
    demo = start("--count", "200")
    demo.wait_for(r"posted [1-9]")
    while demo.process.poll() is None:
        demo.interrupt()
        time.sleep(0.05)
    assert demo.process.returncode in (130, -signal.SIGINT)
    assert "Traceback" not in demo.said
    wait_until(lambda: not demo.alive(), 15)


@LINUX
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_other_ways_to_ask_for_the_end(start: Start, number: int) -> None:
    demo = start("--count", "200")
    demo.wait_for("Posting")
    demo.process.send_signal(number)
    _ended_by_interrupt(demo)


@LINUX
def test_a_killed_demo_leaves_no_process(start: Start) -> None:
    demo = start("--count", "200")
    demo.wait_for("Posting")
    demo.process.kill()
    demo.process.wait()
    wait_until(lambda: not demo.alive(), 15)


@LINUX
@pytest.mark.parametrize("victim", ["valkey", "functions_framework", "app:app"])
def test_a_process_that_dies_ends_the_demo(start: Start, victim: str) -> None:
    demo = start("--count", "2000")
    demo.wait_for(r"posted [1-9]")
    for pid, command in demo.alive().items():
        if victim in command and "guardian" not in command:
            os.kill(pid, signal.SIGKILL)
    assert demo.end() == 1, demo.said
    assert re.match(r"Error: [\w-]+ ended by itself\. See .*\.log\.", demo.said.splitlines()[-1])
    assert "Traceback" not in demo.said
    assert not demo.alive()


def test_googles_firestore_without_java(start: Start, tmp_path: Path) -> None:
    demo = start(
        PATH=str(tmp_path), JAVA_HOME="", FIRESTORE_EMULATOR_HOST="", FORKJOIN_FIRESTORE="google"
    )
    assert demo.end() == 1
    assert "Error: Java was not found" in demo.said
    assert "Traceback" not in demo.said
    assert not demo.alive()


def test_two_demos_do_not_share_a_directory(start: Start) -> None:
    first = start("--count", "50")
    first.wait_for("Starting")
    # The last option of a name counts.
    second = start("--output", str(first.output))
    assert second.end() == 1
    assert "Error: Another demo is writing to" in second.said
