"""Runs one world: builds it from its plan, lets it happen, heals it, and waits for its end."""

from __future__ import annotations

import asyncio
import gc
import logging
import random as global_random
from collections.abc import Sequence
from contextlib import ExitStack
from random import Random
from typing import Any
from unittest import mock

from forkjoin_gcp.config import QueueConfig
from forkjoin_gcp.emulators.firestore_embedded.direct import DirectFirestore
from forkjoin_gcp.ports import TaskRequest
from forkjoin_gcp.testing.simulation.checker import check
from forkjoin_gcp.testing.simulation.cloud_tasks import FAILED, SimulatedCloudTasks, TaskFaults
from forkjoin_gcp.testing.simulation.defences import NONE, Defence
from forkjoin_gcp.testing.simulation.ledger import Delivery, Ledger, Remains, Violation
from forkjoin_gcp.testing.simulation.loop import EndlessError, Process, SimulatedLoop
from forkjoin_gcp.testing.simulation.network import Link, Network, Trace, witness
from forkjoin_gcp.testing.simulation.plan import WORK_SECONDS, Event, Plan
from forkjoin_gcp.testing.simulation.processes import (
    START,
    SWEEP_AFTER,
    Cloud,
    EnqueuingService,
    JoinFunction,
    SweepJob,
)
from forkjoin_gcp.testing.simulation.valkey import SimulatedValkey

LAST_SWEEPS = 3
"""Sweeps, one after another, when a world has healed: what is left after these is lost."""

MAX_STEPS = 400_000
MAX_SECONDS = 3_000.0
"""Beyond these a world has not come to rest."""


