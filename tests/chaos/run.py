"""One run: everything up, chaos while items flow, then peace, and the ledgers compared."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import redis

from forkjoin_gcp import ForkJoinQueue, Services
from forkjoin_gcp.emulators import LocalServices
from forkjoin_gcp.names import Lane
from tests.chaos.agenda import Agenda
from tests.chaos.clients import Clients
from tests.chaos.front import Front
from tests.chaos.ledgers import HandledLedger, Verdict, compare
from tests.chaos.pieces import NAME, SETTINGS, Piece, pieces
from tests.chaos.stack import LOST_SHARE, Stack

ROUND_SECONDS = 40.0
"""A round of the agenda, in a long run. A short one has one round, however fast."""

DRAIN_SECONDS = 420.0
"""For what is left when chaos is over: retries, leases of the dead, items that are poison, and
batches that only the sweeper finds, after SETTINGS' ``sweep_after``."""

SWEEP_SECONDS = 15.0
"""Between two sweeps, as Cloud Scheduler would call them."""

SHORT_SECONDS = 60.0
SHORT_SWEEP_AFTER = 15.0
"""A shorter run has no poison that a sweep might disturb, and nobody waits for it any longer."""

WATCH_SECONDS = 10.0
MOST_DEAD = 1_000_000


@dataclass
class Outcome:
    """What a run came to. ``left`` items are still in the store, ``endless`` keys have no TTL."""

    verdict: Verdict
    reasons: Counter[str]
    left: int
    endless: int
    drain_seconds: float
    sweeps: int
    swept: int
    seconds: float = 1.0
    refused: Counter[str] = field(default_factory=Counter)
    done: Counter[str] = field(default_factory=Counter)
    connections: Counter[str] = field(default_factory=Counter)

    @property
    def good(self) -> bool:
        return self.verdict.good and not self.left and not self.endless

    def lines(self) -> list[str]:
        """For a person to read."""
        v = self.verdict
        return [
            f"accepted {v.accepted:,} items in {self.seconds:.0f} s: "
            f"{v.accepted / self.seconds:,.0f} a second; refused {_shown(self.refused)}",
            f"{v.accepted:,} accepted = {v.handled:,} handled + {v.dead:,} dead-lettered "
            f"({_shown(self.reasons)}) + {len(v.lost):,} LOST",
            f"{v.duplicates:,} handled again, {v.both:,} handled and dead-lettered too, "
            f"{v.unacknowledged:,} handled without the client hearing of it",
            f"after {self.drain_seconds:.0f} s of peace, {self.sweeps} sweeps (which scheduled "
            f"{self.swept} batches): {self.left:,} items left in the store, {self.endless} keys "
            "without TTL",
            f"done: {_shown(self.done)}; connections: {_shown(self.connections)}",
            *(f"lost: {one}" for one in v.lost[:20]),
            *(f"mixed up: {one}" for one in v.mixed_up[:20]),
        ]


def _shown(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in sorted(counts.items())) or "none"


async def chaos(
    local: LocalServices,
    directory: Path,
    data: Path,
    *,
    seconds: float,
    rate: float,
    seed: int,
    tell: Callable[[str], None],
) -> Outcome:
    """All but the local services' first processes is started here, and is gone at the end."""
    stack = Stack(local, directory, data, seed)
    front = Front(stack.join_addresses, LOST_SHARE, seed)
    clients = Clients(stack.enqueuers_addresses, rate, directory / "accepted")
    ledger = HandledLedger(stack.handled)
    async with contextlib.AsyncExitStack() as exits:
        exits.callback(clients.close)
        exits.callback(stack.end)
        await front.start(stack.front_port)
        exits.push_async_callback(front.stop)
        await asyncio.to_thread(stack.start)
        tell(f"{len(stack.members)} processes are up; {rate:g} items a second for {seconds:g} s")
        agenda = Agenda(stack.members, _others(stack), seed, tell)
        began = time.monotonic()
        watching = asyncio.create_task(_watch(clients, ledger, tell))
        async with asyncio.TaskGroup() as group:
            group.create_task(clients.run(seconds))
            rounds = max(1, round(seconds / ROUND_SECONDS))
            group.create_task(agenda.run(seconds * 0.9, rounds))
        flowed = time.monotonic() - began
        watching.cancel()
        front.lost_share = 0.0
        await asyncio.to_thread(stack.set_faults, {})
        for member in stack.members:
            assert not member.died, f"{member.name} ended by itself: see {directory}"
        tell("peace")
        sweep_after = None if seconds >= SHORT_SECONDS else SHORT_SWEEP_AFTER
        outcome = await Drain(stack, clients.accepted, ledger, tell, sweep_after).run()
        outcome.seconds, outcome.refused = flowed, clients.refused
        outcome.done, outcome.connections = agenda.done, front.counts
        return outcome


