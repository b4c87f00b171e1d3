"""The Cloud Tasks emulator as a process of its own."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.cloud import tasks_v2
from google.cloud.tasks_v2.services.cloud_tasks.transports import CloudTasksGrpcTransport

ROOT = Path(__file__).resolve().parents[2]
QUEUE = "projects/p/locations/l/queues/q"


@contextlib.contextmanager
def emulator(*arguments: str) -> Iterator[tuple["subprocess.Popen[str]", dict[str, Any]]]:
    """The process and the addresses it prints."""
    process = subprocess.Popen(
        [sys.executable, "-m", "forkjoin_gcp.emulators.cloud_tasks", *arguments],
        cwd=ROOT,
        env=os.environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            assert process.stdout is not None
            yield process, json.loads(process.stdout.readline())
        finally:
            process.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_says_where_it_is_serves_and_ends_cleanly(number: signal.Signals) -> None:
    arguments = ("--grpc-port", "0", "--http-port", "0", "--auto-create-queues")
    with emulator(*arguments, "--tombstone-age", "0") as (process, addresses):
        with grpc.insecure_channel(addresses["grpc_address"]) as channel:
            client = tasks_v2.CloudTasksClient(transport=CloudTasksGrpcTransport(channel=channel))
            # Nobody answers there: the task is in flight or waits for its retry at the end.
            request = tasks_v2.HttpRequest(url="http://127.0.0.1:9/")
            task = tasks_v2.Task(name=f"{QUEUE}/tasks/t", http_request=request)
            client.create_task(parent=QUEUE, task=task)
            client.delete_task(name=task.name)
            client.create_task(parent=QUEUE, task=task)  # a tombstone of no age
        stats_url = f"http://{addresses['http_address']}/stats"
        with urllib.request.urlopen(stats_url, timeout=5) as response:
            assert json.load(response)["creates"] == 2
        process.send_signal(number)
        assert process.wait(10) == 0
        assert process.stderr is not None
        assert process.stderr.read() == ""


def test_the_containers_command_serves() -> None:
    """As docker-compose.yml gives it, but for the ports."""
    (command,) = re.findall(
        r"^    command: \[python, -m, forkjoin_gcp.emulators.cloud_tasks, (.*)\]$",
        (ROOT / "docker-compose.yml").read_text("utf-8"),
        re.MULTILINE,
    )
    arguments = [re.sub(r"-port=\d+", "-port=0", each) for each in command.split(", ")]
    assert "--host=0.0.0.0" in arguments
    with emulator(*arguments) as (_, addresses):
        assert addresses["http_address"].startswith("0.0.0.0:")
        port = addresses["http_address"].rpartition(":")[2]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as response:
            assert response.status == 200


def test_a_port_that_is_taken_is_said() -> None:
    with emulator() as (_, addresses):
        port = addresses["grpc_address"].rpartition(":")[2]
        second = subprocess.run(
            [sys.executable, "-m", "forkjoin_gcp.emulators.cloud_tasks", "--grpc-port", port],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
    assert second.returncode == 1
    assert f"cannot listen on 127.0.0.1:{port}" in second.stderr
    assert "Traceback" not in second.stderr
