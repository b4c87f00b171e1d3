"""One item of a thousand ends the process it is handled in, each time: everything is real.

The join function runs under functions-framework, whose gunicorn starts another worker where one
died, as Cloud Run starts another instance. Leases are short, so that the test is.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from forkjoin_gcp import ForkJoinQueue, Services
from forkjoin_gcp.emulators import LocalServices
from tests.integration.conftest import wait_until

MAIN = Path(__file__).parents[2] / "functions" / "main.py"
ITEMS = 1_000
DEADLY = 437
SETTINGS = {"batch_size": 50, "batch_period": 0.2, "crash_limit": 1}
SECONDS = 150.0
"""At most: half a minute where nothing else runs."""

QUEUE = f"""
import os
from forkjoin_gcp import ForkJoinQueue
from forkjoin_gcp.joining import leases

leases.LEASE_SECONDS = 0.5
deadly = ForkJoinQueue(os.environ["DEADLY_QUEUE"], **{SETTINGS})
record = os.open(os.environ["RECORD"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)

@deadly.handler
async def handle(item):
    if item.payload["n"] == {DEADLY}:
        os.write(record, b"died\\n")
        os._exit(1)
    os.write(record, b"%d\\n" % item.payload["n"])
"""


class Function:
    """The join function in processes of its own, and what its handler wrote down."""

    def __init__(self, directory: Path, port: int, variables: dict[str, str]) -> None:
        (directory / "deadly.py").write_text(QUEUE)
        self._record = directory / "record"
        self.log = directory / "log"
        places = [str(directory), str(MAIN.parents[1]), os.environ.get("PYTHONPATH", "")]
        code = "from functions_framework._cli import _cli; _cli()"
        options = ["--source", str(MAIN), "--target", "join", "--host", "127.0.0.1"]
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-c", code, *options, "--port", str(port)],
                env={
                    **os.environ,
                    **variables,
                    "PYTHONPATH": os.pathsep.join(filter(None, places)),
                    "FORKJOIN_QUEUE": "deadly:deadly",
                    "RECORD": str(self._record),
                    "THREADS": "64",
                },
                cwd=directory,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def lines(self) -> list[str]:
        return self._record.read_text().splitlines() if self._record.exists() else []

    def end(self) -> None:
        """All of its processes: they are a group of their own."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


@pytest.fixture
def function(
    local_services: LocalServices, tmp_path: Path
) -> Iterator[tuple[Function, ForkJoinQueue[dict[str, int]]]]:
    name = f"deadly-{uuid.uuid4().hex[:10]}"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = local_services.environment()
    environment["FORKJOIN_JOIN_URL"] = f"http://127.0.0.1:{port}/forkjoin"
    environment["DEADLY_QUEUE"] = name
    running = Function(tmp_path, port, environment)
    try:
        services = Services.from_env(
            {key: value for key, value in environment.items() if key != "DEADLY_QUEUE"}
        )
        with ForkJoinQueue(name, payload=dict[str, int], services=services, **SETTINGS) as queue:
            local_services.create_queue(
                queue.config.task_queue(1), min_backoff=0.1, max_backoff=0.5
            )
            yield running, queue
    finally:
        running.end()


@pytest.mark.timeout(330)
def test_one_item_that_kills_among_a_thousand(
    function: tuple[Function, ForkJoinQueue[dict[str, int]]], local_services: LocalServices
) -> None:
    running, queue = function
    began = time.monotonic()
    ids = queue.enqueue_many([{"n": n} for n in range(ITEMS)])
    later: dict[int, float] = {}
    found = threading.Event()

    def go_on() -> None:
        while not found.is_set():
            number = ITEMS + len(later)
            queue.enqueue({"n": number})
            later[number] = time.monotonic()
            found.wait(0.1)

    enqueuing = threading.Thread(target=go_on)
    enqueuing.start()
    try:
        wait_until(lambda: bool(queue.dead_letters()), SECONDS)
    finally:
        found.set()
        enqueuing.join()
    isolated = time.monotonic() - began
    meanwhile = {int(line) for line in running.lines() if line != "died"} & later.keys()
    expected = set(range(ITEMS + len(later))) - {DEADLY}

    def handled() -> set[int]:
        return {int(line) for line in running.lines() if line != "died"}

    wait_until(lambda: handled() == expected, SECONDS)
    deaths = running.lines().count("died")
    print(
        f"isolated after {isolated:.1f} s and {deaths} deaths; {len(later)} items came meanwhile, "
        f"{len(meanwhile)} of them were handled by then; "
        f"{len(running.lines()) - deaths - len(expected)} items handled again"
    )
    (letter,) = queue.dead_letters()
    assert (letter.id, letter.reason, letter.attempts) == (ids[DEADLY], "crashed", 1)
    assert len(meanwhile) > len(later) / 2, "the queue was never blocked"
    assert deaths <= 1 + 6 + 1 + 2, "as a chunk, in each half, alone; two by a busy machine"
    with redis.Redis.from_url(local_services.environment()["FORKJOIN_MEMORYSTORE"]) as valkey:
        keys = list(valkey.scan_iter(match=f"fj:{{{queue.name}/*", count=1000))
        assert all(valkey.pttl(key) > 0 for key in keys), "a key is left without TTL"
