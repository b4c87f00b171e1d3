"""What the papers say is so: their code runs, their tables are the code's, their names exist."""

from __future__ import annotations

import ast
import asyncio
import importlib.util
import inspect
import re
import subprocess
import sys
import types
from collections.abc import Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

import forkjoin_gcp
from forkjoin_gcp import QueueConfig, Services, config, errors, items
from forkjoin_gcp.config import OTHER_VARIABLES, VARIABLES
from forkjoin_gcp.endpoint import core
from forkjoin_gcp.gcp import doctor, firestore_documents
from forkjoin_gcp.ports import Release
from forkjoin_gcp.testing import index_contract, store_contract
from forkjoin_gcp.writing import groups, moves, writer
from tests.unit.test_queue import Cloud

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "forkjoin_gcp"
PLACES = (".", "docs", "examples", "functions", "terraform")
PAPERS = {
    str(path.relative_to(ROOT)): path.read_text("utf-8")
    for path in sorted(file for place in PLACES for file in ROOT.glob(f"{place}/*.md"))
}
README, PROTOCOL = PAPERS["README.md"], PAPERS["docs/protocol.md"]
CONFIGURATION = PAPERS["docs/configuration.md"]

every_paper = pytest.mark.parametrize("paper", PAPERS)


def rows(text: str, heading: str) -> list[list[str]]:
    """The cells of the first table below a heading, without its head."""
    _, _, below = text.partition(f"\n{heading}\n")
    assert below, f"no heading {heading!r}"
    found = re.search(r"(?:^\|.*\n)+", below, re.MULTILINE)
    assert found, f"no table below {heading!r}"
    return [
        [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip("|"))]
        for line in found[0].splitlines()[2:]
    ]


def codes(text: str) -> list[str]:
    return re.findall(r"`([^`\n]+)`", text)


# The README's code


