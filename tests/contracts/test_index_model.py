"""The lane scripts on a real Valkey beside a small model of them, driven by Hypothesis."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from forkjoin_gcp import QueueConfig, Services
from forkjoin_gcp.gcp.instance import open_client
from forkjoin_gcp.gcp.memorystore import LANE_TTL_MS, MemorystoreIndex
from forkjoin_gcp.names import Lane
from forkjoin_gcp.ports import Counters, Extent, Release, Reservation

T = TypeVar("T")
BATCH_SIZE = 10
MAX_BATCH_ITEMS = 40
CLIENTS = 2


@dataclass
class Open:
    """An index that is open or sealed."""

    writers: int = 0
    length: int = 0
    sealed: bool = False
    scheduled: bool = False


@dataclass
class Model:
    """What a lane should do. ``current`` is None where the next index is only known to be new."""

    open: dict[int, Open] = field(default_factory=dict)
    current: int | None = None
    highest: int = 0

    def reserve(self, count: int, given: int) -> Reservation:
        """What the answer is, if the index in it is ``given``."""
        if self.current is None:
            assert given > self.highest, "an index was used again"
            self.current = self.highest = given
        state = self.open.setdefault(self.current, Open())
        state.writers, start, state.length = state.writers + 1, state.length, state.length + count
        full = state.length >= MAX_BATCH_ITEMS
        answer = Reservation(self.current, start, BATCH_SIZE, state.scheduled, full)
        self.current = None if full else self.current
        return answer

    def release(self, index: int, scheduled: bool) -> Release:
        if index not in self.open:
            return Release.LATE
        state = self.open[index]
        state.writers, state.scheduled = state.writers - 1, state.scheduled or scheduled
        return Release.SEALED if state.sealed else Release.OPEN

    def close(self, index: int) -> None:
        """Nobody reserves the index any more."""
        self.current = None if self.current == index else self.current

    def seal(self, index: int) -> int | None:
        if index not in self.open:
            return None
        self.close(index)
        self.open[index].sealed = True
        return self.open[index].writers

    def fence(self, index: int) -> Extent | None:
        self.close(index)
        state = self.open.pop(index, None)
        return Extent(state.length, BATCH_SIZE) if state else None

    def forget(self) -> None:
        self.open.clear()
        self.current = None


class LaneMachine(RuleBasedStateMachine):
    """Several clients of one lane, each with a floor of its own, and one model."""

    services: Services
    runner: asyncio.Runner
    holds = Bundle("holds")
    indexes = Bundle("indexes")
    clients = st.integers(0, CLIENTS - 1)
    counts = st.integers(1, 15)

    @initialize()
    def begin(self) -> None:
        self.lane = Lane("model", uuid.uuid4().hex[:12])
        self.model = Model()
        self.connections = [self.connect() for _ in range(CLIENTS)]

    def connect(self) -> MemorystoreIndex:
        config = QueueConfig("model", batch_size=BATCH_SIZE, max_batch_items=MAX_BATCH_ITEMS)
        client = self.wait(open_client(self.services, config.acquire_timeout))
        return MemorystoreIndex(client, config, Counters())

    def wait(self, call: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(call)

    async def keys(self) -> dict[bytes, int]:
        """All keys of the lane, and how long they live, in ms."""
        valkey = self.connections[0]._client
        match = f"fj:{{{self.lane.queue}/{self.lane.version}/*"
        return {key: await valkey.pttl(key) async for key in valkey.scan_iter(match, count=1000)}

    @rule(target=holds, client=clients, count=counts)
    def reserve(self, client: int, count: int) -> int:
        held = self.wait(self.connections[client].reserve(self.lane, count))
        assert held == self.model.reserve(count, held.index)
        return held.index

    @rule(index=consumes(holds), client=clients, scheduled=st.booleans())
    def release(self, index: int, client: int, scheduled: bool) -> None:
        port = self.connections[client]
        verdict = self.wait(port.release(self.lane, index, scheduled=scheduled))
        assert verdict is self.model.release(index, scheduled)

    @rule(
        target=holds, index=consumes(holds), client=clients, count=counts, scheduled=st.booleans()
    )
    def release_and_reserve(self, index: int, client: int, count: int, scheduled: bool) -> int:
        port = self.connections[client]
        verdict, held = self.wait(
            port.release_and_reserve(self.lane, index, count, scheduled=scheduled)
        )
        assert verdict is self.model.release(index, scheduled)
        assert held == self.model.reserve(count, held.index)
        return held.index

    @rule(target=indexes, index=holds, client=clients)
    def seal(self, index: int, client: int) -> int:
        assert self.wait(self.connections[client].seal(self.lane, index)) == self.model.seal(index)
        return index

    @rule(index=holds | indexes, client=clients)
    def fence(self, index: int, client: int) -> None:
        extent = self.wait(self.connections[client].fence(self.lane, index))
        assert extent == self.model.fence(index)

    @rule(index=consumes(holds))
    def die(self, index: int) -> None:
        """A writer that never releases: its hold stays."""

    @rule()
    def forget(self) -> None:
        self.wait(self.connections[0]._client.delete(self.lane.key))
        self.model.forget()

    @rule()
    def change_epoch(self) -> None:
        """Another node is primary now: what the state says is not to be believed."""

        async def change() -> None:
            valkey = self.connections[0]._client
            if await valkey.exists(self.lane.key):
                await valkey.hset(self.lane.key, "epoch", uuid.uuid4().hex + "0" * 8)

        self.wait(change())
        self.model.forget()

    @rule(client=clients)
    def restart(self, client: int) -> None:
        """A process that has seen nothing yet takes the place of another.

        It has no floor: a lost lane is then kept ahead by Valkey's clock alone.
        """
        self.wait(self.connections[client].close())
        self.connections[client] = self.connect()

    @invariant()
    def every_key_has_an_end(self) -> None:
        if hasattr(self, "connections"):
            assert all(0 < ttl <= LANE_TTL_MS for ttl in self.wait(self.keys()).values())

    def teardown(self) -> None:
        for port in getattr(self, "connections", []):
            self.wait(port.close())


@pytest.mark.timeout(120)
def test_lane_scripts_do_what_the_model_does(services: Services) -> None:
    with asyncio.Runner() as runner:
        machine = type("Machine", (LaneMachine,), {"services": services, "runner": runner})
        run_state_machine_as_test(
            machine, settings=settings(max_examples=30, stateful_step_count=30)
        )
