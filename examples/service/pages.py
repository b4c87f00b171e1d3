"""The queue of pages to fetch, and what fetches them.

Imported by the service that enqueues (app.py) and, beside functions/main.py, by the function that
joins: FORKJOIN_QUEUE=pages:pages.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from dataclasses import dataclass
from functools import cache

import aiohttp
from pydantic import AnyHttpUrl, BaseModel
from results import Result, record

from forkjoin_gcp import ForkJoinQueue, Item, Retry

FETCH_SECONDS = 20.0
"""How long one page may take, redirects and body included."""

MAX_BYTES = 50_000_000
"""A page that is larger is not read to its end: its result says so."""


class Page(BaseModel):
    """A page to fetch. ``line`` is the caller's own number for it; it comes back in the result."""

    url: AnyHttpUrl
    line: int = 0


pages = ForkJoinQueue("pages", payload=Page, max_attempts=3, retry_min_backoff=1)


@dataclass(frozen=True, slots=True)
class _Body:
    status: int
    size: int
    sha256: str


class _TooLarge(Exception):
    """The page is over MAX_BYTES."""


# An item is nearly all waiting, so a request waits for all of its hundred at once.
@pages.handler(concurrency=100)
async def fetch(item: Item[Page]) -> None:
    """Fetch a page and record what came of it.

    What may pass (no connection, a timeout, a 5xx answer) is raised, and so tried again later. On
    the last try it is recorded like any other end: a page that cannot be had is a result too.
    """
    started, clock = time.time(), time.perf_counter()
    last = item.attempt >= pages.config.max_attempts
    body: _Body | None = None
    error = ""
    try:
        body = await _download(str(item.payload.url))
    except (ValueError, _TooLarge, aiohttp.TooManyRedirects) as failure:  # no use trying again
        error = _reason(failure)
    except (aiohttp.ClientError, TimeoutError, OSError) as failure:
        if not last:
            raise Retry(_reason(failure)) from failure
        error = _reason(failure)
    if body is not None and body.status >= 400:
        error = f"HTTP {body.status}"
        if body.status >= 500 and not last:
            raise Retry(error)
    record(
        Result(
            id=item.id,
            line=item.payload.line,
            url=str(item.payload.url),
            status=body.status if body else None,
            bytes=body.size if body else None,
            sha256=body.sha256 if body else None,
            error=error or None,
            attempt=item.attempt,
            enqueued_at=item.enqueued_at.timestamp(),
            started_at=started,
            handled_at=time.time(),
            fetch_seconds=time.perf_counter() - clock,
        )
    )


async def _download(url: str) -> _Body:
    digest, size = hashlib.sha256(), 0
    async with _session().get(url) as response:
        async for piece in response.content.iter_chunked(65_536):
            digest.update(piece)
            size += len(piece)
            if size > MAX_BYTES:
                raise _TooLarge(f"over {MAX_BYTES:,} bytes")
        return _Body(response.status, size, digest.hexdigest())


@cache
def _session() -> aiohttp.ClientSession:
    """One for the process, so that connections are used again. All handlers of a queue run on one
    event loop, which is the one that calls this first."""
    session = aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=1_000),
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=FETCH_SECONDS),
    )
    _closing.add(asyncio.create_task(_close_at_end(session)))
    return session


_closing: set[asyncio.Task[None]] = set()


async def _close_at_end(session: aiohttp.ClientSession) -> None:
    """A queue that is closed, as at the end of its process, cancels what runs on its loop."""
    try:
        await asyncio.Event().wait()
    finally:
        await session.close()


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".removesuffix(": ")
