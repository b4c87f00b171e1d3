"""What is said and done where terraform, or a provider, is missing."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.terraform import __main__ as command
from tests.terraform import tools


@pytest.fixture(autouse=True)
def _home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tools, "HOME", tmp_path / "tools")


def cannot_install(program: str, packages: list[str]) -> str:
    raise tools.ToolMissing(f"{program} could not be installed: no matching distribution")


def program(folder: Path, version: str) -> str:
    """A terraform that knows its version, and no more."""
    path = folder / "terraform"
    path.write_text(f'#!/bin/sh\necho \'{{"terraform_version": "{version}"}}\'\n')
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(("ci", "code"), [("true", 1), ("", 0)])
def test_no_terraform_is_said_and_fails_in_ci(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], ci: str, code: int
) -> None:
    monkeypatch.setenv("CI", ci)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(tools, "install", cannot_install)
    assert command.main() == code
    said = capsys.readouterr().err
    assert "terraform/ was not checked: no terraform: there is none on the PATH" in said
    assert "https://developer.hashicorp.com/terraform/install" in said


def test_an_old_terraform_gives_way_to_that_of_pypi(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    old = program(tmp_path, "1.5.7")
    monkeypatch.setattr(shutil, "which", lambda name: old)
    monkeypatch.setattr(tools, "install", cannot_install)
    with pytest.raises(tools.ToolMissing, match=r"terraform is 1\.5\.7, and 1\.11 is needed"):
        tools.find()
    (tmp_path / "new").mkdir()
    new = program(tmp_path / "new", "1.15.5")
    monkeypatch.setattr(tools, "install", lambda name, packages: new)
    assert tools.find().version == "1.15.5"


def test_no_provider_at_all_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    new = program(tmp_path, "1.15.5")
    monkeypatch.setattr(shutil, "which", lambda name: new)
    monkeypatch.setattr(tools, "_cannot_download", lambda *_: "could not connect to registry")

    def refuse(*_: Any) -> Path:
        raise subprocess.CalledProcessError(1, "pip", stderr=b"No matching distribution found")

    monkeypatch.setattr(tools.mirror, "build", refuse)
    with pytest.raises(tools.ToolMissing, match=r"could not connect .* nor .*No matching distrib"):
        tools.find()


def test_versions_are_pinned_where_the_schema_depends_on_them() -> None:
    schemas = tools.requirements("terraform_schemas")
    assert schemas
    assert all("==" in one for one in schemas)
