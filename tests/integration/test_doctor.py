"""`forkjoin doctor` on local services: whole, and broken in one way each."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import flask
import grpc
import pytest
import redis
from click.testing import CliRunner
from google.cloud.tasks_v2 import CloudTasksClient
from google.cloud.tasks_v2.services.cloud_tasks.transports import CloudTasksGrpcTransport

from forkjoin_gcp.cli import main
from forkjoin_gcp.emulators import LocalServices
from forkjoin_gcp.emulators.processes import ChildProcess, free_port
from forkjoin_gcp.emulators.valkey import find_server
from tests.integration.conftest import serving, wait_until

MODULE = """
from forkjoin_gcp import ForkJoinQueue
feeds = ForkJoinQueue("{name}", shards=2)
memory = ForkJoinQueue("{name}", shards=2, storage="memorystore")
text = "no queue"
"""


@dataclass
class Setup:
    """A queue on local services, its module, and the environment that says where they are."""

    environ: dict[str, str]
    name: str
    module: str
    services: LocalServices
    directory: Path
    close: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def examine(self, *options: str) -> tuple[int, list[dict[str, str]]]:
        """The exit code, and the findings."""
        command = ["doctor", "--local", "--dir", str(self.directory), "--json", *options]
        outer = {name: None for name in os.environ if name.startswith("FORKJOIN_")}
        done = CliRunner().invoke(main, command, env={**outer, **self.environ})
        assert done.exception is None or isinstance(done.exception, SystemExit), done.output
        answer = json.loads(done.stdout)
        assert answer["faults"] == sum(one["status"] == "fault" for one in answer["findings"])
        return done.exit_code, answer["findings"]

    @property
    def tasks(self) -> CloudTasksClient:
        channel = grpc.insecure_channel(self.environ["CLOUD_TASKS_EMULATOR_HOST"])
        self.close.callback(channel.close)
        return CloudTasksClient(transport=CloudTasksGrpcTransport(channel=channel))

    def task_queue(self, shard: int) -> str:
        project, location = self.environ["FORKJOIN_PROJECT"], self.environ["FORKJOIN_LOCATION"]
        return f"projects/{project}/locations/{location}/queues/{self.name}-{shard}"

    def serve(self, answer: Callable[[], Any], path: str = "/forkjoin") -> None:
        """Another service at the join URL."""
        app = flask.Flask(uuid.uuid4().hex)
        app.add_url_rule(path, view_func=answer, methods=["POST"])
        port = self.close.enter_context(serving(app))
        self.environ["FORKJOIN_JOIN_URL"] = f"http://127.0.0.1:{port}/forkjoin"

    def valkey(self, **config: str) -> redis.Redis:
        """Another Valkey, set up like that, and a client of it."""
        port = free_port()
        home = self.directory / f"valkey-{port}"
        home.mkdir()
        command = [str(find_server()), "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
        for name, text in {"dir": str(home), **config}.items():
            command += [f"--{name.replace('_', '-')}", text]
        child = ChildProcess("valkey", command, home / "log")
        self.close.callback(child.stop)
        address = f"127.0.0.1:{port}"
        child.wait_ready(lambda: _listens(port), 20)
        self.environ["FORKJOIN_MEMORYSTORE"] = f"redis://{address}"
        return self.close.enter_context(
            redis.Redis(port=port, password=config.get("requirepass"), socket_timeout=5)
        )


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


@pytest.fixture
def setup(
    local_services: LocalServices, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Setup]:
    """A whole one."""
    name, module = f"q{uuid.uuid4().hex[:10]}", f"declares_{uuid.uuid4().hex[:10]}"
    (tmp_path / f"{module}.py").write_text(MODULE.format(name=name))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    for shard in (1, 2):
        local_services.create_queue(f"{name}-{shard}", max_attempts=-1)
    environ = local_services.environment() | {"FORKJOIN_QUEUE": f"{module}:feeds"}
    made = Setup(environ, name, module, local_services, tmp_path)
    with made.close:
        made.serve(lambda: ({"error": "no token"}, 401))
        made.valkey(maxmemory_policy="noeviction")
        yield made
    sys.modules.pop(module, None)


def test_a_whole_one_has_no_fault(setup: Setup) -> None:
    code, findings = setup.examine()
    assert {one["status"] for one in findings} <= {"ok", "skipped"}, findings
    assert code == 0
    checks = [one["check"] for one in findings]
    assert checks.count("task queues") == 2
    assert set(checks) == {
        "environment", "credentials", "invoker", "task queues", "database", "expiry", "valkey",
        "join URL",
    }  # fmt: skip


def _unset(variable: str) -> Callable[[Setup], None]:
    return lambda setup: setup.environ.pop(variable) and None


def _set(variable: str, value: str) -> Callable[[Setup], None]:
    return lambda setup: setup.environ.update({variable: value})


def _nobody(variable: str, form: str = "127.0.0.1:{}") -> Callable[[Setup], None]:
    return lambda setup: setup.environ.update({variable: form.format(free_port())})


def _declare(attribute: str) -> Callable[[Setup], None]:
    return lambda setup: setup.environ.update(FORKJOIN_QUEUE=f"{setup.module}:{attribute}")


def _paused(setup: Setup) -> None:
    setup.tasks.pause_queue(name=setup.task_queue(2))


def _deleted(setup: Setup) -> None:
    setup.tasks.delete_queue(name=setup.task_queue(2))


def _evicting(setup: Setup) -> None:
    _declare("memory")(setup)
    setup.valkey(maxmemory_policy="volatile-lru")


def _clustered(setup: Setup) -> None:
    node = setup.valkey(cluster_enabled="yes")
    node.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16_383)
    wait_until(lambda: node.execute_command("CLUSTER INFO")["cluster_state"] == "ok")


def _open_to_all(setup: Setup) -> None:
    setup.serve(lambda: ({}, 200))


def _checked_by_cloud_run(setup: Setup) -> None:
    setup.serve(lambda: ("<html>403", 403))


def _without_settings(setup: Setup) -> None:
    setup.serve(lambda: ({"error": "try again later"}, 503))


def _elsewhere(setup: Setup) -> None:
    setup.serve(lambda: ({"error": "no token"}, 401), path="/other")


BROKEN: list[tuple[str, Callable[[Setup], None], str, str, str]] = [
    ("a variable is missing", _set("FORKJOIN_INVOKER", ""),
     "environment", "FORKJOIN_INVOKER is not set", "service account"),
    ("a variable has the wrong form", _set("FORKJOIN_MEMORYSTORE", "127.0.0.1:6379"),
     "environment", "FORKJOIN_MEMORYSTORE", "nothing else was looked at"),
    ("an emulator's address is missing", _set("CLOUD_TASKS_EMULATOR_HOST", ""),
     "environment", "Google Cloud would be called", "forkjoin local env"),
    ("the queue is not declared", _declare("nothing"),
     "queues", "no attribute 'nothing'", "Correct it"),
    ("the attribute is no queue", _declare("text"), "queues", "not a queue but a str", "Correct"),
    ("a task queue is missing", _deleted, "task queues", "-2 does not exist", "shards"),
    ("a task queue is paused", _paused, "task queues", "-2 is PAUSED", "queues resume projects/"),
    ("Cloud Tasks is down", _nobody("CLOUD_TASKS_EMULATOR_HOST"),
     "task queues", "CLOUD_TASKS_EMULATOR_HOST=127.0.0.1", "forkjoin local up"),
    ("Firestore is down", _nobody("FIRESTORE_EMULATOR_HOST"),
     "database", "FIRESTORE_EMULATOR_HOST=127.0.0.1", "forkjoin local up"),
    ("Valkey is down", _nobody("FORKJOIN_MEMORYSTORE", "redis://127.0.0.1:{}"),
     "valkey", "Connect call failed", "forkjoin local up"),
    ("Valkey wants a password", lambda setup: setup.valkey(requirepass="secret") and None,
     "valkey", "Authentication required", "Correct the user and password"),
    ("Valkey evicts what a memory-only queue keeps", _evicting,
     "valkey", "its policy is volatile-lru", "noeviction"),
    ("Valkey is a cluster", _clustered, "valkey", "it is a cluster", r"Add ?cluster=true"),
    ("nobody is at the join URL", _nobody("FORKJOIN_JOIN_URL", "http://127.0.0.1:{}/forkjoin"),
     "join URL", "Connection refused", "Start what serves the queue"),
    ("the join URL lets anyone in", _open_to_all,
     "join URL", "answers 200 without a token", "FORKJOIN_ALLOW_UNAUTHENTICATED"),
    ("another check is before the join URL", _checked_by_cloud_run,
     "join URL", "answers 403", "Cloud Run's own check"),
    ("the join URL's service lacks settings", _without_settings,
     "join URL", "answers 503 without a token (try again later)", "Read the service's log"),
    ("the join URL has another path", _elsewhere, "join URL", "answers 404", "Correct the path"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("spoil", "check", "text", "fix"), [row[1:] for row in BROKEN], ids=[row[0] for row in BROKEN]
)
def test_each_fault_is_named_and_no_other(
    spoil: Callable[[Setup], None], check: str, text: str, fix: str, setup: Setup
) -> None:
    spoil(setup)
    code, findings = setup.examine()
    faults = [one for one in findings if one["status"] == "fault"]
    assert code == 1
    assert {one["check"] for one in faults} - {"queues"} <= {check}, faults
    (found,) = [one for one in faults if one["check"] == check]
    assert text in found["text"]
    assert fix in found["fix"]


def test_what_is_odd_but_works_is_a_warning(setup: Setup) -> None:
    setup.environ["FORKJOIN_PROJET"] = "p"
    setup.valkey(maxmemory_policy="allkeys-lru")
    queue = setup.tasks.get_queue(name=setup.task_queue(1))
    queue.retry_config.max_attempts = 5
    setup.tasks.update_queue(queue=queue)
    code, findings = setup.examine()
    assert code == 0
    warnings = {one["check"]: one["text"] for one in findings if one["status"] == "warning"}
    assert "did you mean 'FORKJOIN_PROJECT'" in warnings["environment"]
    assert "allkeys-lru" in warnings["valkey"]
    assert "after 5 attempts" in warnings["task queues"]


def test_a_clock_that_is_off_is_named(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("forkjoin_gcp.gcp.doctor.valkey.time", lambda: 1_000.0)
    _, findings = setup.examine()
    (found,) = [one for one in findings if one["status"] == "fault"]
    assert found["check"] == "valkey"
    assert "5 s are allowed" in found["text"]


def test_the_commands_own_output_names_fault_and_fix(setup: Setup) -> None:
    setup.environ["FORKJOIN_MEMORYSTORE"] = f"redis://:hunter2@127.0.0.1:{free_port()}"
    done = subprocess.run(
        [sys.executable, "-m", "forkjoin_gcp.cli", "doctor", "--local"],
        env={**os.environ, **setup.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        cwd=setup.directory,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    lines = done.stdout.splitlines()
    (number,) = [n for n, line in enumerate(lines) if line.startswith("fault")]
    assert "valkey" in lines[number]
    assert lines[number + 1].split() == ["->", "forkjoin", "local", "up"]
    assert "hunter2" not in done.stdout


def test_what_runs_in_the_directory_is_examined_where_nothing_is_set(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    from forkjoin_gcp.emulators import record

    environment = dict(setup.environ)
    present = record.Record(pid=os.getpid(), environment=environment, services=[])
    home = setup.directory / "state"
    record.prepare(home)
    with record.running_here(home):
        record.write(home, present)
        setup.environ.clear()
        setup.environ["FORKJOIN_QUEUE"] = environment["FORKJOIN_QUEUE"]
        code, findings = setup.examine("--dir", str(home))
    assert code == 0, findings
