"""What the module would make, as `terraform test` plans it in terraform/tests/plan.tftest.hcl."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from tests.terraform.workspace import Workspace

TEST = "tests/plan.tftest.hcl"
ACCOUNTS = ("enqueuer", "join", "sweeper", "invoker", "builder")
"""Their e-mail addresses are ``NAME@test`` there."""


@dataclass(frozen=True)
class Plan:
    """``resources`` by address, each with its type and its values; ``outputs`` by name."""

    resources: dict[str, tuple[str, dict[str, Any]]]
    outputs: dict[str, Any]

    def of_type(self, kind: str) -> list[dict[str, Any]]:
        """The values of all resources of a type, in order of address."""
        return [values for _, (found, values) in sorted(self.resources.items()) if found == kind]

    def __getitem__(self, address: str) -> dict[str, Any]:
        return self.resources[address][1]


def read_plan(workspace: Workspace) -> Plan:
    """Plan the module of a workspace; AssertionError, with what terraform said, where it fails."""
    done = workspace.terraform("test", "-json", "-verbose", f"-filter={TEST}")
    said = [json.loads(line) for line in done.stdout.splitlines()]
    faults = [one["diagnostic"] for one in said if one["type"] == "diagnostic"]
    plans = [one["test_plan"] for one in said if one["type"] == "test_plan"]
    shown = "\n".join(f"{fault['summary']}: {fault['detail']}" for fault in faults)
    assert done.returncode == 0, shown or done.stderr
    assert len(plans) == 1, f"{TEST} has {len(plans)} plans"
    changes = plans[0]["resource_changes"]
    return Plan(
        {one["address"]: (one["type"], one["change"]["after"]) for one in changes},
        {name: one["after"] for name, one in plans[0]["output_changes"].items()},
    )
