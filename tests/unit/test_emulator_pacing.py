"""The arithmetic of retries and rates."""

import pytest

from forkjoin_gcp.emulators.cloud_tasks.pacing import RateLimits, RetryPolicy, TokenBucket

NOW = 1_700_000_000.0


@pytest.mark.parametrize(
    ("policy", "waits"),
    [
        # Google's own example, from the documentation of RetryConfig.max_doublings.
        (
            RetryPolicy(min_backoff=10, max_backoff=300, max_doublings=3),
            [10, 20, 40, 80, 160, 240, 300, 300],
        ),
        (RetryPolicy(min_backoff=10, max_backoff=100, max_doublings=0), [10, 20, 30, 40]),
        (RetryPolicy(min_backoff=5, max_backoff=5, max_doublings=16), [5, 5, 5]),
        (RetryPolicy(), [0.1, 0.2, 0.4, 0.8, 1.6, 3.2]),
        (RetryPolicy(min_backoff=0, max_backoff=0), [0, 0, 0]),
    ],
)
def test_backoff_doubles_then_grows_linearly_then_stays(
    policy: RetryPolicy, waits: list[float]
) -> None:
    assert [policy.backoff(failures + 1) for failures in range(len(waits))] == pytest.approx(waits)


def test_backoff_stays_finite_however_often_a_task_failed() -> None:
    policy = RetryPolicy(max_backoff=3_600, max_doublings=10_000)
    assert policy.backoff(100_000) == 3_600


@pytest.mark.parametrize(
    ("attempts_limit", "duration_limit", "attempts", "elapsed", "exhausted"),
    [
        (3, 0, 2, 1e6, False),
        (3, 0, 3, 0, True),
        (3, 60, 3, 59, False),  # both limits must be reached
        (3, 60, 2, 61, False),
        (3, 60, 3, 60, True),
        (-1, 60, 99, 59, False),
        (-1, 60, 1, 60, True),
        (-1, 0, 10_000, 1e9, False),
    ],
)
def test_a_task_is_given_up_when_every_limit_that_is_set_is_reached(
    attempts_limit: int, duration_limit: float, attempts: int, elapsed: float, exhausted: bool
) -> None:
    policy = RetryPolicy(max_attempts=attempts_limit, max_retry_duration=duration_limit)
    assert policy.exhausted(attempts, elapsed) is exhausted


def test_the_bucket_starts_full_and_gives_no_more_than_it_holds() -> None:
    bucket = TokenBucket(rate=10, capacity=3, now=NOW)
    assert [bucket.take(NOW) for _ in range(4)] == [True, True, True, False]


def test_the_bucket_refills_at_its_rate_and_not_beyond_its_capacity() -> None:
    bucket = TokenBucket(rate=10, capacity=3, now=NOW)
    while bucket.take(NOW):
        pass
    assert bucket.ready_at(NOW) == pytest.approx(NOW + 0.1)
    assert not bucket.take(NOW + 0.05)
    assert bucket.take(NOW + 0.1)
    later = NOW + 1_000
    assert [bucket.take(later) for _ in range(4)] == [True, True, True, False]


def test_a_token_is_there_at_the_moment_that_was_promised() -> None:
    """Else a timer set for that moment would fire, find nothing, and fire again."""
    bucket = TokenBucket(rate=500, capacity=1, now=NOW)
    now = NOW
    for _ in range(5_000):
        now = bucket.ready_at(now)
        assert bucket.take(now)
    assert now - NOW == pytest.approx(4_999 / 500, rel=1e-3)  # and the rounding does not add up


def test_a_clock_set_back_neither_gives_nor_takes_tokens() -> None:
    bucket = TokenBucket(rate=1, capacity=2, now=NOW)
    assert bucket.take(NOW)
    assert bucket.take(NOW - 3_600)
    assert not bucket.take(NOW - 3_600)
    assert bucket.take(NOW - 3_599)


def test_a_smaller_bucket_keeps_no_more_than_it_holds() -> None:
    bucket = TokenBucket(rate=100, capacity=100, now=NOW)
    bucket.resize(1, 2, NOW)
    assert [bucket.take(NOW) for _ in range(3)] == [True, True, False]


@pytest.mark.parametrize(("rate", "burst"), [(500, 500), (1.5, 2), (0.1, 1)])
def test_the_burst_is_at_least_the_rate_and_at_least_one(rate: float, burst: int) -> None:
    assert RateLimits(rate).max_burst_size == burst
