"""How processes use a queue: forks after use, gunicorn's preload, threads and loops, SIGTERM."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from forkjoin_gcp import ForkJoinQueue, Item
from forkjoin_gcp.emulators.processes import free_port
from tests.integration.conftest import Declare, wait_until

CLOUD_RUN_SECONDS = 10.0
"""What Cloud Run gives a process after SIGTERM."""

CALLERS = """
import asyncio, os, sys, threading
from forkjoin_gcp import ForkJoinQueue, QueueClosed

name, ledger = sys.argv[1:]
queue = ForkJoinQueue(name, batch_period=0.1)
acknowledged = os.open(ledger, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

def note(one):
    os.write(acknowledged, f"{os.getpid()} {one}\\n".encode())

def work(count):
    try:
        for n in range(count):
            note(queue.enqueue({"n": n}))
    except QueueClosed:
        os.write(acknowledged, f"{os.getpid()} closed\\n".encode())

async def awork(count):
    async def one():
        try:
            for n in range(count):
                note(await queue.aenqueue({"n": n}))
        except QueueClosed:
            os.write(acknowledged, f"{os.getpid()} closed\\n".encode())
    await asyncio.gather(*(one() for _ in range(4)))

def callers(count):
    "Four threads, and two event loops of four callers each."
    threads = [threading.Thread(target=work, args=[count]) for _ in range(4)]
    threads += [threading.Thread(target=lambda: asyncio.run(awork(count))) for _ in range(2)]
    for thread in threads:
        thread.start()
    return threads
"""

FORK_AFTER_USE = (
    CALLERS
    + """
import time
queue.enqueue({"n": -1})
running = callers(100)
children = []
for _ in range(3):
    time.sleep(0.1)
    child = os.fork()
    if not child:
        for thread in callers(10):
            thread.join()
        queue.close()
        os._exit(0)
    children.append(child)
for thread in running:
    thread.join()
sys.exit(max(os.waitpid(child, 0)[1] for child in children))
"""
)

FORK_IN_A_HANDLER = """
import os, sys
from forkjoin_gcp import ForkJoinQueue, QueueClosed
from forkjoin_gcp.tasks import RootTask
from forkjoin_gcp.names import Batch

queue = ForkJoinQueue(sys.argv[1], batch_period=60)
statuses = []

@queue.handler
def fork(item):
    child = os.fork()
    if not child:
        try:
            queue.enqueue({"n": 2})
        except QueueClosed as error:
            os._exit(7 if "forked" in str(error) else 8)
        os._exit(9)
    statuses.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))

first = queue.enqueue({"n": 1})
queue.join(RootTask(Batch.parse(queue.name, "v1", first.rpartition("-")[0])))
queue.enqueue({"n": 3})
queue.close()
sys.exit(statuses != [7])
"""

TERMINATED = (
    CALLERS
    + """
import signal
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
with queue:
    callers(10**9)
    while True:
        signal.pause()
"""
)

PRELOADED = """
import os
import flask
from forkjoin_gcp import ForkJoinQueue

queue = ForkJoinQueue({name!r}, batch_period=0.1)
app = flask.Flask(__name__)
queue.enqueue({{"n": -1}})  # in the master, before it forks

@app.post("/")
def put():
    return {{"pid": os.getpid(), "id": queue.enqueue({{"n": flask.request.json["n"]}})}}
"""


@pytest.fixture
def served(declare: Declare) -> tuple[ForkJoinQueue[Any], Counter[str]]:
    """A queue whose items' ids are counted as they are handled, in this process."""
    queue = declare(batch_period=0.1, writer_timeout=1)
    seen: Counter[str] = Counter()

    @queue.handler
    async def note(item: Item[dict[str, Any]]) -> None:
        seen[item.id] += 1

    return queue, seen


def environment_of(queue: ForkJoinQueue[Any], local_environment: dict[str, str]) -> dict[str, str]:
    join_url = {"FORKJOIN_JOIN_URL": queue.services.need("join_url")}
    return {**os.environ, **local_environment, **join_url}


