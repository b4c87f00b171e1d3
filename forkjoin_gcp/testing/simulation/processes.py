"""The simulated processes: services that enqueue and functions that join, with the real protocol.

Each has the real writer, or reader and worker, with connections, floors and a clock of its own.
"""

from __future__ import annotations

import asyncio
import contextvars
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from forkjoin_gcp.config import QueueConfig, Services
from forkjoin_gcp.emulators.firestore_embedded.direct import DirectClient, DirectFirestore
from forkjoin_gcp.errors import ChunkBusy, ForkJoinError, Reject, Retry, ServiceError
from forkjoin_gcp.gcp.firestore import FirestoreStore
from forkjoin_gcp.gcp.memorystore import MemorystoreIndex
from forkjoin_gcp.gcp.memorystore_store import MemorystoreStore
from forkjoin_gcp.items import Item, PayloadCodec, Segment
from forkjoin_gcp.joining.handlers import Handler, ItemHandler, Outcome, Run
from forkjoin_gcp.joining.reader import Reader
from forkjoin_gcp.joining.worker import Worker
from forkjoin_gcp.names import CLOCK_LANE, MAX_POSITIONS, Batch, Lane
from forkjoin_gcp.ports import Change, Counters, Found, KeyRange, Ports, WorkStore
from forkjoin_gcp.sweeper import Sweeper
from forkjoin_gcp.tasks import RootTask, parse_task
from forkjoin_gcp.testing.simulation.cloud_tasks import (
    BUSY,
    DONE,
    SimulatedCloudTasks,
    SimulatedScheduler,
)
from forkjoin_gcp.testing.simulation.ledger import (
    Behaviour,
    Delivery,
    Handling,
    Ledger,
    Remains,
    Violation,
)
from forkjoin_gcp.testing.simulation.loop import Process, SimulatedLoop
from forkjoin_gcp.testing.simulation.network import Link, Network, Trace, witness
from forkjoin_gcp.testing.simulation.valkey import SimulatedValkey
from forkjoin_gcp.testing.simulation.valkey_client import SimulatedValkeyClient
from forkjoin_gcp.writing.writer import Writer

START = 1_800_000_000.0
"""Unix time at the loop's 0."""

SWEEP_AFTER = 2.0
"""Seconds. Less than a queue may have, so that sweeps meet work in progress."""


@dataclass
class Cloud:
    """The services that all processes share, and what is known about the items."""

    loop: SimulatedLoop
    random: Random
    trace: Trace
    network: Network
    config: QueueConfig
    valkey: SimulatedValkey
    firestore: DirectFirestore
    tasks: SimulatedCloudTasks
    ledger: Ledger
    to_valkey: Link
    to_firestore: Link
    to_tasks: Link
    to_join: Link
    lease_seconds: float
    defence: Any

    def ports(self, clock: SkewedClock, counters: Counters) -> Ports:
        """Connections of one process."""
        client: Any = SimulatedValkeyClient(
            self.valkey,
            self.network,
            self.to_valkey,
            self.config.acquire_timeout,
            self.defence.patch_lua,
            self._watch,
        )
        store = self._store(client, counters)
        _observe(store, self.ledger, self.loop)
        scheduler = SimulatedScheduler(self.tasks, self.network, self.to_tasks)
        ports = Ports(MemorystoreIndex(client, self.config, counters), store, scheduler, clock)
        weakened: Ports = self.defence.patch_ports(ports)
        return weakened

    def _store(self, client: Any, counters: Counters) -> WorkStore:
        if self.config.storage == "memorystore":
            return MemorystoreStore(client, self.config.expire_after, counters)

        async def carry(what: str, call: Callable[[], Any], seconds: float) -> Any:
            return await self.network.call(self.to_firestore, what, call, seconds)

        store = FirestoreStore(Services(project="simulation"), counters)
        store._calls._client = DirectClient(self.firestore, carry)
        return store

    def _watch(
        self, script: str, keys: Sequence[bytes], args: Sequence[bytes], reply: object
    ) -> None:
        try:
            self.ledger.lanes.watch(script, keys, args, reply)
        except Violation as violation:
            self.loop.fail(violation)
        for key in self.valkey.endless(keys):
            text = f"{script} left {key.decode()} without a time to live"
            self.loop.fail(Violation(text))


