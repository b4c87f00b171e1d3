"""Two queues in one function."""

from __future__ import annotations

import aiohttp
from pydantic import BaseModel

from forkjoin_gcp import ForkJoinQueue, Item


class Address(BaseModel):
    url: str


feeds = ForkJoinQueue("feeds", payload=Address)
pages = ForkJoinQueue("pages", payload=Address)


@feeds.handler
@pages.handler
async def fetch(item: Item[Address]) -> None:
    async with aiohttp.request("GET", item.payload.url) as response:
        print(item.id, response.status)
