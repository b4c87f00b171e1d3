"""Closed and open loops of callers, and what a round of them came to."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Sequence

from benchmarks.figures import Sample, percentile
from benchmarks.setting import Work


class Stopwatch:
    """Wall time, and CPU time of this process, from ``start`` to ``sample``."""

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        self._cpu = time.process_time()
        self._wall = time.perf_counter()

    def elapsed(self) -> float:
        """Seconds of wall time so far."""
        return time.perf_counter() - self._wall

    def sample(self, latencies: Sequence[float], items: int, calls: dict[str, int]) -> Sample:
        """``latencies`` in seconds, one a call."""
        seconds = self.elapsed()
        cpu = time.process_time() - self._cpu
        p50, p99 = percentile(latencies, 0.5) * 1e3, percentile(latencies, 0.99) * 1e3
        return Sample(items, seconds, cpu, p50, p99, calls)


def run_threads(
    enqueue: Callable[[Work], object],
    items: Sequence[Work],
    threads: int,
    seconds: float,
    watch: Stopwatch,
) -> list[float]:
    """``threads`` callers, each with its next item as soon as the last is in; their latencies.

    The watch starts when all callers do.
    """
    start = threading.Barrier(threads + 1)
    stop = threading.Event()
    taken: list[list[float]] = [[] for _ in range(threads)]
    errors: list[Exception] = []

    def caller(number: int) -> None:
        latencies, at = taken[number], number * 7919
        start.wait()
        try:
            while not stop.is_set():
                began = time.perf_counter()
                enqueue(items[at % len(items)])
                latencies.append(time.perf_counter() - began)
                at += 1
        except Exception as error:
            errors.append(error)

    running = [threading.Thread(target=caller, args=(n,), daemon=True) for n in range(threads)]
    for thread in running:
        thread.start()
    watch.start()
    start.wait()
    stop.wait(seconds)
    stop.set()
    for thread in running:
        thread.join()
    if errors:
        raise errors[0]
    return [latency for latencies in taken for latency in latencies]


async def run_tasks(
    aenqueue: Callable[[Work], Awaitable[object]],
    items: Sequence[Work],
    callers: int,
    seconds: float,
) -> list[float]:
    """As ``run_threads``, with coroutines of one event loop."""
    until = time.perf_counter() + seconds
    latencies: list[float] = []

    async def caller(at: int) -> None:
        while (began := time.perf_counter()) < until:
            await aenqueue(items[at % len(items)])
            latencies.append(time.perf_counter() - began)
            at += 1

    await asyncio.gather(*(caller(number * 7919) for number in range(callers)))
    return latencies


async def run_paced(
    aenqueue: Callable[[Work], Awaitable[object]],
    items: Sequence[Work],
    per_second: float,
    seconds: float,
) -> list[float]:
    """One item at a time at a steady rate, whether or not earlier ones are in yet."""
    latencies: list[float] = []

    async def caller(work: Work) -> None:
        began = time.perf_counter()
        await aenqueue(work)
        latencies.append(time.perf_counter() - began)

    began = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for number in range(int(per_second * seconds)):
            wait = began + number / per_second - time.perf_counter()
            if wait > 0:
                await asyncio.sleep(wait)
            group.create_task(caller(items[number % len(items)]))
    return latencies


def run_alone(
    enqueue: Callable[[Work], object], items: Sequence[Work], count: int, pause: float
) -> list[float]:
    """One caller, one item at a time, idle for ``pause`` seconds between them."""
    latencies = []
    for number in range(count):
        time.sleep(pause)
        began = time.perf_counter()
        enqueue(items[number % len(items)])
        latencies.append(time.perf_counter() - began)
    return latencies
