"""Log lines as Cloud Logging takes them apart."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
from typing import Any

from forkjoin_gcp.json_logs import JsonFormatter


def entry(level: int, message: str, *arguments: object, **more: Any) -> dict[str, Any]:
    """The fields of one line."""
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    handler.setFormatter(JsonFormatter())
    logger = logging.Logger("forkjoin_gcp.test")
    logger.addHandler(handler)
    logger.log(level, message, *arguments, **more)
    (line,) = written.getvalue().splitlines()
    read: dict[str, Any] = json.loads(line)
    return read


def test_a_line_has_severity_message_and_facts() -> None:
    facts = {"event": "chunk", "dead": 2}
    assert entry(logging.WARNING, "%d are\nlost", 2, extra={"forkjoin": facts}) == {
        "severity": "WARNING",
        "message": "2 are\nlost",
        "logger": "forkjoin_gcp.test",
        "forkjoin": facts,
    }
    assert "forkjoin" not in entry(logging.INFO, "nothing")


def test_a_traceback_is_part_of_the_message() -> None:
    try:
        raise ValueError("wrong")  # noqa: TRY301
    except ValueError:
        message = entry(logging.ERROR, "failed", exc_info=True)["message"]
    assert message.startswith("failed\nTraceback")
    assert message.endswith("ValueError: wrong")


def test_what_json_does_not_know_is_written_as_text() -> None:
    assert entry(logging.INFO, "x", extra={"forkjoin": {"at": {1}}})["forkjoin"] == {"at": "{1}"}


def test_a_process_logs_json_on_standard_error() -> None:
    code = (
        "import logging; from forkjoin_gcp.json_logs import log_json\n"
        "logging.basicConfig(); log_json()\n"
        "logging.getLogger('forkjoin_gcp.a').info('one'); logging.getLogger('b').warning('two')\n"
        "logging.getLogger('b').info('not asked for')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    entries = [json.loads(line) for line in done.stderr.splitlines()]
    assert [(one["severity"], one["message"]) for one in entries] == [
        ("INFO", "one"),
        ("WARNING", "two"),
    ]
