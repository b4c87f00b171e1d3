"""Log lines as Cloud Logging takes them apart: one JSON object a line.

On Cloud Run and Cloud Run functions, what is written to standard error becomes a log entry a line.
A line of JSON becomes an entry with fields, which metrics and alarms are made of.
"""

from __future__ import annotations

import json
import logging
import sys
from typing import TextIO


class JsonFormatter(logging.Formatter):
    """``severity``, ``message`` (with the traceback, if any), ``logger``, and ``forkjoin``: the
    facts that this package gives with ``extra={"forkjoin": {...}}``."""

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, object] = {
            "severity": record.levelname,
            "message": super().format(record),
            "logger": record.name,
        }
        facts = getattr(record, "forkjoin", None)
        if facts is not None:
            entry["forkjoin"] = facts
        return json.dumps(entry, ensure_ascii=False, default=str)


def log_json(stream: TextIO | None = None) -> None:
    """Let everything that this process logs be JSON on standard error, or on ``stream``.

    Takes the place of the root logger's handlers. Of this package also INFO is logged: that is a
    line for each chunk.
    """
    # Not sys.stderr: functions-framework puts a file of its own there, which quotes each line.
    handler = logging.StreamHandler(stream or sys.__stderr__)
    handler.setFormatter(JsonFormatter())
    logging.getLogger().handlers[:] = [handler]
    logging.getLogger("forkjoin_gcp").setLevel(logging.INFO)
