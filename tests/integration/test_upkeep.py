"""`forkjoin sweep` and `forkjoin dead` from a shell, and the sweep function: all of it real.

The commands run in processes of their own, which load the queue from a module as a user's would be.
Their clock is ahead by more than ``sweep_after``: to them, what was just written is old.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.cloud import tasks_v2
from google.cloud.tasks_v2.services.cloud_tasks.transports import CloudTasksGrpcTransport

from forkjoin_gcp import ForkJoinQueue, Item, Reject
from forkjoin_gcp.emulators import LocalServices
from tests.integration.conftest import Declare, wait_until
from tests.integration.function_process import MAIN, Function, running_function
from tests.integration.test_functions import Issuer, issuer

__all__ = ["issuer"]

STORAGES = ["firestore", "memorystore"]
HOUR = 3_600
MODULE = """
import os, time
from forkjoin_gcp import ForkJoinQueue
from forkjoin_gcp.gcp.connect import connect

class Clock:
    def now(self):
        return time.time() + float(os.environ["AHEAD"])

async def connect_ahead(config, services, counters, clock):
    return await connect(config, services, counters, Clock())

feeds = ForkJoinQueue(
    os.environ["QUEUE"], connect=connect_ahead, storage=os.environ["STORAGE"], batch_period=0
)
"""


@dataclass
class Shell:
    """Runs `forkjoin` where feeds.py is, and finds the services by the environment alone."""

    home: Path
    env: dict[str, str]

    def __call__(self, *arguments: str, code: int = 0) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "forkjoin_gcp.cli", *arguments],
            cwd=self.home, env=self.env, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout if code in (0, 3) else done.stderr

    def json(self, *arguments: str, code: int = 0) -> Any:
        return json.loads(self(*arguments, "--json", code=code))


OpenShell = Callable[[ForkJoinQueue[Any]], Shell]


@pytest.fixture
def open_shell(tmp_path: Path, local_services: LocalServices) -> OpenShell:
    """A shell for a served queue."""

    def make(queue: ForkJoinQueue[Any]) -> Shell:
        (tmp_path / "feeds.py").write_text(MODULE)
        env = {
            name: value for name, value in os.environ.items() if not name.startswith("FORKJOIN_")
        }
        env |= local_services.environment()
        env["FORKJOIN_JOIN_URL"] = str(queue.services.join_url)
        env["PYTHONPATH"] = str(MAIN.parents[1])
        env |= {"QUEUE": queue.name, "STORAGE": queue.config.storage, "AHEAD": str(HOUR)}
        return Shell(tmp_path, env | {"FORKJOIN_QUEUE": "feeds:feeds"})

    return make


def delete_tasks(queue: ForkJoinQueue[Any]) -> int:
    """Take away all tasks that the queue has; how many."""
    where = queue.services
    channel = grpc.insecure_channel(str(where.cloud_tasks_emulator_host))
    with channel:
        client = tasks_v2.CloudTasksClient(transport=CloudTasksGrpcTransport(channel=channel))
        parent = f"projects/{where.project}/locations/{where.location}/queues/{queue.name}-1"
        names = [task.name for task in client.list_tasks(parent=parent)]
        for name in names:
            client.delete_task(name=name)
    return len(names)


@pytest.mark.parametrize("storage", STORAGES)
def test_a_batch_whose_task_was_deleted_comes_back(
    declare: Declare, open_shell: OpenShell, storage: str
) -> None:
    queue = declare(storage=storage, batch_period=60)
    seen: list[int] = []

    @queue.handler
    async def note(item: Item[dict[str, Any]]) -> None:
        seen.append(item.payload["n"])

    queue.enqueue_many([{"n": n} for n in range(250)])
    assert delete_tasks(queue) == 1
    shell = open_shell(queue)

    # To a clock that goes right, nothing is old.
    now = Shell(shell.home, shell.env | {"AHEAD": "0"})
    (report,) = now.json("sweep")["queues"]
    assert (report["documents"], report["items"], report["stale"]) == (3, 250, [])

    (report,) = shell.json("sweep", "--dry-run")["queues"]
    assert [(one["items"], one["scheduled"]) for one in report["stale"]] == [(250, None)]
    assert "1 stale batches, 0 root tasks created (dry run)" in shell("sweep", "--dry-run")
    assert delete_tasks(queue) == 0
    assert seen == []

    # Bounded, it says where to go on.
    first = shell.json("sweep", "--max-documents", "1", "--dry-run", code=3)
    assert first["queues"][0]["documents"] == 1
    (rest,) = shell.json("sweep", "--resume", first["resume"], "--dry-run")["queues"]
    assert rest["documents"] == 2

    said = shell("sweep")
    assert "created" in said
    wait_until(lambda: len(seen) == 250)
    assert sorted(seen) == list(range(250))
    (report,) = shell.json("sweep")["queues"]
    assert (report["documents"], report["stale"]) == (0, [])


@pytest.mark.parametrize("storage", STORAGES)
def test_dead_letters_are_requeued_and_handled(
    declare: Declare, open_shell: OpenShell, storage: str
) -> None:
    queue = declare(storage=storage, batch_period=0)
    seen: list[tuple[str, int]] = []
    rejects = True

    @queue.handler
    async def note(item: Item[dict[str, Any]]) -> None:
        if rejects and item.payload["n"] < 30:
            raise Reject(f"[red] not {item.payload['n']}")
        seen.append((item.id, item.attempt))

    ids = queue.enqueue_many([{"n": n} for n in range(40)])
    wait_until(lambda: queue.counters["items_dead"] == 30 and len(seen) == 10)
    shell = open_shell(queue)
    now = Shell(shell.home, shell.env | {"AHEAD": "0"})
    table = shell("dead", "list")
    assert "[red] not 29" in table
    letters = shell.json("dead", "list", "--reason", "rejected", "--older-than", "30min")
    assert [one["id"] for one in letters["dead_letters"]] == sorted(ids[:30])
    assert now.json("dead", "list", "--older-than", "30min") == {"dead_letters": []}
    one = json.loads(shell("dead", "show", ids[7]))
    assert (one["payload"], one["error"], one["reason"]) == ('{"n":7}', "[red] not 7", "rejected")
    assert "no dead letter" in shell("dead", "show", ids[35], code=1)

    assert "30 dead letters found, 0 requeued (dry run)" in shell(
        "dead", "requeue", "--all", "--dry-run"
    )
    assert len(seen) == 10
    assert len(queue.dead_letters()) == 30

    assert "Say which" in shell("dead", "purge", code=2)
    assert "Aborted" in shell("dead", "purge", "--all", code=1), "nobody says yes"
    purged = now.json("dead", "purge", ids[0], ids[1], "--yes")
    assert purged["queues"][0]["done"] == 2

    rejects = False
    assert "28 dead letters found, 28 requeued" in now("dead", "requeue", "--all")
    wait_until(lambda: len(seen) == 38)
    assert sorted(item for item, _ in seen) == sorted(ids[2:])
    assert {attempt for _, attempt in seen} == {1}
    assert queue.dead_letters() == []


def test_what_is_wrong_is_said(declare: Declare, open_shell: OpenShell) -> None:
    shell = open_shell(declare())
    assert "no module 'nowhere'" in shell("sweep", "--queue", "nowhere:feeds", code=1)
    assert "not a queue but a type" in shell("sweep", "--queue", "feeds:Clock", code=1)
    assert "must be what an earlier sweep said" in shell("sweep", "--resume", "here", code=1)
    assert "must be as 90s" in shell("dead", "list", "--older-than", "soon", code=2)
    assert "from 1 to 64" in shell("sweep", "--partitions", "100", code=1)
    without = Shell(shell.home, {**shell.env, "FORKJOIN_QUEUE": ""})
    assert "FORKJOIN_QUEUE is not set" in without("sweep", code=1)


SCHEDULER = "scheduler@p.iam.gserviceaccount.com"
AUDIENCE = "https://sweep.example"


@pytest.fixture
def sweep_function(
    declare: Declare, open_shell: OpenShell, issuer: Issuer
) -> Iterator[tuple[ForkJoinQueue[Any], Function]]:
    """functions/main.py under functions-framework with the target sweep, and its queue."""
    queue = declare(batch_period=60)
    shell = open_shell(queue)
    ours = {name: text for name, text in shell.env.items() if os.environ.get(name) != text}
    ours |= {
        "FORKJOIN_SWEEP_INVOKER": SCHEDULER,
        "FORKJOIN_SWEEP_AUDIENCE": AUDIENCE,
        "FORKJOIN_CERTS_URL": issuer.certs_url,
    }
    del ours["PYTHONPATH"]
    with running_function(shell.home, target="sweep", **ours) as function:
        yield queue, function


def test_the_sweep_function_brings_batches_back(
    sweep_function: tuple[ForkJoinQueue[Any], Function], issuer: Issuer
) -> None:
    queue, function = sweep_function
    seen: list[int] = []

    @queue.handler
    async def note(item: Item[dict[str, Any]]) -> None:
        seen.append(item.payload["n"])

    queue.enqueue_many([{"n": n} for n in range(150)])
    assert delete_tasks(queue) == 1
    assert function.post(b"").status == 401
    assert function.post(b"", token=issuer.token(email=SCHEDULER)).status == 401, "of the join door"
    assert function.post(b"", token=issuer.token(aud=AUDIENCE)).status == 403
    assert seen == []
    answer = function.post(b"", token=issuer.token(aud=AUDIENCE, email=SCHEDULER))
    assert answer.status == 200, function.log.read_text()
    (report,) = json.loads(answer.body)["queues"]
    assert (report["queue"], report["items"], report["scheduled"]) == (queue.name, 150, 1)
    wait_until(lambda: len(seen) == 150)
