"""The stand-in for a provider: what it finds, and that it does nothing else."""

from __future__ import annotations

from typing import Any

import pytest

from tests.terraform.schema_provider import server, wire
from tests.terraform.workspace import Workspace

pytestmark = pytest.mark.timeout(600)

BLOCK: dict[str, Any] = {
    "attributes": {
        "name": {"type": "string", "required": True},
        "mode": {"type": "string", "optional": True, "enum": ["CLUSTER", "CLUSTER_DISABLED"]},
        "size": {"type": "string", "optional": True, "listed": ["SMALL", "LARGE"]},
        "state": {"type": "string", "computed": True},
    },
    "block_types": {
        "rule": {
            "nesting_mode": "list",
            "block": {"attributes": {"type": {"type": "string", "required": True}}},
        }
    },
}


@pytest.mark.parametrize(
    ("value", "severity", "found"),
    [
        ({"name": None}, wire.ERROR, 'The argument "name" is required, but it is null.'),
        ({"name": "a", "state": "UP"}, wire.ERROR, '"state" cannot be set'),
        ({"name": "a", "mode": "BOTH"}, wire.ERROR, "one of CLUSTER, CLUSTER_DISABLED, got BOTH"),
        ({"name": "a", "size": "HUGE"}, wire.WARNING, "one of SMALL, LARGE, got HUGE"),
        ({"name": "a", "rule": [{"type": None}]}, wire.ERROR, 'argument "rule.type" is required'),
    ],
)
def test_faults_that_a_real_provider_finds(
    value: dict[str, Any], severity: int, found: str
) -> None:
    ((given, sentence),) = server.faults(BLOCK, value)
    assert given == severity
    assert found in sentence


def test_what_is_right_has_no_fault() -> None:
    value = {"name": "a", "mode": "CLUSTER", "size": None, "rule": [{"type": "x"}], "state": None}
    assert list(server.faults(BLOCK, value)) == []


def test_a_message_is_read_as_it_was_written() -> None:
    message = wire.text(1, "é" * 200) + wire.text(300, b"\x00\xff") + wire.text(2, "")
    assert wire.fields(message) == {1: ("é" * 200).encode(), 300: b"\x00\xff", 2: b""}


def test_nothing_can_be_planned_with_it(workspace: Workspace) -> None:
    if "stand-ins" not in workspace.tools.providers:
        pytest.skip("the real providers are here")
    example = "examples/minimal"
    assert workspace.init(example).returncode == 0
    values = ("-var=project=test-project", "-var=image=x")
    done = workspace.terraform("plan", "-no-color", "-input=false", *values, folder=example)
    assert done.returncode == 1
    assert "It cannot plan" in " ".join(done.stderr.split())