async def _watch(clients: Clients, ledger: HandledLedger, tell: Callable[[str], None]) -> None:
    while True:
        await asyncio.sleep(WATCH_SECONDS)
        ledger.read()
        tell(f"{len(clients.accepted):,} accepted, {len(ledger.times):,} handled")


def _others(stack: Stack) -> dict[str, Callable[[], Awaitable[None]]]:
    """What is done to Valkey's data, if it is there to have it done."""

    def on_valkey(act: Callable[[redis.Redis], object]) -> Callable[[], Awaitable[None]]:
        def call() -> None:
            with contextlib.suppress(redis.RedisError), stack.valkey() as client:
                act(client)

        return lambda: asyncio.to_thread(call)

    lane = Lane(NAME, pieces.config.version).key
    return {
        "FLUSHALL": on_valkey(lambda client: client.flushall()),
        "SCRIPT FLUSH": on_valkey(lambda client: client.script_flush()),
        "lane forgotten": on_valkey(lambda client: client.delete(lane)),
    }


class Drain:
    """What comes after chaos: until all that was accepted has come to an end, or time is up."""

    def __init__(
        self,
        stack: Stack,
        accepted: Mapping[str, int],
        ledger: HandledLedger,
        tell: Callable[[str], None],
        sweep_after: float | None,
    ) -> None:
        self._stack = stack
        self._accepted = accepted
        self._ledger = ledger
        self._tell = tell
        self._dead: dict[str, str] = {}
        self._sweeps = self._swept = 0
        services = Services.from_env(stack.variables)
        self._queue = ForkJoinQueue(NAME, payload=Piece, services=services, **SETTINGS)
        if sweep_after is not None:  # less than a user may set
            changed = self._queue.config.model_copy(update={"sweep_after": sweep_after})
            self._queue.config = changed

    async def run(self) -> Outcome:
        began = swept = time.monotonic()
        try:
            while (left := await self._left()) != (0, 0):
                now = time.monotonic()
                if now > began + DRAIN_SECONDS:
                    break
                if now > swept + SWEEP_SECONDS:
                    await self._sweep()
                    swept = now
                await asyncio.sleep(0.5)
            with self._stack.valkey() as client:
                keys = list(client.scan_iter(match="fj:*", count=1_000))
                endless = sum(client.pttl(key) == -1 for key in keys)
        finally:
            await asyncio.to_thread(self._queue.close)
        return Outcome(
            compare(self._accepted, self._ledger.times, self._ledger.numbers, self._dead),
            reasons=Counter(self._dead[one] for one in self._accepted.keys() & self._dead.keys()),
            left=left[1],
            endless=endless,
            drain_seconds=time.monotonic() - began,
            sweeps=self._sweeps,
            swept=self._swept,
        )

    async def _left(self) -> tuple[int, int]:
        """How many accepted items have no end, and how many of any kind are in the store."""
        self._ledger.read()
        letters = await asyncio.to_thread(self._queue.dead_letters, MOST_DEAD)
        self._dead = {letter.id: letter.reason for letter in letters}
        endless = len(self._accepted.keys() - self._ledger.times.keys() - self._dead.keys())
        seen = await asyncio.to_thread(self._queue.sweep, dry_run=True)
        return endless, seen.items

    async def _sweep(self) -> None:
        report = await asyncio.to_thread(self._queue.sweep)
        self._sweeps += 1
        self._swept += report.scheduled
        self._tell(f"sweep: {report.items:,} items left, {report.scheduled} batches scheduled")
