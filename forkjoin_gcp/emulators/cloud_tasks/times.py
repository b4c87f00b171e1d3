"""Between the API's times and durations and seconds."""

from __future__ import annotations

import datetime
from typing import Any

from . import refusals

_MAX_DURATION = 315_576_000_000
_NANOS = 1_000_000_000
# 0001-01-01 and 9999-12-31, the limits of google.protobuf.Timestamp.
_FIRST_SECOND, _LAST_SECOND = -62_135_596_800, 253_402_300_799


def microseconds(moment: float) -> int:
    """A time in whole microseconds, the same wherever it is shown. A float of today's seconds
    since the epoch resolves 0.24 us, so rounding restores the microsecond that was asked for."""
    return round(moment * 1e6)


def set_time(message: Any, moment: float) -> None:
    """Writes seconds since the epoch into a Timestamp, to the microsecond."""
    message.seconds, micros = divmod(microseconds(moment), 1_000_000)
    message.nanos = micros * 1_000


def set_duration(message: Any, seconds: float) -> None:
    """Writes seconds into a Duration."""
    message.seconds, message.nanos = divmod(round(seconds * 1e9), _NANOS)


def moment_of(message: Any, field: str) -> float:
    """Seconds since the epoch of a Timestamp, truncated to the microsecond as the API documents.
    Raises Refusal INVALID_ARGUMENT."""
    if not (_FIRST_SECOND <= message.seconds <= _LAST_SECOND and 0 <= message.nanos < _NANOS):
        raise refusals.invalid(f"{field} is not a valid timestamp.")
    return float(message.seconds + message.nanos // 1_000 / 1e6)


def seconds_of(message: Any, field: str) -> float:
    """The seconds of a Duration. Raises Refusal INVALID_ARGUMENT."""
    seconds, nanos = message.seconds, message.nanos
    opposed = seconds * nanos < 0
    if opposed or abs(seconds) > _MAX_DURATION or abs(nanos) >= _NANOS:
        raise refusals.invalid(f"{field} is not a valid duration.")
    return float(seconds + nanos / 1e9)


def shown(moment: float) -> str:
    """A time as messages name it."""
    return datetime.datetime.fromtimestamp(moment, datetime.UTC).isoformat(timespec="seconds")
