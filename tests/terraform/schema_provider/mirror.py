"""Lays stand-ins where terraform looks for providers: a filesystem mirror and its configuration."""

from __future__ import annotations

import hashlib
import json
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.terraform.schema_provider import wire
from tests.terraform.schema_provider.packages import ProviderSchema, read_package

REPOSITORY = Path(__file__).resolve().parents[3]
SERVER = "tests.terraform.schema_provider.server"

_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def build(folder: Path, requirements: list[str]) -> Path:
    """A mirror of stand-ins for the ``requirements``, packages on PyPI with their versions.

    Returns the CLI configuration to point TF_CLI_CONFIG_FILE at. What is there already for the
    same packages, this code and this Python is kept.
    """
    configuration = folder / "terraform.rc"
    stamp = folder / "stamp"
    wanted = _stamp(requirements)
    if stamp.exists() and stamp.read_text() == wanted:
        return configuration
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for requirement in requirements:
        with tempfile.TemporaryDirectory() as downloads:
            pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
            target = ["--only-binary", ":all:", "--dest", downloads, requirement]
            subprocess.run([*pip, *target], check=True, capture_output=True, timeout=300)
            _lay(folder, read_package(next(Path(downloads).glob("*.whl"))))
    configuration.write_text(
        "disable_checkpoint = true\nprovider_installation {\n  filesystem_mirror {\n"
        f"    path = {json.dumps(str(folder / 'mirror'))}\n  }}\n}}\n"
    )
    stamp.write_text(wanted)
    return configuration


def _stamp(requirements: list[str]) -> str:
    code = b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))
    where = f"{sys.executable} {REPOSITORY}"
    return f"{where}\n{hashlib.sha256(code).hexdigest()}\n{chr(10).join(requirements)}\n"


def _lay(folder: Path, provider: ProviderSchema) -> None:
    name = provider.address.rpartition("/")[2]
    schema = folder / f"{name}-{provider.version}.json"
    schema.write_text(json.dumps(provider.schema))
    schema.with_suffix(".answer").write_bytes(wire.provider_schema(provider.schema))
    system = "darwin" if sys.platform == "darwin" else "linux"
    machine = _ARCHITECTURES.get(platform.machine(), platform.machine())
    home = folder / "mirror" / provider.address / provider.version / f"{system}_{machine}"
    home.mkdir(parents=True)
    program = home / f"terraform-provider-{name}_v{provider.version}"
    command = shlex.join([sys.executable, "-m", SERVER, str(schema)])
    path = shlex.quote(str(REPOSITORY))
    program.write_text(f"#!/bin/sh\nPYTHONPATH={path} exec {command}\n")
    program.chmod(0o755)
