"""A wrong value is refused with a sentence that names it; what is just within its limits is not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from forkjoin_gcp import QueueConfig
from tests.terraform.workspace import Workspace

pytestmark = pytest.mark.timeout(600)

HEAD = """
mock_provider "google" {
  override_during = plan
}
mock_provider "archive" {
  override_during = plan
}
"""
BASE: dict[str, Any] = {
    "project": "test-project",
    "location": "us-central1",
    "queues": {"feeds": {}},
    "join": {"queue": "feeds:feeds", "source_directory": "./examples/minimal/handlers"},
}


def limits() -> dict[str, tuple[float, float]]:
    """The least and the most of each setting that is a number."""
    found = {}
    for name, field in QueueConfig.model_fields.items():
        each = {type(limit).__name__: limit for limit in field.metadata}
        if isinstance(field.json_schema_extra, dict):
            found[name] = (each["Ge"].ge, each["Le"].le)
    return found


def said_of(workspace: Workspace, **variables: Any) -> str:
    """What terraform says of these values; "" where it plans with them."""
    test = Path("tests/values.tftest.hcl")
    values = "\n".join(f"{name} = {json.dumps(one)}" for name, one in (BASE | variables).items())
    (workspace.module / test).write_text(
        f'{HEAD}\nvariables {{\n{values}\n}}\nrun "values" {{\n  command = plan\n}}\n'
    )
    done = workspace.terraform("test", "-json", f"-filter={test}")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    faults = [one["diagnostic"] for one in lines if one["type"] == "diagnostic"]
    assert (done.returncode == 0) is (not faults), done.stdout + done.stderr
    return "\n".join(fault["detail"] for fault in faults if fault["severity"] == "error")


def test_every_setting_out_of_its_range_is_named(changed: Workspace) -> None:
    queues, sentences = {}, []
    for n, (setting, (low, high)) in enumerate(sorted(limits().items())):
        for side, value in (("low", low - 1), ("high", high + 1)):
            queues[f"q{n}-{side}"] = {setting: value}
            sentences.append(f"queues.q{n}-{side}.{setting} = ")
    said = said_of(changed, queues=queues)
    for sentence in sentences:
        assert said.count(sentence) == 1, sentence
    assert f"must be from {1} to {1000} (items)." in said


def test_every_setting_at_its_limits_is_taken(changed: Workspace) -> None:
    least = {setting: low for setting, (low, _) in limits().items()}
    most = {setting: high for setting, (_, high) in limits().items()}
    for queues in ({"least": least}, {"most": most}):
        assert said_of(changed, queues=queues) == ""
        for settings in queues.values():
            QueueConfig("feeds", **settings)


JOIN = BASE["join"]

# Terraform says all that is wrong of different variables at once.
WRONG: list[tuple[dict[str, Any], list[str]]] = [
    (
        {
            "project": "12345",
            "name": "x",
            "location": "nam5",
            "memorystore": {"existing": "valkey"},
            "database": {"id": "db"},
            "join": {"queue": "feeds:feeds"},
            "subnetwork_range": "10.0.0.0/28",
            "enqueuers": ["serviceAccount:a@b"],
            "alarms": {"memory": 80},
            "task_log_sampling": 2,
            "sweep": {"schedule": "daily"},
        },
        [
            'project = "12345": must be a project id (not a number)',
            'name = "x": must be 4 to 20',
            'location = "nam5": must be a region',
            'memorystore.existing = "valkey": must be projects/PROJECT/',
            'database.id = "db": must be (default), or 4 to 63',
            "join: give either source_directory or archive.",
            'subnetwork_range = "10.0.0.0/28": must be a range as 10.80.0.0/22',
            "enqueuers: must be e-mail addresses, without serviceAccount: before them",
            "alarms.memory = 80: must be between 0 and 1.",
            "task_log_sampling = 2: must be from 0 to 1.",
            'sweep.schedule = "daily": must have five fields',
        ],
    ),
    (
        {
            "queues": {
                "late": {"sweep_after": 7200, "expire_after": 3600},
                "lost": {"on_success": "forget", "max_dispatches_per_second": 501},
                "half": {"lanes": 1.5, "version": "V1"},
                "-x": {},
            },
            "join": JOIN | {"queue": "feeds", "cpu": 0.5, "min_instances": 200},
            "memorystore": {"shards": 3},
        },
        [
            "queues.late: sweep_after = 7200 is more than expire_after = 3600.",
            'queues.lost.on_success = "forget": must be delete or keep.',
            "queues.lost.max_dispatches_per_second = 501: must be more than 0 and at most 500",
            "queues.half.lanes = 1.5: must be a whole number (lanes).",
            'queues.half.version = "V1": must be 1 to 31',
            "queues.-x: a queue's name must be 1 to 63 lower-case letters",
            'join.queue = "feeds": must be module:attribute',
            "join.cpu = 0.5: must be from 1 to 8; less only with request_concurrency = 1.",
            "join.min_instances = 200, join.max_instances = 100",
            "memorystore.shards = 3: must be 1 unless memorystore.cluster is true.",
        ],
    ),
]


@pytest.mark.parametrize(("variables", "sentences"), WRONG, ids=["places", "queues"])
def test_what_is_wrong_is_named(
    changed: Workspace, variables: dict[str, Any], sentences: list[str]
) -> None:
    said = " ".join(said_of(changed, **variables).split())
    assert [sentence for sentence in sentences if sentence not in said] == []
