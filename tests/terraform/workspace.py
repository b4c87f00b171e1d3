"""A copy of what Terraform needs of this repository, in which checks may write and change."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from tests.terraform.tools import REPOSITORY, Tools

_LEFT_OUT = shutil.ignore_patterns(
    ".terraform", ".terraform.lock.hcl", "*.tfstate*", "*.tfvars", "__pycache__", "*.so"
)


class Workspace:
    """``folder`` holds terraform/ and what it takes from beside it, as the repository does."""

    def __init__(self, folder: Path, tools: Tools) -> None:
        self.folder = folder
        self.tools = tools
        # Not a lock file, nor state: a lock file of the stand-ins suits no real provider.
        for name in ("terraform", "functions", "forkjoin_gcp"):
            shutil.copytree(REPOSITORY / name, folder / name, ignore=_LEFT_OUT)

    def copy(self, folder: Path) -> Workspace:
        """Another one, as this one is: initialized, if it is."""
        shutil.copytree(self.folder, folder, symlinks=True)
        made = Workspace.__new__(Workspace)
        made.folder, made.tools = folder, self.tools
        return made

    @property
    def module(self) -> Path:
        """The module's copy."""
        return self.folder / "terraform"

    def edit(self, file: str, old: str, new: str) -> None:
        """Replace ``old``, which must be there exactly once, in a file of the module."""
        path = self.module / file
        text = path.read_text("utf-8")
        if text.count(old) != 1:
            raise ValueError(f"{file}: {old!r} is there {text.count(old)} times, not once")
        path.write_text(text.replace(old, new), "utf-8")

    def terraform(
        self, *arguments: str, folder: str = "", said: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Run terraform in the module, or in a folder of it."""
        return self.tools.run([*arguments], self.module / folder, said)

    def init(self, folder: str = "") -> subprocess.CompletedProcess[str]:
        """`terraform init`, with no state anywhere else."""
        return self.terraform("init", "-backend=false", "-input=false", "-no-color", folder=folder)