class Web:
    """Stands in for aiohttp.request: every page is there but one."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    @asynccontextmanager
    async def request(self, method: str, url: str) -> Any:
        self.asked.append(url)
        await asyncio.sleep(0)
        yield types.SimpleNamespace(status=404 if url.endswith("/gone") else 200, read=self.read)

    async def read(self) -> bytes:
        return b"<rss/>"


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[types.ModuleType]]:
    """The README's first three Python blocks, run one after another as modules of their own.

    The fourth is a file of tests, which test_testing_papers.py runs.
    """
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)[:3]
    assert len(blocks) == 3
    made = []
    try:
        for name, block in zip(("feeds", "enqueues", "serves"), blocks, strict=True):
            module = types.ModuleType(name)
            monkeypatch.setitem(sys.modules, name, module)
            exec(compile(block, f"README.md: {name}", "exec"), module.__dict__)
            made.append(module)
        yield made
    finally:
        sys.modules["feeds"].feeds.close()  # type: ignore[attr-defined]


@pytest.fixture
def cloud(monkeypatch: pytest.MonkeyPatch) -> Cloud:
    """Ports in process, where the code of a user connects to Google Cloud."""
    cloud = Cloud()
    for variable in (*VARIABLES.values(), "GOOGLE_CLOUD_PROJECT"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("FORKJOIN_ALLOW_UNAUTHENTICATED", "true")
    monkeypatch.setattr("forkjoin_gcp.gcp.connect.connect", cloud.connect)
    return cloud


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Web:
    web = Web()
    monkeypatch.setattr("aiohttp.request", web.request)
    return web


def test_the_readmes_code_runs(
    cloud: Cloud, web: Web, modules: list[types.ModuleType], capsys: pytest.CaptureFixture[str]
) -> None:
    feeds, enqueues, serves = modules
    added = asyncio.run(enqueues.add("https://example.com/gone"))
    client = serves.app.test_client()
    done = 0
    while done < len(cloud.scheduler.created):
        task = cloud.scheduler.created[done]
        answer = client.post("/forkjoin", data=task.body, content_type="application/json")
        assert answer.status_code == 200, answer.data
        done += 1
    expected = ["a.xml", *(f"{n}.xml" for n in range(250)), "gone"]
    assert sorted(web.asked) == sorted(f"https://example.com/{path}" for path in expected)
    assert len(capsys.readouterr().out.splitlines()) == 251
    assert feeds.feeds.counters["items_handled"] == 251
    assert [letter.id for letter in feeds.feeds.dead_letters()] == [added]
    assert done <= 6, "a few tasks for 252 items"

    again = serves.app.test_request_context(
        method="POST", data=cloud.scheduler.created[0].body, content_type="application/json"
    )
    with again:
        assert serves.join(serves.flask.request).status_code == 200


def test_the_readmes_code_is_formatted() -> None:
    for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL):
        command = [sys.executable, "-m", "ruff", "format", "--diff", "--line-length=100", "-"]
        done = subprocess.run(command, input=block, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_readmes_settings_are_the_defaults() -> None:
    for setting, default, _ in rows(README, "## Settings"):
        given = default.removesuffix(" s").strip("`")
        assert str(getattr(QueueConfig("feeds"), setting.strip("`"))) == given, setting


# Links and names


def slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    plain = re.sub(r"[^\w\- ]", "", heading.strip().lower())
    return plain.replace(" ", "-")


@every_paper
def test_links_lead_somewhere(paper: str) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", PAPERS[paper]):
        if re.match(r"https?://", target):
            continue
        place, _, anchor = target.partition("#")
        path = (ROOT / paper).parent / place if place else ROOT / paper
        assert path.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)", path.read_text("utf-8"), re.MULTILINE)
            assert anchor in map(slug, headings), target


@every_paper
def test_paths_exist(paper: str) -> None:
    folders = "forkjoin_gcp|tests|docs|functions|examples|emulator-scripts|benchmarks|terraform|.ci"
    pattern = rf"(?<![\w/.-])(?<!\]\()((?:{folders.replace('.', '[.]')})/[\w./-]*)"
    for path in re.findall(pattern, PAPERS[paper]):
        assert (ROOT / path.rstrip(".")).exists(), path


@every_paper
def test_make_targets_exist(paper: str) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    named = re.findall(r"(?:`| {4})make (?:[A-Z]+=\S+ )?([a-z-]+)", PAPERS[paper])
    assert set(named) <= targets


@every_paper
def test_imported_names_are_public(paper: str) -> None:
    for names in re.findall(r"from forkjoin_gcp import (.+)", PAPERS[paper]):
        assert set(names.split(", ")) <= set(forkjoin_gcp.__all__)


@every_paper
def test_variables_exist(paper: str) -> None:
    known = {*VARIABLES.values(), *OTHER_VARIABLES}
    assert set(re.findall(r"FORKJOIN_[A-Z_]*[A-Z]", PAPERS[paper])) <= known


def test_every_method_of_a_queue_is_told() -> None:
    methods = vars(forkjoin_gcp.ForkJoinQueue).items()
    public = {name for name, method in methods if name[0] != "_" and callable(method)}
    told = set(re.findall(r"[.`](\w+)\b", README + CONFIGURATION))
    assert public <= told, public - told


def test_tests_named_as_proof_exist() -> None:
    defined = {
        name
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^(?:async )?def (test_\w+)", path.read_text("utf-8"), re.MULTILINE)
    }
    for what, then, proof in rows(PROTOCOL, "## When things fail"):
        assert codes(proof), f"{what}: {then}: shown by no test"
        assert set(codes(proof)) <= defined, what
    assert index_contract.CHECKS
    assert store_contract.CHECKS


# Configuration


def generator() -> types.ModuleType:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_generated_tables_are_up_to_date() -> None:
    generate = generator()
    pages = [page.read_text("utf-8") for page in generate.PAGES]
    for page in pages:
        assert generate.render(page) == page, "run `python docs/generate.py`"
    for name in generate.TABLES:
        assert f"<!-- table: {name} -->" in "".join(pages)
    assert set(generate.IN_2010) <= set(QueueConfig.model_fields)


def test_every_setting_and_variable_is_told() -> None:
    told = set(codes(CONFIGURATION))
    assert set(QueueConfig.model_fields) <= told
    assert set(Services.model_fields) <= told
    assert {*VARIABLES.values(), *OTHER_VARIABLES, "GOOGLE_CLOUD_PROJECT"} <= told


def test_errors_are_those_there_are() -> None:
    there = {
        name: error
        for name, error in vars(errors).items()
        if inspect.isclass(error) and issubclass(error, errors.ForkJoinError)
    }
    del there["ForkJoinError"]
    told = {row[0].strip("`"): row[3] for row in rows(CONFIGURATION, "## Errors")}
    assert told == {name: "yes" if error.retryable else "no" for name, error in there.items()}


def test_answers_are_those_of_the_endpoint() -> None:
    told = {row[0] for row in rows(CONFIGURATION, "## The join endpoint's answers")}
    assert told == set(re.findall(r"\b(\d{3})  ", core.__doc__ or ""))
    assert f"{core.MAX_BODY_BYTES:,} bytes" in CONFIGURATION
    assert f"Retry-After: {core.RETRY_AFTER}" in CONFIGURATION


def counters_in_the_source() -> set[str]:
    """Every key that a module adds to; for one with a part that varies, all it comes to."""
    parts = {
        "release_": [release.value for release in Release],
        "items_": ["handled", "dead", "left"],
        "firestore.documents_": ["written", "deleted"],
    }
    keys: set[str] = set()
    for path in PACKAGE.rglob("*.py"):
        if path.relative_to(PACKAGE).parts[0] in ("emulators", "testing"):
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if not isinstance(node, ast.AugAssign) or not isinstance(node.target, ast.Subscript):
                continue
            if not ast.unparse(node.target.value).endswith("counters"):
                continue
            key = node.target.slice
            if isinstance(key, ast.JoinedStr):
                start, varies = key.values
                assert isinstance(start, ast.Constant)
                assert isinstance(varies, ast.FormattedValue)
                keys |= {f"{start.value}{part}" for part in parts[start.value]}
            else:
                assert isinstance(key, ast.Constant), f"{path}: {ast.unparse(key)}"
                keys.add(key.value)
    return keys


def test_counters_are_those_of_the_source() -> None:
    told = [name for row in rows(CONFIGURATION, "## Counters") for name in codes(row[0])]
    assert len(told) == len(set(told))
    assert set(told) == counters_in_the_source()


# The protocol's details


def test_state_in_memorystore_is_the_scripts() -> None:
    script = (PACKAGE / "gcp" / "lua" / "lane.lua").read_text("utf-8")
    fields = re.findall(r"^--   (\w+(?::INDEX)?)  +", script, re.MULTILINE)
    assert fields
    told = [row[0].strip("`") for row in rows(PROTOCOL, "## State in Memorystore")]
    assert told == fields


def test_fields_of_a_segment_are_the_stores() -> None:
    head = (firestore_documents.__doc__ or "").partition("A dead letter is")[0]
    fields = re.findall(r"^    ([a-z_, ]+?)  +", head, re.MULTILINE)
    there = {name for field in fields for name in field.split(", ")}
    there |= {"handled_payloads", "handled_positions", "handled_attempts"}
    told = {name for row in rows(PROTOCOL, "## A segment") for name in codes(row[0])}
    assert told == there


def test_numbers_are_the_codes() -> None:
    for number in (
        f"{writer.GROUP_INTERVAL * 1000:.0f} ms (`GROUP_INTERVAL`)",
        f"{writer.GROUP_QUIET * 1000:.0f} ms (`GROUP_QUIET`)",
        f"{groups.MAX_GROUP_ITEMS:,} items",
        f"{groups.MAX_GROUP_CHARACTERS:,} characters",
        f"{items.MAX_SEGMENT_BYTES:,} bytes",
    ):
        assert number in " ".join(PROTOCOL.split()), number
    assert moves.MOVE_ATTEMPTS == 5
    assert "at most five times" in PROTOCOL
    assert f"{config.MAX_PAYLOAD_BYTES:,} bytes" in CONFIGURATION


def test_the_example_of_a_batch_key_is_one() -> None:
    (key,) = re.findall(r"`([0-9a-f]{8}-\d+-\d+)`", PROTOCOL)
    assert forkjoin_gcp.names.Batch.parse("feeds", "v1", key).key == key


# Operations


def test_every_alarm_is_told_of() -> None:
    source = (ROOT / "terraform" / "monitoring.tf").read_text("utf-8")
    named = re.findall(r'^      name +="? ?"(.+)"$', source, re.MULTILINE)
    named += re.findall(r'display_name += "\$\{var\.name\}: ([^$"]+)"', source)
    told = {row[0] for row in rows(PAPERS["docs/operations.md"], "## Alarms and metrics")}
    assert told == set(named)


def test_the_doctors_checks_are_told_of() -> None:
    told = [row[0] for row in rows(PAPERS["docs/operations.md"], "## Deploy")]
    assert {name for cell in told for name in cell.split(", ")} == set(doctor.CHECKS)


# The rooms of the house


def test_every_room_is_told() -> None:
    table = rows(PAPERS["CONTRIBUTING.md"], "## The rooms of the house")
    told = {name.rstrip("/") for row in table for name in codes(row[0])}
    modules = {str(path.relative_to(ROOT)) for path in PACKAGE.glob("[!_]*.py")}
    rooms = {str(path.parent.relative_to(ROOT)) for path in PACKAGE.glob("*/__init__.py")}
    assert {name for name in told if name.startswith("forkjoin_gcp/")} == modules | rooms
    assert all((ROOT / name).exists() for name in told)
