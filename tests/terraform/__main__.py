"""`make terraform`: format, validate, test and scan terraform/, and hold it to the code."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.terraform import tools
from tests.terraform.workspace import Workspace

EXAMPLES = ("examples/minimal", "examples/existing-network")
PYTEST_SECONDS = 1_200

Step = tuple[str, subprocess.CompletedProcess[str]]


def main() -> int:
    try:
        found = tools.find()
        checkov = tools.install(
            "checkov", [one for one in tools.requirements("terraform") if one.startswith("checkov")]
        )
    except tools.ToolMissing as error:
        print(f"terraform/ was not checked: {error}", file=sys.stderr)
        # On a machine of one's own that is something to know; in CI it is a failure.
        return 1 if os.environ.get("CI") == "true" else 0
    print(f"terraform {found.version}, with {found.providers}", flush=True)
    failed = []
    with tempfile.TemporaryDirectory() as folder:
        workspace = Workspace(Path(folder), found)
        for name, done in steps(workspace, checkov):
            good = done.returncode == 0
            if not good:
                failed.append(name)
            print(f"{'ok  ' if good else 'FAIL'} {name}", flush=True)
            if not good:
                print(done.stdout + done.stderr, flush=True)
    began = time.monotonic()
    tested = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n", "2", "tests/terraform"],
        cwd=tools.REPOSITORY,
        timeout=PYTEST_SECONDS,
        check=False,
    )
    if tested.returncode:
        failed.append("tests/terraform")
    print(f"tests/terraform took {time.monotonic() - began:.0f} s", flush=True)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def steps(workspace: Workspace, checkov: str) -> Iterator[Step]:
    """What is done in the copy, one after the other."""
    yield "terraform fmt", workspace.terraform("fmt", "-check", "-diff", "-recursive", "-no-color")
    for folder in ("", *EXAMPLES):
        where = f" in {folder}" if folder else ""
        yield f"terraform init{where}", workspace.init(folder)
        yield (
            f"terraform validate{where}",
            workspace.terraform("validate", "-no-color", folder=folder),
        )
    yield "terraform test", workspace.terraform("test", "-no-color")
    scan = [checkov, "--directory", ".", "--framework", "terraform", "--skip-download"]
    quiet = ["--compact", "--quiet"]
    yield (
        "checkov",
        subprocess.run(
            [*scan, *quiet],
            cwd=workspace.module,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        ),
    )


if __name__ == "__main__":
    sys.exit(main())
