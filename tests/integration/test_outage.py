"""Memorystore away under a steady load, as processes: nothing fails, waits long, or is lost."""

from __future__ import annotations

import pytest

from benchmarks.figures import percentile
from benchmarks.outage import Course, Mode, run
from forkjoin_gcp.emulators import LocalServices

ACQUIRE_TIMEOUT = 1.0


@pytest.mark.parametrize("mode", ["stop", "kill"])
def test_an_outage_of_memorystore_fails_nobody_and_loses_nothing(
    local_services: LocalServices, mode: Mode
) -> None:
    outcome = run(
        Course(
            mode,
            seconds=4.0,
            rate=200.0,
            around=1.0,
            settings={
                "batch_period": 0.2,
                "writer_timeout": 1.0,
                "max_clock_skew": 0.5,
                "acquire_timeout": ACQUIRE_TIMEOUT,
            },
        ),
        local_services,
    )
    print(outcome.report())
    assert outcome.failed == {}
    assert outcome.accepted > 0.5 * 200 * 6
    assert len(outcome.waits) > 0.5 * 200 * 4
    assert percentile(outcome.waits, 0.99) < 2 * ACQUIRE_TIMEOUT
    assert outcome.lost == 0
    assert outcome.counters["breaker_opened"] >= 1
    assert outcome.counters["clock_holds"] >= 4
