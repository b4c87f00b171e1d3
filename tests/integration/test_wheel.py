"""The built wheel, alone in a fresh environment: what a user installs, not the tree."""

from __future__ import annotations

import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

USE = """
import forkjoin_gcp, pathlib, sys
from importlib.metadata import version
from forkjoin_gcp.gcp.memorystore import MemorystoreIndex
from forkjoin_gcp.ports import Counters
import redis.asyncio
assert pathlib.Path(forkjoin_gcp.__file__).is_relative_to(sys.prefix), forkjoin_gcp.__file__
queue = forkjoin_gcp.ForkJoinQueue("feeds", batch_size=10)
MemorystoreIndex(redis.asyncio.Redis(), queue.config, Counters())
forkjoin_gcp.join_function(queue)
print(version("forkjoin-gcp"))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    # A copy: building in place leaves a build folder, whose old files the next wheel would hold.
    source = folder / "source"
    source.mkdir()
    shutil.copytree(ROOT / "forkjoin_gcp", source / "forkjoin_gcp")
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--outdir", folder, source],
        check=True,
        capture_output=True,
    )
    (built,) = folder.glob("*.whl")
    return built


def test_it_holds_the_package_whole_and_nothing_else(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    tree = {
        str(path.relative_to(ROOT))
        for kind in ("*.py", "*.lua", "py.typed")
        for path in (ROOT / "forkjoin_gcp").rglob(kind)
    }
    assert tree <= names
    assert {name.split("/")[0].split("-")[0] for name in names} == {"forkjoin_gcp"}


def test_it_works_in_a_fresh_environment(wheel: Path, tmp_path: Path) -> None:
    environment = tmp_path / "venv"
    venv.create(environment)
    python = environment / "bin" / "python"
    # By our pip, and not compiled: most of what it needs is never imported here.
    pip = (sys.executable, "-m", "pip", "--python", python)
    subprocess.run([*pip, "install", "--quiet", "--no-compile", wheel], check=True)
    done = subprocess.run(
        [python, "-c", USE], cwd=tmp_path, check=True, capture_output=True, text=True
    )
    assert done.stdout.strip() in wheel.name
