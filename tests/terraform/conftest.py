"""Terraform and a copy of the module, made once; what is missing is skipped, or fails in CI."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.terraform import tools
from tests.terraform.plan import Plan, read_plan
from tests.terraform.workspace import Workspace


@pytest.fixture(scope="session")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """The module as it is. Not to be changed: ``changed`` is for that."""
    try:
        found = tools.find()
    except tools.ToolMissing as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(str(error))
    made = Workspace(tmp_path_factory.mktemp("repository"), found)
    done = made.init()
    assert done.returncode == 0, done.stderr
    return made


@pytest.fixture
def changed(workspace: Workspace, tmp_path: Path) -> Workspace:
    """A copy of the module to spoil."""
    return workspace.copy(tmp_path / "changed")


@pytest.fixture(scope="session")
def plan(workspace: Workspace) -> Plan:
    """What the module would make."""
    return read_plan(workspace)
