"""`python functions/stage.py HANDLERS TARGET`: the functions' source, complete, for `gcloud`.

TARGET gets main.py, this checkout's package, the modules of the directory HANDLERS, and the
requirements of all three: what terraform/ puts into its archive.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

FUNCTIONS = Path(__file__).resolve().parent
PACKAGE = FUNCTIONS.parent / "forkjoin_gcp"
REQUIREMENTS = "requirements.txt"
LEFT_OUT = ("emulators", "cli", "testing", "__pycache__")
"""Of the package: what a function does not use."""


def stage(handlers: Path, target: Path) -> None:
    """Write the source to ``target``. Raises SystemExit where it is not empty, or clashes."""
    if target.exists() and any(target.iterdir()):
        raise SystemExit(f"error: {target} is not empty")
    shutil.copytree(PACKAGE, target / PACKAGE.name, ignore=shutil.ignore_patterns(*LEFT_OUT))
    shutil.copy(FUNCTIONS / "main.py", target)
    for file in sorted(handlers.rglob("*")):
        place = file.relative_to(handlers)
        if file.is_dir() or str(place) == REQUIREMENTS or _is_hidden(place):
            continue
        if (target / place).exists():
            raise SystemExit(f"error: {file} has the name of a file of the functions' own")
        (target / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, target / place)
    lines = [*_requirements(FUNCTIONS), *_requirements(handlers)]
    (target / REQUIREMENTS).write_text("".join(f"{line}\n" for line in dict.fromkeys(lines)))


def _is_hidden(place: Path) -> bool:
    return any(part.startswith(".") or part == "__pycache__" for part in place.parts)


def _requirements(directory: Path) -> list[str]:
    """What stands in its requirements.txt, but for comments and the package, which is staged."""
    file = directory / REQUIREMENTS
    lines = file.read_text("utf-8").splitlines() if file.exists() else []
    given = [line.partition(" #")[0].strip() for line in lines]
    return [line for line in given if line and line[0] != "#" and "forkjoin-gcp" not in line]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python functions/stage.py", description=__doc__)
    parser.add_argument("handlers", type=Path, help="where the modules that declare queues are")
    parser.add_argument("target", type=Path, help="a directory that is to be made")
    options = parser.parse_args()
    if not options.handlers.is_dir():
        parser.error(f"{options.handlers} is no directory")
    stage(options.handlers, options.target)


if __name__ == "__main__":
    main()
