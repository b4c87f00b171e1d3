"""The queue, as the service that enqueues and the join function both import it."""

from __future__ import annotations

import aiohttp
from pydantic import BaseModel

from forkjoin_gcp import ForkJoinQueue, Item, Retry


class Feed(BaseModel):
    url: str


feeds = ForkJoinQueue("feeds", payload=Feed)


@feeds.handler(concurrency=100)
async def fetch(item: Item[Feed]) -> None:
    async with aiohttp.request("GET", item.payload.url) as response:
        if response.status >= 500:
            raise Retry(f"HTTP {response.status}")
        print(item.id, len(await response.read()))
