"""The logs of the local services, one below the other or as they grow."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import click

from forkjoin_gcp.emulators.errors import LocalServiceError

_LOOK_INTERVAL = 0.2
_TAIL_BYTES = 262_144


def show(home: Path, service: str | None, lines: int, *, follow: bool) -> None:
    """Prints the last `lines` of each log of the directory, or of one; with `follow` also what
    comes then, until an interrupt. Raises LocalServiceError where there is none."""
    files = {path.stem: path for path in sorted(home.glob("*.log"))}
    if service is not None:
        if service not in files:
            known = ", ".join(files) or "none"
            raise LocalServiceError(f"There is no log of {service!r} in {home}; there are: {known}")
        files = {service: files[service]}
    if not files:
        raise LocalServiceError(f"There are no logs in {home}. `forkjoin local up` makes them.")
    width = max(map(len, files))
    ends = {}
    for name, path in files.items():
        text, ends[name] = _read(path, max(0, path.stat().st_size - _TAIL_BYTES))
        _say(name, width, text.splitlines()[-lines:] if lines else [])
    with contextlib.suppress(KeyboardInterrupt):
        while follow:
            time.sleep(_LOOK_INTERVAL)
            for name, path in files.items():
                text, ends[name] = _read(path, ends[name])
                _say(name, width, text.splitlines())


def _read(path: Path, start: int) -> tuple[str, int]:
    """Whole lines from `start` on, and where they end."""
    try:
        with path.open("rb") as log:
            if log.seek(0, 2) < start:  # begun anew
                start = 0
            log.seek(start)
            data = log.read()
    except FileNotFoundError:
        return "", 0
    whole = data[: data.rfind(b"\n") + 1]
    return whole.decode(errors="replace"), start + len(whole)


def _say(name: str, width: int, lines: list[str]) -> None:
    for line in lines:
        click.echo(f"{name:{width}} | {line}")
