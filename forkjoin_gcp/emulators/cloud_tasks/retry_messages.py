"""Between the API's RetryConfig, of queues and of tasks, and the emulator's."""

from __future__ import annotations

from typing import Any

from . import refusals
from .pacing import RetryPolicy
from .times import seconds_of, set_duration

_DURATIONS = {
    "max_retry_duration": "RetryConfig.maxRetryDuration",
    "min_backoff": "RetryConfig.minBackoff",
    "max_backoff": "RetryConfig.maxBackoff",
}


def retry_from(message: Any, default: RetryPolicy) -> RetryPolicy:
    """The settings, with `default` for what is unset. Raises Refusal INVALID_ARGUMENT."""
    if message.max_attempts < -1:
        raise refusals.invalid("RetryConfig.maxAttempts must be greater or equal to -1.")
    if message.max_doublings < 0:
        raise refusals.invalid("RetryConfig.maxDoublings cannot be negative.")
    durations = {}
    for field, name in _DURATIONS.items():
        value = seconds_of(getattr(message, field), name)
        if value < 0:
            raise refusals.invalid(f"{name} cannot be negative.")
        # Unset takes the default; an explicit 0 is a value. The API documents truncation to the
        # second, but its own default min_backoff is 0.1 s: fractions are kept.
        durations[field] = value if message.HasField(field) else getattr(default, field)
    if durations["min_backoff"] > durations["max_backoff"]:
        raise refusals.invalid(
            "RetryConfig.minBackoff must be less than or equal to RetryConfig.maxBackoff."
        )
    return RetryPolicy(
        max_attempts=message.max_attempts or default.max_attempts,
        max_doublings=message.max_doublings or default.max_doublings,
        **durations,
    )


def set_retry(message: Any, retry: RetryPolicy) -> None:
    """Writes the settings into a RetryConfig."""
    message.max_attempts = retry.max_attempts
    message.max_doublings = retry.max_doublings
    set_duration(message.min_backoff, retry.min_backoff)
    set_duration(message.max_backoff, retry.max_backoff)
    if retry.max_retry_duration:
        set_duration(message.max_retry_duration, retry.max_retry_duration)
