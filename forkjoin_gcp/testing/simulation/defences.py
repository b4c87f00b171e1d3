"""The protocol's defences, each of which can be taken away, to see that the simulation finds it.

Production code has no switch for this: scripts' texts, ports, requests and methods are changed
from outside, for one world.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from forkjoin_gcp.gcp.firestore import FirestoreStore
from forkjoin_gcp.items import Segment
from forkjoin_gcp.joining import worker
from forkjoin_gcp.joining.isolation import Presence
from forkjoin_gcp.joining.leases import Held
from forkjoin_gcp.names import Batch, Lane
from forkjoin_gcp.ports import Ports, Release, TaskRequest
from forkjoin_gcp.tasks import RootTask
from forkjoin_gcp.writing.holds import ClockHold

Patch = tuple[object, str, object]
"""An owner, the name of its attribute, and what is there instead."""


def _same(value: Any) -> Any:
    return value


@dataclass(frozen=True)
class Defence:
    """One defence, and how to take it away.

    ``faults`` are in every world that looks for it. ``sweeps`` says whether sweepers run.
    """

    name: str
    what: str
    patch_lua: Callable[[bytes], bytes] = _same
    patch_ports: Callable[[Ports], Ports] = _same
    patch_firestore: Callable[[Any], None] = _same
    patches: tuple[Patch, ...] = ()
    faults: tuple[str, ...] = ()
    sweeps: bool = True

    def kept(self) -> Defence:
        """The same worlds, with the defence in its place."""
        return Defence(self.name, self.what, faults=self.faults)


NONE = Defence("", "nothing is taken away")


def _replacing(text: str, instead: str) -> Callable[[bytes], bytes]:
    """Replace a part of whatever script has it."""

    def patch(script: bytes) -> bytes:
        return script.replace(text.encode(), instead.encode())

    return patch


class _Changed:
    """A port with some of its methods replaced."""

    def __init__(self, port: Any, **methods: Any) -> None:
        self._port = port
        self.__dict__.update(methods)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._port, name)


def _late_is_open(ports: Ports) -> Ports:
    index = ports.index

    async def release(lane: Lane, at: int, *, scheduled: bool) -> Release:
        await index.release(lane, at, scheduled=scheduled)
        return Release.OPEN

    async def both(lane: Lane, at: int, count: int, *, scheduled: bool) -> Any:
        _, reservation = await index.release_and_reserve(lane, at, count, scheduled=scheduled)
        return Release.OPEN, reservation

    changed: Any = _Changed(index, release=release, release_and_reserve=both)
    return replace(ports, index=changed)


def _accepted_before_durable(ports: Ports) -> Ports:
    store = ports.store
    running: list[asyncio.Task[Any]] = []

    async def create(batch: Batch, segments: Sequence[Segment]) -> list[Exception | None]:
        running.append(asyncio.ensure_future(_quietly(store.create(batch, segments))))
        return [None] * len(segments)

    changed: Any = _Changed(store, create=create)
    return replace(ports, store=changed)


async def _quietly(work: Any) -> None:
    try:
        await work
    except Exception:
        return


def _rename_tasks(ports: Ports) -> Ports:
    scheduler = ports.scheduler

    async def create(task: TaskRequest) -> bool:
        name = f"{task.task_id}_{random.getrandbits(64):016x}"  # the world has seeded it
        return await scheduler.create(replace(task, task_id=name))

    changed: Any = _Changed(scheduler, create=create)
    return replace(ports, scheduler=changed)


def _clock_roots_at_once(ports: Ports) -> Ports:
    scheduler = ports.scheduler

    async def create(task: TaskRequest) -> bool:
        body = json.loads(task.body)
        after = body.pop("after_ms", None)
        if after is not None and task.at is not None:
            changed = replace(task, body=json.dumps(body).encode(), at=task.at - after / 1000)
            return await scheduler.create(changed)
        return await scheduler.create(task)

    changed: Any = _Changed(scheduler, create=create)
    return replace(ports, scheduler=changed)


def _forget_precondition(kind: str) -> Callable[[Any], None]:
    """Of writes that are the whole of a ``settle``, or part of a ``move``, or ``create``."""

    def patch(request: Any) -> None:
        writes = getattr(request, "writes", ())
        creates = [write for write in writes if write.current_document.HasField("exists")]
        for write in writes:
            condition = write.current_document
            found = "create" if condition.HasField("exists") else "move" if creates else "settle"
            if found == kind:
                write.ClearField("current_document")

    return patch


async def _own_nonces(_: object, _batch: Batch, segments: Sequence[Segment]) -> dict[int, str]:
    return {segment.first: segment.nonce for segment in segments}


async def _never(*_: object) -> None:
    return


async def _at_once(*_: object) -> bool:
    return True


DEFENCES = {
    defence.name: defence
    for defence in (
        Defence(
            "fence",
            "the reader's fence forgets the index, so that later releases are late",
            patch_lua=_replacing(
                "'w:' .. index, 'n:' .. index, 's:' .. index, 't:' .. index, 'x:' .. index",
                "'none'",
            ),
        ),
        Defence(
            "late answer",
            "a writer that is late moves its segments",
            patch_ports=_late_is_open,
        ),
        Defence(
            "durable before release",
            "a segment is in the store before its hold is given back",
            patch_ports=_accepted_before_durable,
        ),
        Defence(
            "epoch",
            "state that another primary wrote is not believed",
            patch_lua=_replacing("redis.pcall('INFO', 'replication')", "nil"),
            faults=("memorystore fails over",),
        ),
        Defence(
            "floor",
            "state below what a process has seen is not believed",
            patch_lua=_replacing("local floor = tonumber(ARGV[2])", "local floor = 0"),
            faults=("failover unnoticed",),
        ),
        Defence(
            "clock seed",
            "a lane that was lost begins at the clock",
            patch_lua=_replacing("math.max(last + 1, now_us())", "last + 1"),
        ),
        Defence(
            "time to live",
            "every key ends",
            patch_lua=_replacing("redis.call('PEXPIRE', lane, ttl_ms)", ""),
        ),
        Defence(
            "deterministic names",
            "who creates a task again gives it the same name",
            patch_ports=_rename_tasks,
        ),
        Defence(
            "create precondition",
            "a segment is created only where none is",
            patch_firestore=_forget_precondition("create"),
            faults=("failover unnoticed",),
        ),
        Defence(
            "nonce",
            "a segment that is there already counts as written only if it is the writer's own",
            patches=((FirestoreStore, "_nonces", _own_nonces),),
            faults=("failover unnoticed",),
        ),
        Defence(
            "settle precondition",
            "a segment is settled only if it is as it was read",
            patch_firestore=_forget_precondition("settle"),
            faults=("dispatched twice", "memorystore evicts leases", "handlers fail"),
        ),
        Defence(
            "move precondition",
            "a segment is moved only if it is as it was read",
            patch_firestore=_forget_precondition("move"),
            faults=("memorystore flushed", "memorystore evicts", "memorystore loses calls"),
        ),
        Defence(
            "clock lane's end",
            "a write on the clock lane that is acknowledged too late is late",
            patches=((ClockHold, "wrote", lambda _: None),),
            faults=("memorystore away",),
        ),
        Defence(
            "clock lane's wait",
            "the root of a clock batch waits for writers and skew",
            patch_ports=_clock_roots_at_once,
            faults=("memorystore away",),
        ),
        Defence(
            "lease",
            "a chunk is run by one delivery at a time",
            patch_lua=_replacing("found[1] and found[1] ~= token and left_ms > 0", "false"),
            faults=("dispatched twice",),
        ),
        Defence(
            "renewal",
            "a lease lasts as long as the run",
            patches=((Held, "_renew", _never),),
            faults=("dispatched twice",),
        ),
        Defence(
            "crash isolation",
            "a chunk whose runs vanish is split, until the item that kills is alone",
            patches=((worker, "plan_cut", lambda *_: None),),
            faults=("handlers kill",),
        ),
        Defence(
            "process to itself",
            "a last suspect runs with nothing else in its process",
            patches=((Presence, "alone", _at_once),),
            faults=("handlers kill",),
        ),
        Defence(
            "sweeper",
            "what nobody works on is found",
            sweeps=False,
        ),
        Defence(
            "swept names",
            "a swept root's chunks have names that no earlier ones have taken",
            patches=((RootTask, "generation", 0),),
        ),
    )
}
