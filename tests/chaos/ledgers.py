"""What clients were promised, what handlers did, and whether the two agree."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


class HandledLedger:
    """What all handlers noted in a directory, read as it grows: ids, and how often."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._read: dict[Path, int] = {}
        self.times: Counter[str] = Counter()
        self.numbers: dict[str, int] = {}

    def read(self) -> None:
        """Take in what is new. A line that a kill cut short says nothing."""
        for path in self._directory.glob("*.handled"):
            begin = self._read.get(path, 0)
            with path.open("rb") as file:
                file.seek(begin)
                complete, newline, _ = file.read().rpartition(b"\n")
            self._read[path] = begin + len(complete) + len(newline)
            for line in complete.decode().splitlines():
                item_id, number = line.split()
                self.times[item_id] += 1
                self.numbers[item_id] = int(number)


@dataclass
class Verdict:
    """Whether all that was accepted came to an end. ``lost`` and ``mixed_up`` must be empty."""

    accepted: int
    handled: int
    dead: int
    lost: list[str] = field(default_factory=list)
    mixed_up: list[str] = field(default_factory=list)
    """Handled, but not with what was accepted under that id."""
    both: int = 0
    """Handled, and dead-lettered too: by two deliveries of one task."""
    duplicates: int = 0
    unacknowledged: int = 0
    """Handled though the client got no answer, or a bad one."""

    @property
    def good(self) -> bool:
        return not self.lost and not self.mixed_up


def compare(
    accepted: Mapping[str, int],
    times: Mapping[str, int],
    numbers: Mapping[str, int],
    dead: Mapping[str, str],
) -> Verdict:
    """``accepted`` and ``numbers`` say which number an id had; ``dead`` is id to reason."""
    handled, buried = accepted.keys() & times.keys(), accepted.keys() & dead.keys()
    return Verdict(
        accepted=len(accepted),
        handled=len(handled),
        dead=len(buried - handled),
        lost=sorted(accepted.keys() - handled - buried),
        mixed_up=sorted(one for one in handled if numbers[one] != accepted[one]),
        both=len(handled & buried),
        duplicates=sum(times.values()) - len(times),
        unacknowledged=len(times.keys() - accepted.keys()),
    )
