"""What is deployed: its pins, the staged source, and the images of the examples."""

from __future__ import annotations

import configparser
import json
import os
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
FUNCTIONS = ROOT / "functions"
SERVICES = [ROOT / "examples" / "service", ROOT / "examples" / "service_async"]


def lines(file: Path) -> list[str]:
    return [line for line in file.read_text("utf-8").splitlines() if line and line[0] != "#"]


def pins() -> dict[str, str]:
    found = [
        re.fullmatch(r"([A-Za-z0-9._-]+)==(\S+)", line)
        for line in lines(FUNCTIONS / "requirements.txt")
    ]
    assert all(found), "every requirement is pinned to one version"
    return {canonicalize_name(one[1]): one[2] for one in found if one}


def settings() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def test_the_pins_are_versions_that_the_package_takes() -> None:
    pinned = pins()
    assert pinned["forkjoin-gcp"] == settings()["metadata"]["version"]
    for line in settings()["options"]["install_requires"].split("\n"):
        if line:
            wanted = Requirement(line)
            version = pinned[canonicalize_name(wanted.name)]
            assert wanted.specifier.contains(version), f"{wanted}: run `make pins`"


def test_everything_that_the_package_needs_is_pinned_down_to_the_last() -> None:
    pinned = pins()
    first = [line for line in settings()["options"]["install_requires"].split("\n") if line]
    seen: set[str] = set()
    waiting = [(Requirement(line), "") for line in first]
    while waiting:
        wanted, extra = waiting.pop()
        if wanted.marker and not wanted.marker.evaluate({"extra": extra}):
            continue
        name = canonicalize_name(wanted.name)
        assert name in pinned, f"{name} is needed and not pinned: run `make pins`"
        for each in ("", *wanted.extras):
            if f"{name}[{each}]" not in seen:
                seen.add(f"{name}[{each}]")
                try:
                    waiting += [(Requirement(line), each) for line in requires(name) or []]
                except PackageNotFoundError:
                    pytest.fail(f"{name} is pinned and not installed here")


HANDLERS = """
from greetings import hello
from forkjoin_gcp import ForkJoinQueue
feeds = ForkJoinQueue("feeds")
@feeds.handler
async def handle(item): hello()
"""
LOADED = """
import json, sys, time
began = time.process_time()
import main, forkjoin_gcp
took = time.process_time() - began
clients = "grpc", "google.api_core", "google.cloud.firestore_v1", "google.cloud.tasks_v2", "redis"
loaded = [name for name in clients if name in sys.modules]
print(json.dumps([forkjoin_gcp.__file__, main.__file__, main.queues[0].name, took, loaded]))
"""


@pytest.fixture
def staged(tmp_path: Path) -> Path:
    handlers = tmp_path / "handlers"
    (handlers / "greetings").mkdir(parents=True)
    (handlers / "feeds.py").write_text(HANDLERS)
    (handlers / "greetings" / "__init__.py").write_text("def hello(): pass")
    (handlers / "greetings" / "text.json").write_text("{}")
    (handlers / ".env").write_text("SECRET=1")
    (handlers / "__pycache__").mkdir()
    (handlers / "__pycache__" / "feeds.pyc").touch()
    (handlers / "requirements.txt").write_text("# ours\naiohttp>=3.10\nforkjoin-gcp\n")
    done = stage(handlers, tmp_path / "staged")
    assert done.returncode == 0, done.stderr
    return tmp_path / "staged"


def stage(handlers: Path, target: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(FUNCTIONS / "stage.py"), str(handlers), str(target)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_staged_source_is_whole_and_has_nothing_more(staged: Path) -> None:
    files = {str(path.relative_to(staged)) for path in staged.rglob("*") if path.is_file()}
    of_package = {file for file in files if file.startswith("forkjoin_gcp/")}
    assert files - of_package == {
        "main.py", "requirements.txt", "feeds.py", "greetings/__init__.py", "greetings/text.json"
    }  # fmt: skip
    assert "forkjoin_gcp/gcp/lua/lane.lua" in of_package
    assert not [file for file in of_package if "/emulators/" in file or "/cli/" in file]
    required = lines(staged / "requirements.txt")
    assert "aiohttp>=3.10" in required
    assert not [line for line in required if "forkjoin" in line]
    assert len(required) == len(pins())


def test_staged_source_is_loaded_from_where_it_is(staged: Path) -> None:
    environ = {name: text for name, text in os.environ.items() if not name.startswith("FORKJOIN_")}
    environ |= {
        "PYTHONPATH": str(staged),
        "FORKJOIN_QUEUE": "feeds:feeds",
        "FORKJOIN_JOIN_URL": "https://join.example",
        "FORKJOIN_INVOKER": "tasks@p.iam.gserviceaccount.com",
    }
    done = subprocess.run(
        [sys.executable, "-c", LOADED],
        cwd=staged, env=environ, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    package, main, name, took, loaded = json.loads(done.stdout)
    assert Path(package).parents[1] == staged
    assert Path(main).parent == staged
    assert name == "feeds"
    assert loaded == [], "the clients are loaded beside the start, and not before it"
    assert took < 1.5, "s of CPU"


def test_staging_overwrites_nothing(staged: Path, tmp_path: Path) -> None:
    assert "is not empty" in stage(tmp_path / "handlers", staged).stderr
    (tmp_path / "handlers" / "main.py").touch()
    assert "has the name of a file" in stage(tmp_path / "handlers", tmp_path / "other").stderr
    assert "is no directory" in stage(tmp_path / "nowhere", tmp_path / "third").stderr


@pytest.mark.parametrize("service", SERVICES, ids=lambda path: path.name)
def test_an_image_copies_what_there_is_and_runs_what_the_buildpack_runs(service: Path) -> None:
    """No image is built here: that takes a network and a daemon."""
    text = (service / "Dockerfile").read_text("utf-8")
    for copied in re.findall(r"^COPY (.+) \S+$", text, re.MULTILINE):
        for source in copied.split():
            assert (ROOT / source).exists(), source
            top = source.partition("/")[0]
            assert f"!{top}" in (ROOT / ".dockerignore").read_text("utf-8").split()
    found = re.search(r"^CMD (\[.+\])$", text, re.MULTILINE)
    assert found
    command = json.loads(found[1])
    if command[:2] == ["sh", "-c"]:
        command = command[2].removeprefix("exec ").split()
    assert f"web: {' '.join(command)}" == (service / "Procfile").read_text("utf-8").strip()
    assert "forkjoin-gcp" in lines(service / "requirements.txt"), "the Dockerfile replaces it"
