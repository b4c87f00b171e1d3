"""Everything real, and everything goes wrong at once while 20,000 items flow: none is lost.

And while some thousands flow through Google's Firestore emulator instead of the embedded one.

Processes that enqueue write down what was acknowledged; the handler notes what it handled. Until
the last item is in, Valkey is flushed and loses single lanes and its scripts, processes are stopped
for longer than readers wait for writers, or killed; dispatches come late, twice, again after
seconds, and are answered 500 before or after the work; handlers fail.

What may be left over: an item whose process was killed, or got no answer, between writing its
segment and creating the root task. It was not acknowledged, and waits for the sweeper. An
acknowledged one has a root task: creating it was given up only if Cloud Tasks had been away for
seconds (counted as ``schedule_deferred``), which nothing here makes it.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import flask
import pytest
import redis
from google.auth.credentials import AnonymousCredentials
from google.cloud import firestore

from forkjoin_gcp import ForkJoinQueue, Item, Reject, Services, join_blueprint
from forkjoin_gcp.emulators import LocalServices
from forkjoin_gcp.gcp.firestore import FirestoreStore
from forkjoin_gcp.gcp.firestore_documents import SEGMENTS
from forkjoin_gcp.names import MAX_POSITIONS, Batch, Lane
from forkjoin_gcp.ports import Counters
from tests.integration.conftest import serving, wait_until
from tests.integration.faults.meddler import Meddler
from tests.integration.faults.settings import SETTINGS

ITEMS = {"embedded": 20_000, "google": 6_000}
STYLES = ("threads", "loop", "many", "loop")
MEDDLED_SHARE = 0.3
FAILING_SHARE = 0.01
STALL_SECONDS = (0.6, 1.2)
"""Longer than writer_timeout: the reader gives the writer up."""
FAULT_SECONDS = 25.0
"""So long things go wrong; what is left of the flow is as fast as the machine."""
FLOW_SECONDS = 90.0
DRAIN_SECONDS = 30.0

Acknowledged = dict[int, str]
"""Number to id."""


class Slot:
    """One enqueuing process after another, until its share of the items is acknowledged."""

    def __init__(
        self, queue: str, directory: Path, number: int, share: int, environment: dict[str, str]
    ) -> None:
        self._queue = queue
        self._ledger = directory / f"{number}.ledger"
        self._style = STYLES[number]
        self._share = share
        self._environment = environment
        self._firsts = itertools.count(number * 10_000_000, 1_000_000)
        self.process: subprocess.Popen[bytes] | None = None
        self.starts = 0

    def acknowledged(self) -> Acknowledged:
        """What the ledger says. A line that a kill cut short says nothing."""
        if not self._ledger.exists():
            return {}
        *lines, _ = self._ledger.read_text().split("\n")
        pairs = [line.split() for line in lines]
        return {int(number): item_id for number, item_id in pairs}

    def running(self) -> bool:
        """Whether there is more to come. Starts a successor where a process was killed."""
        if self.process is not None:
            status = self.process.poll()
            if status is None:
                return True
            assert status in (0, -signal.SIGKILL), f"{self._style} ended with {status}"
        wanted = self._share - len(self.acknowledged())
        if wanted <= 0:
            return False
        self._close_input()
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "tests.integration.faults.caller", self._queue),
                *(str(self._ledger), str(next(self._firsts)), str(wanted), self._style),
            ],
            env=self._environment,
            stdin=subprocess.PIPE,
        )
        self.starts += 1
        return True

    def works(self) -> bool:
        """Whether there is a process past its start: one to stop or kill."""
        return self.process is not None and self.process.poll() is None

    def send(self, number: int) -> None:
        if self.works():
            assert self.process is not None
            self.process.send_signal(number)

    def end(self) -> None:
        """A stopped process is woken first: it could not end otherwise."""
        if self.process is not None:
            self.send(signal.SIGCONT)
            self.send(signal.SIGKILL)
            self.process.wait()
            self._close_input()

    def _close_input(self) -> None:
        if self.process is not None and self.process.stdin is not None:
            self.process.stdin.close()


class Faults:
    """Does something bad to Valkey or to a process, again and again, as a seeded generator says."""

    def __init__(self, seed: int, slots: list[Slot], valkey: redis.Redis, lane: Lane) -> None:
        self._random = random.Random(seed)
        self._slots = slots
        self._valkey = valkey
        self._lane = lane
        self.done: Counter[str] = Counter()
        self._agenda: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        began = self._end = time.monotonic()
        for act, low, high in (
            (self._flush, 0.3, 1.0),
            (self._forget_the_lane, 0.2, 1.0),
            (self._forget_the_scripts, 0.5, 2.0),
            (self._stall, 0.5, 1.5),
            (self._kill, 0.7, 2.5),
        ):
            self._plan(began, self._again(act, low, high))

    def run(self, seconds: float, until: Callable[[], bool]) -> None:
        """Until ``until`` is true; no new fault is begun after ``seconds``."""
        self._end = time.monotonic() + seconds
        while not until():
            now = time.monotonic()
            while self._agenda and self._agenda[0][0] <= now:
                heapq.heappop(self._agenda)[2]()
            time.sleep(0.01)

    def _plan(self, at: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._agenda, (at, next(self._order), act))

    def _again(self, act: Callable[[], None], low: float, high: float) -> Callable[[], None]:
        first = True

        def go() -> None:
            nonlocal first
            if time.monotonic() > self._end:
                return
            if not first:
                act()
            first = False
            self._plan(time.monotonic() + self._random.uniform(low, high), go)

        return go

    def _flush(self) -> None:
        self._valkey.flushall()
        self.done["flushed"] += 1

    def _forget_the_lane(self) -> None:
        self.done["lane forgotten"] += int(self._valkey.delete(self._lane.key))  # type: ignore[arg-type]

    def _forget_the_scripts(self) -> None:
        self._valkey.script_flush()
        self.done["scripts forgotten"] += 1

    def _stall(self) -> None:
        slot = self._random.choice(self._slots)
        if slot.works():
            slot.send(signal.SIGSTOP)
            self.done["stalled"] += 1
            seconds = self._random.uniform(*STALL_SECONDS)
            self._plan(time.monotonic() + seconds, lambda: slot.send(signal.SIGCONT))

    def _kill(self) -> None:
        working = [slot for slot in self._slots if slot.works()]
        if working:
            self._random.choice(working).send(signal.SIGKILL)
            self.done["killed"] += 1


class Handled:
    """The handler, and what it did: which ids each number came with, and how often."""

    def __init__(self, seed: int) -> None:
        self.seen: dict[int, Counter[str]] = {}
        self.failures = 0
        self._seed = seed

    async def handle(self, item: Item[dict[str, Any]]) -> None:
        number = item.payload["n"]
        await asyncio.sleep(0.002)
        if number % 997 == 0:
            raise Reject("every 997th is refused")
        if (
            number % 1499 == 0
            or random.Random(f"{self._seed} {number} {item.attempt}").random() < FAILING_SHARE
        ):
            self.failures += 1
            raise RuntimeError("now and then")
        self.seen.setdefault(number, Counter())[item.id] += 1

    def without(self, acknowledged: Acknowledged) -> Acknowledged:
        """Those that have not come, or not under the id that was acknowledged."""
        return {n: one for n, one in acknowledged.items() if one not in self.seen.get(n, ())}

    @property
    def duplicates(self) -> int:
        return sum(ids.total() - 1 for ids in self.seen.values())


class Segments:
    """What Firestore still holds of a queue."""

    def __init__(self, services: Services, lane: Lane) -> None:
        self._services = services
        self._lane = lane

    def numbers(self) -> list[int]:
        return asyncio.run(self._numbers())

    def _batches(self) -> list[Batch]:
        client = firestore.Client(
            project=self._services.project, credentials=AnonymousCredentials()
        )
        marker = f"/{self._lane.root_path}/batches/"
        paths = [
            "/" + found.reference.path
            for found in client.collection_group(SEGMENTS).select([]).stream()
        ]
        client.close()
        keys = {path.split("/")[4] for path in paths if path.startswith(marker)}
        return [Batch.parse(self._lane.queue, self._lane.version, key) for key in keys]

    async def _numbers(self) -> list[int]:
        store = FirestoreStore(self._services, Counters())
        try:
            found = [
                one
                for batch in await asyncio.to_thread(self._batches)
                for one in await store.read(batch, 0, MAX_POSITIONS)
            ]
        finally:
            await store.close()
        assert not [one.defect for one in found if one.segment is None]
        segments = [one.segment for one in found if one.segment is not None]
        return [json.loads(item.payload)["n"] for each in segments for item in each.items]


@contextmanager
def joined(
    local_services: LocalServices, local_environment: dict[str, str], seed: int
) -> Iterator[tuple[ForkJoinQueue[dict[str, Any]], Handled, Meddler, dict[str, str]]]:
    """A queue whose dispatches are meddled with, and the environment of those who enqueue."""
    name = f"faults-{uuid.uuid4().hex[:10]}"
    app = flask.Flask(name)
    meddler = Meddler(app.wsgi_app, seed, MEDDLED_SHARE)
    app.wsgi_app = meddler  # type: ignore[method-assign]
    handled = Handled(seed)
    with serving(app) as port:
        join_url = {"FORKJOIN_JOIN_URL": f"http://127.0.0.1:{port}/forkjoin"}
        environment = local_environment | join_url
        services = Services.from_env(environment)
        with ForkJoinQueue(name, services=services, **SETTINGS) as queue:
            queue.handler(handled.handle)
            app.register_blueprint(join_blueprint(queue))
            local_services.create_queue(
                queue.config.task_queue(1), min_backoff=0.1, max_backoff=0.5
            )
            try:
                yield queue, handled, meddler, {**os.environ, **environment}
            finally:
                meddler.stop()


def flow(slots: list[Slot], faults: Faults) -> Acknowledged:
    """Let all processes enqueue until each has its share; what they were told was accepted."""
    latest = time.monotonic() + FLOW_SECONDS

    def all_in() -> bool:
        assert time.monotonic() < latest, [len(slot.acknowledged()) for slot in slots]
        return not [slot for slot in slots if slot.running()]

    faults.run(FAULT_SECONDS, until=all_in)
    acknowledged: Acknowledged = {}
    for slot in slots:
        acknowledged |= slot.acknowledged()
    return acknowledged


@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    ("local_environment", "items"), ITEMS.items(), ids=ITEMS, indirect=["local_environment"]
)
def test_nothing_acknowledged_is_lost(
    local_services: LocalServices,
    local_environment: dict[str, str],
    items: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seed = int(os.environ.get("FAULTS_SEED") or random.randrange(2**32))
    print(f"FAULTS_SEED={seed}")
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        queue, handled, meddler, environment = stack.enter_context(
            joined(local_services, local_environment, seed)
        )
        monkeypatch.setenv("FIRESTORE_EMULATOR_HOST", environment["FIRESTORE_EMULATOR_HOST"])
        valkey = redis.Redis.from_url(environment["FORKJOIN_MEMORYSTORE"])
        stack.callback(valkey.close)
        lane = Lane(queue.name, queue.config.version)
        segments = Segments(queue.services, lane)
        slots = [
            Slot(queue.name, tmp_path, number, items // len(STYLES), environment)
            for number in range(len(STYLES))
        ]
        for slot in slots:
            stack.callback(slot.end)
        faults = Faults(seed, slots, valkey, lane)
        acknowledged = flow(slots, faults)
        flowed = time.monotonic() - began
        assert len(acknowledged) >= items

        def lost() -> Acknowledged:
            left = handled.without(acknowledged)
            buried = {letter.id for letter in queue.dead_letters(items)} if left else set()
            return {number: item_id for number, item_id in left.items() if item_id not in buried}

        with contextlib.suppress(AssertionError):  # what is wrong is said better below
            wait_until(lambda: not lost(), DRAIN_SECONDS)
            meddler.stop()
            wait_until(lambda: not acknowledged.keys() & set(segments.numbers()), DRAIN_SECONDS)
        missing = lost()
        left = segments.numbers()
        ends = [json.loads(path.read_text()) for path in tmp_path.glob("*.ended")]
        print(
            f"{len(acknowledged):,} acknowledged in {flowed:.1f} s of "
            f"{time.monotonic() - began:.1f} s: {len(missing)} lost, "
            f"{handled.duplicates} handled again, {len(queue.dead_letters(items))} dead-lettered, "
            f"{handled.failures} failed tries, {len(left)} left in the store;\n"
            f"{dict(faults.done)}, dispatches {dict(meddler.done)},\n"
            f"processes {[slot.starts for slot in slots]}, joins {dict(queue.counters)},\n"
            f"those that ended by themselves: {[end['counters'] for end in ends]},\n"
            f"refused there: {[end['refusals'] for end in ends]}"
        )
        assert not missing, f"lost: {dict(itertools.islice(missing.items(), 20))}"
        assert not acknowledged.keys() & set(left), "acknowledged, handled, and still there"
        keys = list(valkey.scan_iter(match="fj:*", count=1000))
        assert all(valkey.pttl(key) != -1 for key in keys), "a key is left without TTL"
        for fault in ("flushed", "lane forgotten", "scripts forgotten", "stalled", "killed"):
            assert faults.done[fault], f"{fault}: did not happen"
    assert all(slot.process and slot.process.poll() is not None for slot in slots)
