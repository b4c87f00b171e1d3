"""The queue of events to deliver, and what delivers them.

Imported by the service that enqueues (service.py) and, beside functions/main.py, by the function
that joins: FORKJOIN_QUEUE=webhooks:webhooks.
"""

from __future__ import annotations

import asyncio
from functools import cache
from typing import Any

import aiohttp
from pydantic import AnyHttpUrl, BaseModel

from forkjoin_gcp import ForkJoinQueue, Item, Reject, Retry

DELIVERY_SECONDS = 10.0


class Webhook(BaseModel):
    """An event, and who asked to be told of it."""

    url: AnyHttpUrl
    event: dict[str, Any]


webhooks = ForkJoinQueue("webhooks", payload=Webhook, max_attempts=8, retry_min_backoff=5)


# An item is nearly all waiting, so a request waits for all of its hundred at once.
@webhooks.handler(concurrency=100)
async def deliver(item: Item[Webhook]) -> None:
    """Post one event. Delivery is at least once: the receiver knows a second one by its key."""
    headers = {"Idempotency-Key": item.id}
    try:
        async with _session().post(
            str(item.payload.url), json=item.payload.event, headers=headers
        ) as response:
            status = response.status
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise Retry(f"{type(error).__name__}: {error}".removesuffix(": ")) from error
    if status == 429 or status >= 500:
        raise Retry(f"HTTP {status}")
    if status >= 400:
        raise Reject(f"HTTP {status}")


@cache
def _session() -> aiohttp.ClientSession:
    """One for the process, on the event loop on which all handlers run."""
    session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=DELIVERY_SECONDS))
    _closing.add(asyncio.create_task(_close_at_end(session)))
    return session


_closing: set[asyncio.Task[None]] = set()


async def _close_at_end(session: aiohttp.ClientSession) -> None:
    """A queue that is closed, as at the end of its process, cancels what runs on its loop."""
    try:
        await asyncio.Event().wait()
    finally:
        await session.close()