@dataclass
class SkewedClock:
    """A machine's clock, so many seconds off."""

    loop: SimulatedLoop
    skew: float = 0.0

    def now(self) -> float:
        return START + self.loop.time() + self.skew


def _observe(store: WorkStore, ledger: Ledger, loop: SimulatedLoop) -> None:
    """Tell the ledger of items that are about to move, and of those that were settled."""
    move, settle = store.move, store.settle

    async def observed_move(
        batch: Batch, found: Found, target: Batch, pieces: Sequence[Segment]
    ) -> bool:
        ledger.moved.update(piece.item_id(item) for piece in pieces for item in piece.items)
        return await move(batch, found, target, pieces)

    async def observed_settle(batch: Batch, changes: Sequence[Change]) -> list[bool]:
        applied = await settle(batch, changes)
        for change, done in zip(changes, applied, strict=True):
            if done:
                ledger.settle(change, loop.time())
        return applied

    store.move = observed_move  # type: ignore[method-assign]
    store.settle = observed_settle  # type: ignore[method-assign]


class EnqueuingService:
    """A process that enqueues."""

    def __init__(self, cloud: Cloud, name: str, skew: float, first_lane: int) -> None:
        self.cloud = cloud
        self.process = Process(name)
        self.counters = Counters()
        clock = SkewedClock(cloud.loop, skew)
        self.ports = self.process.context.run(cloud.ports, clock, self.counters)
        self.writer = Writer(
            cloud.config,
            self.ports,
            self.counters,
            first_lane=first_lane,
            new_nonce=lambda: f"{cloud.random.getrandbits(64):016x}",
        )

    def enqueue(self, numbers: Sequence[int]) -> asyncio.Task[None]:
        """One call of a caller in this process."""
        return self.cloud.loop.spawn(self.process, self._enqueue(numbers))

    async def _enqueue(self, numbers: Sequence[int]) -> None:
        ledger, trace = self.cloud.ledger, self.cloud.trace
        trace(self.process, "enqueues", *numbers)
        try:
            ids = await self.writer.put([json.dumps({"n": n}) for n in numbers])
        except ForkJoinError as error:
            trace(self.process, "is refused", *numbers, type(error).__name__)
            if type(error) is ServiceError:  # what the writer did not expect
                raise
            for number in numbers:
                ledger.refused[number] = error
        else:
            trace(self.process, "is told", *ids)
            for number, item_id in zip(numbers, ids, strict=True):
                ledger.accept(number, item_id)


class SweepJob:
    """A process that sweeps, or looks at what is stored, and ends."""

    def __init__(self, cloud: Cloud, name: str, skew: float = 0.0) -> None:
        self.cloud = cloud
        self.process = Process(name)
        self.counters = Counters()
        self.ports = self.process.context.run(
            cloud.ports, SkewedClock(cloud.loop, skew), self.counters
        )

    def sweep(self) -> asyncio.Task[None]:
        """Sweep once, with a ``sweep_after`` that fits a simulated world."""
        return self.cloud.loop.spawn(self.process, self._sweep())

    async def _sweep(self) -> None:
        config = self.cloud.config.model_copy(update={"sweep_after": SWEEP_AFTER})
        sweeper = Sweeper(config, self.ports, self.counters)
        self.cloud.trace(self.process, "sweeps")
        try:
            report = await sweeper.run(partitions=2)
        except ServiceError as error:
            self.cloud.trace(self.process, "fails", type(error).__name__)
            return
        for stale in report.stale:
            self.cloud.trace(self.process, "finds", stale.batch.key, stale.items, stale.scheduled)

    def look(self) -> asyncio.Task[Remains]:
        """What is stored."""
        return self.cloud.loop.spawn(self.process, self._look())

    async def _look(self) -> Remains:
        config, store = self.cloud.config, self.ports.store
        remains = Remains()
        wanted = KeyRange(config.name, config.version)
        async for page in store.scan(wanted, 1_000):
            for batch in dict.fromkeys(one.batch for one in page):
                remains.found += await store.read(batch, 0, MAX_POSITIONS)
        for number in (*range(config.lanes), CLOCK_LANE):
            letters = await store.dead_letters(Lane(config.name, config.version, number), 10_000)
            remains.dead.update({letter.id: letter for letter in letters})
        return remains