class World:
    """One world. ``run`` may be called once."""

    def __init__(self, plan: Plan, defence: Defence = NONE) -> None:
        self.plan = plan
        self.random = Random(f"run {plan.seed}")
        self.loop = SimulatedLoop(self.random)
        self.trace = Trace(self.loop)
        self.ledger = Ledger(behaviours=plan.behaviours)
        self.services: list[EnqueuingService] = []
        self.functions: list[JoinFunction] = []
        self.calls: list[tuple[Process, asyncio.Task[None]]] = []
        self.sweeper: SweepJob | None = None
        self.remains = Remains()
        self._made = 0
        self.cloud = self._build(defence)

    def _build(self, defence: Defence) -> Cloud:
        plan, loop, random, trace = self.plan, self.loop, self.random, self.trace
        offset = START + random.uniform(-1, 1) * plan.skew

        def clock() -> float:
            return offset + loop.time()

        network = Network(loop, random, trace)
        faults = TaskFaults(
            duplicates=0.3 if plan.has("dispatched twice") else 0.0,
            delays=0.2 if plan.has("dispatched late") else 0.0,
            lost_tasks=0.2 if plan.has("tasks lost") else 0.0,
            tombstone=plan.tombstone,
            max_tries=2 if plan.has("tasks given up") else 0,
        )
        cloud = Cloud(
            loop=loop,
            random=random,
            trace=trace,
            network=network,
            config=QueueConfig("sim", **plan.settings),
            valkey=SimulatedValkey(clock, random),
            firestore=DirectFirestore(lambda: START + loop.time(), defence.patch_firestore),
            tasks=SimulatedCloudTasks(loop, random, trace, lambda: START + loop.time(), faults),
            ledger=self.ledger,
            # A create that comes after its writer gave up may bring back what was settled.
            to_valkey=Link(
                "memorystore",
                0.001,
                late_requests=plan.sweeps or plan.settings["storage"] != "memorystore",
            ),
            to_firestore=Link("firestore", 0.01, late_requests=plan.has("firestore writes late")),
            to_tasks=Link("tasks", 0.005),
            to_join=Link("join", 0.005),
            lease_seconds=plan.lease_seconds,
            defence=defence,
        )
        cloud.tasks.deliver = self._deliver
        cloud.valkey.refuses_info = plan.has("failover unnoticed")
        self.ledger.lanes.forgives = plan.has("failover unnoticed")
        self._set_links(cloud)
        return cloud

    def _set_links(self, cloud: Cloud) -> None:
        plan, rate = self.plan, self.plan.rate
        for name, link in (("memorystore", cloud.to_valkey), ("firestore", cloud.to_firestore)):
            if plan.has(f"{name} loses calls"):
                link.lost_requests = link.lost_answers = link.resets = rate
            if plan.has(f"{name} slow", f"{name} writes late"):
                link.slow = rate
        if plan.has("cloud tasks loses answers", "cloud tasks loses calls"):
            cloud.to_tasks.lost_answers = rate
        if plan.has("cloud tasks loses calls"):
            cloud.to_tasks.lost_requests = cloud.to_tasks.resets = 2 * rate
        if plan.has("cloud tasks slow"):
            cloud.to_tasks.slow = rate
        if plan.has("join answers lost"):
            cloud.to_join.lost_answers = cloud.to_join.resets = rate

    def run(self) -> None:
        """Let it all happen. Raises Violation, EndlessError, or what nobody expected."""
        logger = logging.getLogger("forkjoin_gcp")
        level, state = logger.level, global_random.getstate()
        logger.setLevel(logging.CRITICAL)  # what goes wrong here is meant to
        global_random.seed(self.plan.seed)  # for libraries that draw their own waits
        collecting = gc.isenabled()
        gc.disable()  # what a crashed process left must not be tidied up while others run
        try:
            with ExitStack() as stack:
                for owner, name, instead in self.cloud.defence.patches:
                    stack.enter_context(mock.patch.object(owner, name, instead))
                self.loop.run(self._main(), max_steps=MAX_STEPS, max_seconds=MAX_SECONDS)
        finally:
            if collecting:
                gc.enable()
            global_random.setstate(state)
            logger.setLevel(level)

    def facts(self) -> dict[str, int]:
        """What happened how often."""
        ledger = self.ledger
        tries = [each for handlings in ledger.handlings.values() for each in handlings]
        return {
            "items": len(ledger.offered),
            "accepted": len(ledger.accepted),
            "tries": len(tries),
            "handled": sum(each.outcome == "succeed" for each in tries),
            "requests": len(ledger.deliveries),
            "moved": len(ledger.moved),
        }

    async def _main(self) -> None:
        plan = self.plan
        self.trace("world", plan)
        for _ in range(plan.services):
            self.services.append(self._new_service())
        for _ in range(plan.functions):
            self.functions.append(self._new_function())
        for call in plan.calls:
            self.loop.call_at(call.at, self._enqueue, call.service, call.numbers)
        for event in plan.events:
            self.loop.call_at(event.at, self._happen, event)
        if plan.sweeps and self.cloud.defence.sweeps:
            for at in (0.0, 2.1, 4.4, 4.5):
                self.loop.call_at(at, self._sweep)
        await asyncio.sleep(WORK_SECONDS)
        await asyncio.sleep(max([0.0, *(e.at + e.seconds - WORK_SECONDS for e in plan.events)]))
        self._heal()
        await self._rest()
        await self._close_services()
        await self._rest()
        if plan.sweeps and self.cloud.defence.sweeps:
            await self._sweep_to_the_end()
        self.remains = await SweepJob(self.cloud, "look").look()
        check(self)

    async def _sweep_to_the_end(self) -> None:
        for _ in range(LAST_SWEEPS):
            await asyncio.sleep(SWEEP_AFTER + 2 * self.plan.skew + 0.5)
            await SweepJob(self.cloud, self._name("sweeper"), self._skew()).sweep()
            await self._rest()

    def _sweep(self) -> None:
        self.sweeper = SweepJob(self.cloud, self._name("sweeper"), self._skew())
        self.sweeper.sweep()

    # Processes

    def _skew(self) -> float:
        return self.random.uniform(-1, 1) * self.plan.skew

    def _name(self, kind: str) -> str:
        self._made += 1
        return f"{kind}-{self._made}"

    def _new_service(self) -> EnqueuingService:
        lanes = self.cloud.config.lanes
        lane = self.random.randrange(lanes)
        return EnqueuingService(self.cloud, self._name("service"), self._skew(), lane)

    def _new_function(self) -> JoinFunction:
        function = JoinFunction(self.cloud, self._name("function"), self._skew())
        function.process.on_crash = lambda: self._function_crashed(function)
        return function

    def _function_crashed(self, function: JoinFunction) -> None:
        self.trace(function.process, "crashes")
        function.crashed()
        place = self.functions.index(function)

        def replace() -> None:
            self.functions[place] = self._new_function()

        self.loop.outside_later(self.random.uniform(0.05, 1.0), replace)

    def _service_crashed(self, place: int) -> None:
        self.trace(self.services[place].process, "crashes")
        self.services[place] = self._new_service()

    def _enqueue(self, place: int, numbers: Sequence[int]) -> None:
        service = self.services[place]
        self.ledger.offered += numbers
        self.calls.append((service.process, service.enqueue(numbers)))

    async def _deliver(self, task: TaskRequest, tried: int) -> int:
        there = [each for each in self.functions if each.process.alive]
        delivery = Delivery(name=f"{task.task_id} #{tried}", began=self.loop.time())
        witness.set(delivery)
        if not there:
            return FAILED
        function = self.random.choice(there)
        delivery.function = function.process.name
        self.ledger.deliveries.append(delivery)
        try:
            status: int = await self.cloud.network.call(
                self.cloud.to_join,
                f"{delivery.name} at {function.process}",
                lambda: self._begin(function, task, delivery),
                task.dispatch_deadline,
            )
        except OSError:
            return FAILED
        return status

    def _begin(self, function: JoinFunction, task: TaskRequest, delivery: Delivery) -> Any:
        if not function.process.alive:
            raise ConnectionRefusedError(f"{function.process} is no more")
        return function.begin(task.body, delivery)

    # Faults

    def _happen(self, event: Event) -> None:
        kind, cloud = event.kind, self.cloud
        if kind == "service crash":
            self._crash_service(event)
        elif kind == "function crash":
            self._crash(self.functions[event.target].process, event.steps)
        elif kind == "service stall":
            self._stall(self.services[event.target].process, event.seconds)
        elif kind == "function stall":
            function = self.functions[event.target]
            for delivery in function.open:
                delivery.troubles.append("stall")
            self._stall(function.process, event.seconds)
        elif kind == "sweeper crash":
            if self.sweeper is not None:
                self._crash(self.sweeper.process, event.steps)
        elif kind == "memorystore away":
            self._take_away(cloud.to_valkey, event)
        elif kind == "firestore away":
            self._take_away(cloud.to_firestore, event)
        elif kind == "cloud tasks away":
            self._take_away(cloud.to_tasks, event)
        elif kind == "memorystore flushed":
            self.trace("memorystore", "is flushed")
            cloud.valkey.flush()
        elif kind == "memorystore evicts":
            self._evict([self.random.choice([*cloud.valkey.keys(), b""])])
        elif kind == "memorystore evicts leases":
            self._evict([key for key in list(cloud.valkey.keys()) if b":chunk:" in key])
        elif kind == "memorystore fails over":
            replica = cloud.valkey.snapshot()
            self.loop.call_later(event.seconds, self._fail_over, replica)

    def _crash_service(self, event: Event) -> None:
        place = event.target
        process = self.services[place].process
        process.on_crash = lambda: self._service_crashed(place)
        self._crash(process, event.steps)

    def _crash(self, process: Process, steps: int) -> None:
        if steps:
            process.crash_at_step = process.steps + steps
        else:
            self.loop.crash(process)

    def _stall(self, process: Process, seconds: float) -> None:
        self.trace(process, f"stalls for {seconds:.3f} s")
        self.loop.stall(process)
        self.loop.outside_later(seconds, self.loop.go_on, process)

    def _take_away(self, link: Link, event: Event) -> None:
        self.trace(link.name, "is away")
        if event.target:
            link.silent = True
        else:
            link.refusing = True

        def come_back() -> None:
            self.trace(link.name, "is back")
            link.silent = link.refusing = False

        self.loop.call_later(event.seconds, come_back)

    def _evict(self, keys: list[bytes]) -> None:
        for key in filter(None, keys):
            self.trace("memorystore", "evicts", key.decode())
            self.cloud.valkey.evict(key)

    def _fail_over(self, replica: Any) -> None:
        self.trace("memorystore", "fails over")
        self.cloud.valkey.fail_over(replica)

    # The end

    def _heal(self) -> None:
        self.trace("world", "heals")
        cloud = self.cloud
        for link in (cloud.to_valkey, cloud.to_firestore, cloud.to_tasks, cloud.to_join):
            link.heal()
        cloud.tasks.faults.heal()
        services = [service.process for service in self.services]
        for process in [*services, *(function.process for function in self.functions)]:
            process.crash_at_step = None

    async def _rest(self) -> None:
        """Return when no caller waits, no task is left, and nothing is on its way."""
        while not self._is_at_rest():  # noqa: ASYNC110
            await asyncio.sleep(0.25)

    def _is_at_rest(self) -> bool:
        answered = all(task.done() or not process.alive for process, task in self.calls)
        return answered and self.cloud.tasks.is_idle and not self.cloud.network.on_their_way

    async def _close_services(self) -> None:
        closing = [
            self.loop.spawn(service.process, service.writer.close()) for service in self.services
        ]
        await asyncio.gather(*closing)


__all__ = ["EndlessError", "Violation", "World"]
