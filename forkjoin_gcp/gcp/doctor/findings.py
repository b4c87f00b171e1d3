"""What a check is given, and what it gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from forkjoin_gcp.config import QueueConfig, Services


class Status(Enum):
    """How a check came out. Only a fault makes the examination fail."""

    OK = "ok"
    WARNING = "warning"
    FAULT = "fault"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at: what is the case, and what puts it right."""

    check: str
    status: Status
    text: str
    fix: str = ""


@dataclass(frozen=True, slots=True)
class Subject:
    """What is examined. ``local``: emulators are expected, and nothing of Google's."""

    services: Services
    environ: Mapping[str, str]
    queues: Sequence[QueueConfig] = ()
    local: bool = False


def one_line(error: BaseException) -> str:
    """An error's text for a finding."""
    message = getattr(error, "message", None) or str(error)
    return " ".join(str(message).split())[:300] or type(error).__name__
