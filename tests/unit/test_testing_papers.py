"""The test code that the papers show, run by pytest as a user's own: what needs no service."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "testing.md").read_text("utf-8")
README = (ROOT / "README.md").read_text("utf-8")

PLAIN = ("-p", "no:cacheprovider", "-p", "no:hypothesispytest", "-p", "no:xdist")
"""Without what our own tests have installed: Hypothesis alone takes half a second to load."""


def files_in(text: str) -> dict[str, str]:
    """Python blocks that say in their first line which file they are."""
    blocks = re.findall(r"```python\n(# (\w+\.py)\n.*?)```", text, re.DOTALL)
    return {name: block for block, name in blocks}


def run_pytest(folder: Path, files: dict[str, str], *arguments: str) -> str:
    """Write the files, run pytest there with the plugin, and return what it said."""
    for name, text in files.items():
        (folder / name).write_text(text)
    (folder / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\n    ignore:.*google.*\n")
    # Where the package is installed, its entry point has registered the plugin already.
    installed = entry_points(group="pytest11", name="forkjoin_gcp")
    plugins = [*PLAIN]
    plugins += [] if installed else ["-p", "forkjoin_gcp.testing.plugin"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *plugins, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_pages_tests_pass(tmp_path: Path) -> None:
    files = files_in(PAGE)
    assert {"feeds.py", "conftest.py", "test_feeds.py", "test_two_queues.py"} < files.keys()
    said = run_pytest(tmp_path, files, "test_feeds.py", "test_two_queues.py")
    assert "7 passed" in said


def test_the_readmes_tests_pass(tmp_path: Path) -> None:
    """Whatever block of the README is a file of tests, beside its feeds.py."""
    shown = files_in(README)
    for name in shown:
        if name.startswith("test_"):
            assert "passed" in run_pytest(tmp_path, {**files_in(PAGE), **shown}, name)


def test_every_block_of_the_page_is_run_and_formatted(tmp_path: Path) -> None:
    assert PAGE.count("```python") == len(files_in(PAGE))
    for name, text in files_in(PAGE).items():
        (tmp_path / name).write_text(text)
    for command in (["format", "--diff"], ["check", "--isolated", "--select=I,E,F"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "--line-length=100", tmp_path],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