def test_forks_after_use_under_load(
    served: tuple[ForkJoinQueue[Any], Counter[str]],
    local_environment: dict[str, str],
    tmp_path: Path,
) -> None:
    queue, seen = served
    ledger = tmp_path / "ledger"
    done = subprocess.run(
        [sys.executable, "-c", FORK_AFTER_USE, queue.name, str(ledger)],
        env=environment_of(queue, local_environment),
        timeout=60,
        check=False,
    )
    assert done.returncode == 0
    lines = [line.split() for line in ledger.read_text().splitlines()]
    per_process = Counter(pid for pid, _ in lines)
    assert sorted(per_process.values()) == [120, 120, 120, 1200]
    ids = {one for _, one in lines}
    assert len(ids) == 1560
    wait_until(lambda: ids <= seen.keys())
    assert len(seen) == 1561, "one more before the load; a fork makes nobody hand in twice"


def test_a_fork_in_a_handler_is_told_what_it_cannot_do(
    declare: Declare, local_environment: dict[str, str]
) -> None:
    queue = declare()
    done = subprocess.run(
        [sys.executable, "-c", FORK_IN_A_HANDLER, queue.name],
        env=environment_of(queue, local_environment),
        timeout=60,
        check=False,
    )
    assert done.returncode == 0


def test_sigterm_under_load_loses_nothing_that_was_acknowledged(
    served: tuple[ForkJoinQueue[Any], Counter[str]],
    local_environment: dict[str, str],
    tmp_path: Path,
) -> None:
    queue, seen = served
    ledger = tmp_path / "ledger"
    process = subprocess.Popen(
        [sys.executable, "-c", TERMINATED, queue.name, str(ledger)],
        env=environment_of(queue, local_environment),
    )
    try:
        wait_until(lambda: ledger.exists() and ledger.read_text().count("\n") > 300)
        process.send_signal(signal.SIGTERM)
        asked = time.monotonic()
        assert process.wait(CLOUD_RUN_SECONDS) == 0
        assert time.monotonic() - asked < CLOUD_RUN_SECONDS
    finally:
        process.kill()
        process.wait()
    told = [line.split()[1] for line in ledger.read_text().splitlines()]
    assert told.count("closed") == 12, "each caller was told"
    ids = set(told) - {"closed"}
    wait_until(lambda: ids <= seen.keys())


@contextmanager
def gunicorn(directory: Path, environment: dict[str, str], port: int) -> Iterator[Any]:
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "gunicorn", "preloaded:app", "--preload", "--workers", "3"),
            *("--threads", "4", "--bind", f"127.0.0.1:{port}", "--graceful-timeout", "8"),
            *("--log-level", "warning", "--chdir", str(directory)),
        ],
        env=environment,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def test_gunicorn_preload_with_a_queue_used_in_the_master(
    served: tuple[ForkJoinQueue[Any], Counter[str]],
    local_environment: dict[str, str],
    tmp_path: Path,
) -> None:
    """And its end, by SIGTERM under load: what was answered is handled."""
    queue, seen = served
    (tmp_path / "preloaded.py").write_text(PRELOADED.format(name=queue.name))
    port = free_port()
    answers: list[dict[str, Any]] = []
    ended = threading.Event()

    def post() -> dict[str, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        try:
            headers = {"Content-Type": "application/json"}
            connection.request("POST", "/", json.dumps({"n": 1}), headers)
            response = connection.getresponse()
            body = response.read()
            assert response.status == 200, body
            answer: dict[str, Any] = json.loads(body)
            return answer
        finally:
            connection.close()

    def client() -> None:
        while not ended.is_set():
            try:
                answers.append(post())
            except (OSError, http.client.HTTPException):
                time.sleep(0.01)

    environment = environment_of(queue, local_environment)
    with gunicorn(tmp_path, environment, port) as process:
        clients = [threading.Thread(target=client) for _ in range(12)]
        for thread in clients:
            thread.start()
        try:
            wait_until(lambda: len({answer["pid"] for answer in answers}) == 3)
            wait_until(lambda: len(answers) > 300)
            process.send_signal(signal.SIGTERM)
            assert process.wait(CLOUD_RUN_SECONDS) == 0
        finally:
            ended.set()
            for thread in clients:
                thread.join()
    ids = {answer["id"] for answer in answers}
    assert len(ids) == len(answers)
    wait_until(lambda: ids <= seen.keys())
