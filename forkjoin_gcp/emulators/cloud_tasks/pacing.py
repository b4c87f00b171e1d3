"""When a queue may dispatch, and when a failed task is tried again. Pure arithmetic, no clock."""

from __future__ import annotations

import math
from dataclasses import dataclass

MAX_DISPATCHES_PER_SECOND = 500.0
MAX_CONCURRENT_DISPATCHES = 5_000

# A token is taken when it is this nearly whole. Wall clock times are floats with a step of about
# 0.24 us, so a timer set for the exact moment may compute 0.9999 of a token and would spin.
_TOKEN_ROUNDING = 1e-3


@dataclass(frozen=True, slots=True)
class RateLimits:
    """How fast a queue dispatches. The defaults are those the service gives a new queue."""

    max_dispatches_per_second: float = MAX_DISPATCHES_PER_SECOND
    max_concurrent_dispatches: int = 1_000

    @property
    def max_burst_size(self) -> int:
        """Tokens the bucket holds. Output only in the API, which documents it as "generally at
        least equal to max_dispatches_per_second"; the emulator takes exactly that."""
        return max(1, math.ceil(self.max_dispatches_per_second))


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """RetryConfig, durations in seconds. The defaults are those the service gives a new queue."""

    max_attempts: int = 100
    """Attempts with the first one; -1 sets no limit."""
    max_retry_duration: float = 0.0
    """Seconds since the first attempt; 0 sets no limit."""
    min_backoff: float = 0.1
    max_backoff: float = 3_600.0
    max_doublings: int = 16

    def backoff(self, failures: int) -> float:
        """Seconds to wait after the `failures`-th failed attempt (1 is the first).

        Starts at min_backoff, doubles max_doublings times, then grows by the last doubled
        interval each time, never above max_backoff: 10, 20, 40, 80, 160, 240, 300, 300 s for
        min 10, max 300 and 3 doublings.
        """
        retry = max(1, failures) - 1
        # Beyond 2**62 every interval is over any max_backoff; the cap keeps floats finite.
        doubled = self.min_backoff * 2.0 ** min(retry, self.max_doublings, 62)
        linear_steps = max(0, retry - self.max_doublings)
        return min(self.max_backoff, doubled * (1 + linear_steps))

    def exhausted(self, attempts: int, since_first_attempt: float) -> bool:
        """Whether a task that failed is given up.

        A limit that is not set asks for nothing; of those set, ALL must be reached (as the API
        documents: attempts *and* duration). With none set the task is tried for ever.
        """
        limits = []
        if self.max_attempts > 0:
            limits.append(attempts >= self.max_attempts)
        if self.max_retry_duration > 0:
            limits.append(since_first_attempt >= self.max_retry_duration)
        return bool(limits) and all(limits)


class TokenBucket:
    """Holds up to `capacity` tokens, refilled at `rate` a second; starts full."""

    __slots__ = ("_refilled", "_tokens", "capacity", "rate")

    def __init__(self, rate: float, capacity: int, now: float) -> None:
        self.rate = rate
        self.capacity = capacity
        self._tokens = float(capacity)
        self._refilled = now

    def take(self, now: float) -> bool:
        """Takes a token if there is one."""
        self._refill(now)
        if self._tokens < 1 - _TOKEN_ROUNDING:
            return False
        # May go a hair below zero: the rounding is a loan, paid back by the next refill.
        self._tokens -= 1
        return True

    def ready_at(self, now: float) -> float:
        """The earliest time at which `take` will succeed; `now` if it would already."""
        self._refill(now)
        missing = 1 - self._tokens
        return now if missing <= _TOKEN_ROUNDING else now + missing / self.rate

    def resize(self, rate: float, capacity: int, now: float) -> None:
        """Changes rate and capacity; tokens in hand are kept up to the new capacity."""
        self._refill(now)
        self.rate = rate
        self.capacity = capacity
        self._tokens = min(self._tokens, float(capacity))

    def _refill(self, now: float) -> None:
        elapsed = now - self._refilled
        self._refilled = now
        if elapsed > 0:  # a clock set back gives nothing and takes nothing
            self._tokens = min(float(self.capacity), self._tokens + elapsed * self.rate)
