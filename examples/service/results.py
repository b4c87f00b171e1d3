"""Where results go: one line of JSON each, to the file RESULTS_FILE, or to standard output, which
Cloud Run makes a structured log entry of."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict, dataclass
from functools import cache

VARIABLE = "RESULTS_FILE"


@dataclass(frozen=True, slots=True)
class Result:
    """What came of one item. Times are Unix times in seconds.

    ``status``, ``bytes`` and ``sha256`` are those of the answer, None where there was none;
    ``error`` is None for a page that was fetched. An item delivered twice has two results of one
    ``id``: whoever reads them keeps the first.
    """

    id: str
    line: int
    url: str
    status: int | None
    bytes: int | None
    sha256: str | None
    error: str | None
    attempt: int
    enqueued_at: float
    started_at: float
    handled_at: float
    fetch_seconds: float


def record(result: Result) -> None:
    """Write one result down. Safe from many threads and processes at once."""
    line = json.dumps(asdict(result)) + "\n"
    path = os.environ.get(VARIABLE)
    if path:
        # One write at the end of the file: lines of several processes never mix.
        os.write(_opened(path), line.encode())
    else:
        sys.stdout.write(line)
        sys.stdout.flush()


@cache
def _opened(path: str) -> int:
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
