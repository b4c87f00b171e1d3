"""The simulated loop: crashes run nothing, stalls run later, the seed decides whose turn it is."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from random import Random
from typing import Any

import pytest

from forkjoin_gcp.testing.simulation.loop import (
    EndlessError,
    Process,
    SimulatedLoop,
    current_process,
)


def run(loop: SimulatedLoop, main: Coroutine[Any, Any, Any]) -> Any:
    return loop.run(main, max_steps=10_000, max_seconds=1_000)


def test_a_crash_runs_nothing_more_not_even_a_finally() -> None:
    loop, seen = SimulatedLoop(Random(1)), []
    process = Process("one")

    async def work() -> None:
        try:
            seen.append("began")
            await asyncio.sleep(1)
            seen.append("went on")
        finally:
            seen.append("tidied up")

    async def main() -> list[str]:
        loop.spawn(process, work())
        await asyncio.sleep(0.5)
        loop.crash(process)
        await asyncio.sleep(2)
        return list(seen)

    assert run(loop, main()) == ["began"]


def test_a_crash_can_be_at_any_step() -> None:
    for step in range(1, 6):
        loop, seen = SimulatedLoop(Random(1)), []
        process = Process("one")
        process.crash_at_step = step

        async def work(seen: list[int] = seen) -> None:
            for n in range(10):
                seen.append(n)
                await asyncio.sleep(0)

        async def main(loop: SimulatedLoop = loop, process: Process = process) -> None:
            loop.spawn(process, work())
            await asyncio.sleep(1)

        run(loop, main())
        assert seen == list(range(step - 1))


def test_a_stalled_process_goes_on_where_it_was() -> None:
    loop, seen = SimulatedLoop(Random(1)), []
    process = Process("one")

    async def work() -> None:
        for _ in range(3):
            await asyncio.sleep(1)
            seen.append(loop.time())

    async def main() -> None:
        task = loop.spawn(process, work())
        await asyncio.sleep(1.5)
        loop.stall(process)
        await asyncio.sleep(10)
        loop.go_on(process)
        await task

    run(loop, main())
    assert seen == [1.0, 11.5, 12.5]


def test_a_process_keeps_its_order_and_the_seed_decides_between_processes() -> None:
    def order(seed: int) -> list[tuple[str, int]]:
        loop, seen = SimulatedLoop(Random(seed)), []

        async def work(n: int) -> None:
            await asyncio.sleep(0)
            seen.append((current_process().name, n))

        async def main() -> None:
            processes = [Process("a"), Process("b")]
            await asyncio.gather(*(loop.spawn(p, work(n)) for n in range(5) for p in processes))

        run(loop, main())
        return seen

    orders = [order(seed) for seed in range(10)]
    assert orders == [order(seed) for seed in range(10)]
    assert len({tuple(each) for each in orders}) > 5
    for each in orders:
        for name in "ab":
            assert [n for who, n in each if who == name] == [0, 1, 2, 3, 4]


def test_what_a_task_raises_ends_the_world() -> None:
    loop = SimulatedLoop(Random(1))

    async def fail() -> None:
        raise RuntimeError("a mistake")

    async def main() -> None:
        loop.spawn(Process("one"), fail())
        await asyncio.sleep(1)

    with pytest.raises(RuntimeError, match="a mistake"):
        run(loop, main())


def test_a_world_that_never_rests_is_ended() -> None:
    async def spin(seconds: float = 0.0) -> None:
        for _ in range(100_000):
            await asyncio.sleep(seconds)

    async def wait() -> None:
        await spin(10.0)

    async def hang() -> None:
        await asyncio.get_running_loop().create_future()

    for main, why in ((spin, "10,000 steps"), (wait, "1,000 s"), (hang, "no timer is set")):
        with pytest.raises(EndlessError, match=why):
            run(SimulatedLoop(Random(1)), main())
