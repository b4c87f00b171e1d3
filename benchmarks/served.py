"""The queues that are served while they are measured, opened on both ends."""

from __future__ import annotations

from benchmarks.enqueuing import IDLE_PERIOD, PACED_PERIOD
from benchmarks.joining import RELEASE_PERIOD
from benchmarks.stage import Stage, say
from forkjoin_gcp.config import Settings

PACKAGE: dict[str, Settings] = {
    "idle": {"batch_period": IDLE_PERIOD},
    "paced": {"batch_period": PACED_PERIOD},
    "release": {"batch_period": RELEASE_PERIOD},
    # Long enough that a batch is in whole when its root task runs.
    "large": {"batch_period": 3.0, "max_batch_items": 1_000_000},
}

OLD: dict[str, float] = {
    "idle-old": IDLE_PERIOD,
    "release-old": RELEASE_PERIOD,
    "large-old": RELEASE_PERIOD,
}


def open_served(stage: Stage) -> None:
    """Create the task queues, start serving, and open the callers' ends."""
    say("starting the join endpoints")
    for name in PACKAGE:
        stage.new_queue(name, package=True)
    for name in OLD:
        stage.new_queue(name, package=False)
    join_url, pop_url = stage.serving.call("serve", PACKAGE, OLD)
    for name, settings in PACKAGE.items():
        stage.new.call("open", name, settings, join_url)
    for name, batch_period in OLD.items():
        stage.old.call("open", name, batch_period, pop_url)
