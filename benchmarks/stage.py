"""Everything of a run: the local services, a process for each side, and who reads the meters."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from benchmarks.accounting import Accountant
from benchmarks.ceiling import Ceiling
from benchmarks.peers import Peer
from benchmarks.setting import Setting
from benchmarks.side_2010 import Side2010
from benchmarks.side_package import SidePackage
from benchmarks.side_serving import SideServing
from forkjoin_gcp.config import Settings
from forkjoin_gcp.emulators import LocalServices

UNREAD: Settings = {"batch_period": 60.0, "max_batch_items": 1_000_000}
"""No task of such a queue runs during a round, so that what is measured is enqueuing alone."""

UNREAD_PERIOD = 60.0

JAVA_OPTIONS = "-Xms3g -Xmx3g -Xmn1g -XX:+AlwaysPreTouch"
"""For the Firestore emulator. It keeps whatever was ever written, deleted or not, and a run writes
more than the half gigabyte that is plenty for everything else; a heap that is nearly full would be
measured, and not what is asked."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How much of everything: a whole run stays well below five minutes."""

    rounds: int = 5
    round_seconds: float = 2.0
    many_pairs: int = 4
    many_items: int = 10_000
    idle_blocks: int = 8
    idle_calls: int = 6
    paced_seconds: float = 6.0
    releases: int = 21
    large_rounds: int = 3
    large_items: int = 10_000
    import_rounds: int = 5


QUICK = Plan(
    rounds=1, round_seconds=1.0, many_pairs=2, idle_blocks=1, idle_calls=5, paced_seconds=1.5,
    releases=3, large_rounds=1, large_items=2_000, import_rounds=1,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Stage:
    """A running stage. Each peer does one thing at a time, and one peer at a time is at work."""

    local: LocalServices
    meters: Accountant
    old: Peer
    new: Peer
    raw: Peer
    serving: Peer

    def new_queue(self, name: str, *, package: bool) -> None:
        """Create the Cloud Tasks queue that a queue of this name uses."""
        self.local.create_queue(f"{name}-1" if package else name)


@contextlib.contextmanager
def staged() -> Iterator[Stage]:
    """Start all, and end all, whatever happens in between."""
    os.environ.setdefault("_JAVA_OPTIONS", JAVA_OPTIONS)
    with contextlib.ExitStack() as stack:
        say("starting the local services")
        local = stack.enter_context(LocalServices.start(project="forkjoin-bench"))
        setting = Setting(local.environment())
        meters = Accountant(
            setting.valkey_url, local.cloud_tasks_admin, setting.firestore, setting.project
        )
        stack.callback(meters.close)
        sides = (Side2010, SidePackage, Ceiling, SideServing)
        old, new, raw, serving = (stack.enter_context(Peer(side, setting)) for side in sides)
        yield Stage(local, meters, old, new, raw, serving)


def say(text: str) -> None:
    """Progress, for whoever watches; the results alone go to standard output."""
    print(f"  {text}", file=sys.stderr, flush=True)


def wait_until(condition: Callable[[], bool], seconds: float, what: str) -> None:
    """Raises TimeoutError, saying what was waited for."""
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            raise TimeoutError(f"not in {seconds:g} s: {what}")
        time.sleep(0.005)
