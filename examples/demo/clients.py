"""Concurrent clients that post lines to the service, one a request, as its users would."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import aiohttp

from .lines import Line

CLIENTS = 80
TRIES = 8
POST_SECONDS = 30.0


@dataclass
class Posted:
    """What came of posting so far. Keys are line numbers; times are Unix times in seconds."""

    ids: dict[int, str] = field(default_factory=dict)
    refused: dict[int, str] = field(default_factory=dict)
    asked_at: dict[int, float] = field(default_factory=dict)
    answer_seconds: list[float] = field(default_factory=list)
    repeats: int = 0


async def post_all(lines: Sequence[Line], url: str, posted: Posted) -> None:
    """Post every line, and note in ``posted`` how each went; raises nothing for a line's sake."""
    # Shorter than gunicorn's own 2 s: no request goes out on a connection just being closed.
    connector = aiohttp.TCPConnector(limit=CLIENTS, keepalive_timeout=1.0)
    timeout = aiohttp.ClientTimeout(total=POST_SECONDS)
    remaining = iter(lines)
    async with (
        aiohttp.ClientSession(connector=connector, timeout=timeout) as session,
        asyncio.TaskGroup() as group,
    ):
        for _ in range(min(CLIENTS, len(lines))):
            group.create_task(_client(session, url, remaining, posted))


async def _client(
    session: aiohttp.ClientSession, url: str, lines: Iterator[Line], posted: Posted
) -> None:
    for line in lines:
        await _post(session, url, line, posted)


async def _post(session: aiohttp.ClientSession, url: str, line: Line, posted: Posted) -> None:
    """Until it is taken or refused: a repeat may enqueue a line twice, which is seen to at the
    end by the line's number."""
    error = ""
    for attempt in range(TRIES):
        if attempt:
            posted.repeats += 1
            await asyncio.sleep(random.uniform(0.5, 1.0) * min(0.1 * 2**attempt, 3))
        asked_at = time.time()
        posted.asked_at.setdefault(line.number, asked_at)
        try:
            body = {"url": line.text, "line": line.number}
            async with session.post(url, json=body) as response:
                answer = await response.json()
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as failure:
            error = f"not accepted: {type(failure).__name__}: {failure}"
            continue
        if response.status == 202:
            posted.ids[line.number] = answer["id"]
            posted.answer_seconds.append(time.time() - asked_at)
            return
        error = f"not accepted: HTTP {response.status}: {answer.get('error', '')}"
        if response.status < 500:
            break
    posted.refused[line.number] = error
