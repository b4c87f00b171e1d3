"""The source that is zipped runs, by itself, as Cloud Run functions runs it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from functions import stage
from tests.terraform import tools
from tests.terraform.plan import Plan
from tests.terraform.workspace import Workspace

pytestmark = pytest.mark.timeout(600)

HANDLERS = "examples/minimal/handlers"
LISTS = "package = local.package_files, handlers = local.handler_files, lines = local.requirements"

RUN = """
import logging, sys
import functions_framework, forkjoin_gcp
target = sys.argv[1]
client = functions_framework.create_app(target, "main.py").test_client()
facts = {"event": "chunk", "queue": "feeds", "dead": 1}
logging.getLogger("forkjoin_gcp.joining.worker").info("chunk", extra={"forkjoin": facts})
print(forkjoin_gcp.__file__, client.post("/").status_code)
"""


@pytest.fixture(scope="module")
def lists(workspace: Workspace) -> dict[str, list[str]]:
    """What functions.tf puts into the zip, as terraform computes it."""
    variables = {
        "project": "test-project",
        "location": "us-central1",
        "queues": {"feeds": {}},
        "join": {"queue": "feeds:feeds", "source_directory": f"./{HANDLERS}"},
    }
    given = [f"-var={name}={json.dumps(value)}" for name, value in variables.items()]
    given = [one.replace('="', "=").removesuffix('"') for one in given]
    asked = workspace.terraform("console", *given, said=f"jsonencode({{{LISTS}}})\n")
    assert asked.returncode == 0, asked.stderr
    read: dict[str, list[str]] = json.loads(json.loads(asked.stdout))
    return read


@pytest.fixture(scope="module")
def source(lists: dict[str, list[str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The zip's content."""
    folder = tmp_path_factory.mktemp("source")
    copies = {folder / name: tools.REPOSITORY / name for name in lists["package"]}
    handlers = tools.REPOSITORY / "terraform" / HANDLERS
    copies |= {folder / name: handlers / name for name in lists["handlers"]}
    copies[folder / "main.py"] = tools.REPOSITORY / "functions" / "main.py"
    for target, origin in copies.items():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(origin, target)
    return folder


@pytest.mark.parametrize("target", ["join", "sweep"])
def test_the_source_runs_and_logs_in_fields(source: Path, plan: Plan, target: str) -> None:
    (service,) = plan[f"google_cloudfunctions2_function.{target}"]["service_config"]
    on_cloud_run = {"K_SERVICE": f"forkjoin-{target}", "FUNCTION_TARGET": target}
    environment = {
        "PATH": os.environ["PATH"],
        "LOG_EXECUTION_ID": "true",
        **on_cloud_run,
        **service["environment_variables"],
    }
    done = subprocess.run(
        [sys.executable, "-c", RUN, target],
        cwd=source,
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    place, status = done.stdout.split()
    assert Path(place).is_relative_to(source), "not what is installed here"
    assert status == "401", "the check of tokens is on"
    entries: list[dict[str, Any]] = [
        json.loads(line) for line in done.stderr.splitlines() if line.startswith("{")
    ]
    (chunk,) = (entry for entry in entries if "forkjoin" in entry)
    assert (chunk["severity"], chunk["forkjoin"]["dead"]) == ("INFO", 1)
    (refused,) = (entry for entry in entries if "refused (401)" in entry["message"])
    assert refused["severity"] == "WARNING"


def test_the_source_is_what_is_staged_by_hand(lists: dict[str, list[str]], tmp_path: Path) -> None:
    staged = tmp_path / "staged"
    stage.stage(tools.REPOSITORY / "terraform" / HANDLERS, staged)
    files = {str(path.relative_to(staged)) for path in staged.rglob("*") if path.is_file()}
    ours = {*lists["package"], *lists["handlers"], "main.py", "requirements.txt"}
    assert {file for file in files if not file.endswith("py.typed")} == ours
    assert (staged / "requirements.txt").read_text("utf-8").splitlines() == lists["lines"]
    names = {Requirement(line).name for line in lists["lines"]}
    assert {"functions-framework", "google-cloud-firestore", "pydantic", "aiohttp"} <= names
    assert "forkjoin-gcp" not in names, "it is in the archive"
