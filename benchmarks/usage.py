"""What a child process and its own children use, as Linux tells it."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from pathlib import Path

from forkjoin_gcp.emulators.processes import ChildProcess

_PAGE = resource.getpagesize()
_TICKS = os.sysconf("SC_CLK_TCK")


def cpu_seconds(child: ChildProcess) -> float:
    """User and system time of the processes of its group so far, to a hundredth of a second."""
    return sum(int(fields[11]) + int(fields[12]) for _, fields in _group(child)) / _TICKS


def resident_mb(child: ChildProcess) -> float:
    """Memory that its group holds, in millions of bytes."""
    return sum(int(fields[21]) for _, fields in _group(child)) * _PAGE / 1e6


def cpu_of_ended() -> float:
    """User and system time of all children of this process that were waited for, theirs too."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return ended.ru_utime + ended.ru_stime


def _group(child: ChildProcess) -> Iterator[tuple[int, list[str]]]:
    """Each process of the group and the fields of its /proc/PID/stat, from the state on."""
    if not Path("/proc/self/stat").exists():
        raise RuntimeError("what a process uses is read from /proc, which is Linux's")
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            # The name before may hold anything, a closing bracket too.
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == child.pid:
            yield int(entry.name), fields
