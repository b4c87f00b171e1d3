"""From what the handlers wrote down to the results file: one line for each line of the input."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .clients import Posted
from .lines import Line

Record = dict[str, Any]
"""A line that a handler wrote: the fields of examples/service/results.py."""

FIELDS = ("id", "status", "bytes", "sha256", "error", "attempt", "enqueued_at", "handled_at")
NOT_HANDLED = "accepted, but no result came"


class Tail:
    """Reads lines of JSON from a file that grows, each once."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        self._rest = b""

    def read(self) -> list[Record]:
        """The lines completed since the last time."""
        *complete, self._rest = (self._rest + self._file.read()).split(b"\n")
        return [json.loads(line) for line in complete]

    def close(self) -> None:
        self._file.close()


@dataclass
class Handled:
    """What the handlers have recorded: the first result of each line, and how many came again."""

    by_line: dict[int, Record] = field(default_factory=dict)
    delivered_again: int = 0
    posted_again: int = 0

    def add(self, records: Iterable[Record]) -> None:
        for record in records:
            first = self.by_line.setdefault(record["line"], record)
            if first is record:
                continue
            # The same id: Cloud Tasks delivered the item again. Another: a client, left without
            # an answer, posted the line again.
            if first["id"] == record["id"]:
                self.delivered_again += 1
            else:
                self.posted_again += 1


def merge(lines: Sequence[Line], posted: Posted, handled: Handled) -> list[Record]:
    """One record for each line, in order, whatever became of it."""
    return [_record(line, posted, handled) for line in lines]


def _record(line: Line, posted: Posted, handled: Handled) -> Record:
    found = handled.by_line.get(line.number)
    if found is None:
        error = line.defect or posted.refused.get(line.number, NOT_HANDLED)
        found = {"id": posted.ids.get(line.number), "error": error}
    return {"line": line.number, "url": line.text, **{name: found.get(name) for name in FIELDS}}


def write(records: Iterable[Record], path: Path) -> None:
    """Write the results file: whole, or not at all."""
    partial = path.with_suffix(".partial")
    partial.write_text("".join(json.dumps(record) + "\n" for record in records), "utf-8")
    partial.replace(path)


def count_exact(path: Path, lines: Sequence[Line]) -> int:
    """How many lines of the input have exactly one line in the results file, as it is on disk."""
    seen: dict[int, int] = {}
    with path.open(encoding="utf-8") as file:
        for text in file:
            number = json.loads(text)["line"]
            seen[number] = seen.get(number, 0) + 1
    return sum(1 for line in lines if seen.get(line.number) == 1)
