"""One run: post the lines, watch them being handled, count what it took."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp
from redis.asyncio import Redis

from .clients import Posted, post_all
from .figures import Counted, joined_counters
from .joins import Join
from .lines import Line
from .outcome import Handled, Tail
from .progress import RunProgress
from .stack import QUEUE, Stack

INTERVAL = 0.1
IDLE_SECONDS = 3.0
"""With no task left, and results missing, for this long, none will come any more."""

STALL_SECONDS = 120.0
"""Longer than the handler's tries and the waits between them."""


@dataclass(frozen=True)
class Run:
    """What a run left behind."""

    posted: Posted
    handled: Handled
    joins: list[Join]
    counted: Counted


async def run(stack: Stack, lines: Sequence[Line], progress: RunProgress) -> Run:
    """Bring ``lines`` through the queue. Raises LocalServiceError when a process dies."""
    posted, handled = Posted(), Handled()
    results, joins = Tail(stack.logs.results), Tail(stack.logs.joins)
    try:
        async with aiohttp.ClientSession() as session, asyncio.TaskGroup() as group:
            url = f"http://{stack.service}/urls"
            posting = group.create_task(post_all(lines, url, posted))
            try:
                await _watch(stack, session, posting, posted, handled, results, progress)
            except BaseException:
                posting.cancel()
                raise
        made = [Join(**record) for record in joins.read()]
        return Run(posted, handled, made, await _count(stack, made))
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None
    finally:
        results.close()
        joins.close()


async def _watch(
    stack: Stack,
    session: aiohttp.ClientSession,
    posting: asyncio.Task[None],
    posted: Posted,
    handled: Handled,
    results: Tail,
    progress: RunProgress,
) -> None:
    """Return when every accepted line is handled and its request answered, or nothing moves."""
    moved_at, last = time.monotonic(), (-1, -1, -1)
    while True:
        stack.check()
        tasks = await _task_queue(stack, session)
        handled.add(results.read())
        progress.update(
            len(posted.ids),
            len(posted.refused),
            len(handled.by_line),
            f"{tasks['creates']} tasks, {tasks['dispatches']} requests",
        )
        state = (len(posted.asked_at), len(handled.by_line), tasks["dispatches"])
        if state != last:
            moved_at, last = time.monotonic(), state
        still = time.monotonic() - moved_at
        idle = tasks["tasks"] == 0
        if posting.done() and idle and posted.ids.keys() <= handled.by_line.keys():
            return
        if posting.done() and (still > STALL_SECONDS or (idle and still > IDLE_SECONDS)):
            return
        await asyncio.sleep(INTERVAL)


async def _task_queue(stack: Stack, session: aiohttp.ClientSession) -> dict[str, Any]:
    try:
        stats = await _get(session, f"{stack.local.cloud_tasks_admin}/stats?recent=0")
    except (aiohttp.ClientError, TimeoutError):
        await asyncio.sleep(INTERVAL)
        stack.check()
        raise
    found: dict[str, Any] = next(
        queue for name, queue in stats["queues"].items() if name.endswith(f"/{QUEUE}-1")
    )
    return found


async def _count(stack: Stack, joins: Sequence[Join]) -> Counted:
    async with aiohttp.ClientSession() as session:
        return Counted(
            service=await _get(session, f"http://{stack.service}/stats"),
            join=joined_counters(joins),
            cloud_tasks=await _task_queue(stack, session),
            valkey=await _valkey_calls(stack.local.environment()["FORKJOIN_MEMORYSTORE"]),
            origin=await _get(session, f"http://{stack.origin}/stats"),
        )


async def _valkey_calls(url: str) -> dict[str, int]:
    async with Redis.from_url(url) as client:
        stats = await client.info("commandstats")
    return {name.removeprefix("cmdstat_"): row["calls"] for name, row in stats.items()}


async def _get(session: aiohttp.ClientSession, url: str) -> Any:
    async with session.get(url) as response:
        response.raise_for_status()
        return await response.json()