class LoopRunner:
    """HandlerRunner on the process's own loop, with the deadlines of production."""

    def __init__(self, handler: Handler, deadline: float) -> None:
        self._handler = handler
        self._deadline = deadline

    async def run(self, items: Sequence[Item[Any]], elapsed: float) -> list[Outcome]:
        margin = min(30.0, self._deadline / 5)
        left = max(0.0, self._deadline - elapsed - margin)
        run = Run(items)
        handling = asyncio.ensure_future(self._bounded(run, left, margin))
        try:
            await asyncio.wait([handling], timeout=left + margin / 2)
            if handling.done():
                handling.result()
        finally:
            handling.cancel()
        return run.results()

    async def _bounded(self, run: Run, seconds: float, margin: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._handler.handle(run, max(0.0, seconds - margin))
        except TimeoutError:
            return


delivery_here: contextvars.ContextVar[Delivery] = contextvars.ContextVar("delivery")


class JoinFunction:
    """A process that joins: what Cloud Run would call an instance."""

    def __init__(self, cloud: Cloud, name: str, skew: float) -> None:
        self.cloud = cloud
        self.process = Process(name)
        self.counters = Counters()
        self.open: dict[Delivery, asyncio.Future[int]] = {}
        clock = SkewedClock(cloud.loop, skew)
        ports = self.process.context.run(cloud.ports, clock, self.counters)
        codec: PayloadCodec[Any] = PayloadCodec(dict[str, Any])
        handler: ItemHandler[Any] = ItemHandler(self._handle, cloud.config.concurrency)
        runner = LoopRunner(handler, cloud.config.dispatch_deadline)
        self.worker = Worker(
            cloud.config,
            ports,
            self.counters,
            codec,
            runner,
            lease_seconds=cloud.lease_seconds,
        )
        self.reader = Reader(cloud.config, ports, self.counters, self.worker)

    def begin(self, body: bytes, delivery: Delivery) -> asyncio.Future[int]:
        """Take a request; its status, once it is answered."""
        answered: asyncio.Future[int] = self.cloud.loop.create_future()
        self.open[delivery] = answered
        self.cloud.loop.spawn(self.process, self._join(body, delivery, answered))
        return answered

    def crashed(self) -> None:
        """Whoever waits for an answer sees the connection end."""
        for delivery, answered in self.open.items():
            delivery.troubles.append("crash")
            delivery.ended = self.cloud.loop.time()
            if not answered.done():
                answered.set_result(503)
        self.open.clear()

    async def _join(self, body: bytes, delivery: Delivery, answered: asyncio.Future[int]) -> None:
        witness.set(delivery)
        delivery_here.set(delivery)
        status = 503
        try:
            task = parse_task(body)
            if isinstance(task, RootTask):
                await self.reader.run(task)
            else:
                await self.worker.run(task, self.cloud.loop.time())
            status = DONE
        except ChunkBusy:
            status = BUSY
        except ServiceError as error:
            self.cloud.trace(self.process, "fails", delivery.name, type(error).__name__)
        delivery.ended = self.cloud.loop.time()
        delivery.status = status
        self.cloud.trace(self.process, "answers", delivery.name, status)
        self.open.pop(delivery, None)
        if not answered.done():
            answered.set_result(status)

    async def _handle(self, item: Item[dict[str, int]]) -> None:
        cloud, number = self.cloud, item.payload["n"]
        ledger = cloud.ledger
        handling = ledger.begin(item.id, number, delivery_here.get(), cloud.loop.time())
        behaviour = ledger.behaviours.get(number, Behaviour())
        cloud.trace(self.process, "handles", item.id, number, "attempt", item.attempt)
        try:
            await asyncio.sleep(behaviour.seconds)
            await self._do(item.payload["n"], behaviour, handling)
        finally:  # also where it is cancelled
            handling.end("cut short", cloud.loop.time())

    async def _do(self, number: int, behaviour: Behaviour, handling: Handling) -> None:
        cloud, ledger = self.cloud, self.cloud.ledger
        what = behaviour.of_try(len(ledger.handlings[number]))
        if what == "kill":
            cloud.trace(self.process, "is killed by", number)
            cloud.loop.crash(self.process)
            await cloud.loop.create_future()
        if what == "hang":
            await cloud.loop.create_future()
        handling.end(what, cloud.loop.time())
        if what == "fail":
            raise RuntimeError("fails")
        if what == "retry":
            raise Retry("later", after=behaviour.after)
        if what == "reject":
            raise Reject("no good")
