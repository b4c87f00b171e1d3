"""Clients of the enqueuing services: they write down what was accepted, and nothing else."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import aiohttp

CLIENTS = 64
MOST_AT_ONCE = 40
ANSWER_SECONDS = 30.0
"""A client that waits longer gives up, and counts its items as refused."""


class Clients:
    """Hand in numbered items at ``rate`` a second, and catch up after outages.

    ``accepted`` is id to number; a line "id number" is in the ledger before a client goes on.
    ``refused`` counts items by what was answered in place of their ids.
    """

    def __init__(self, addresses: Sequence[str], rate: float, ledger: Path) -> None:
        self._addresses = addresses
        self._rate = rate
        self._ledger = ledger.open("w")
        self._next = 1
        self.accepted: dict[str, int] = {}
        self.refused: Counter[str] = Counter()

    async def run(self, seconds: float) -> None:
        """Until the time is over and each has its last answer."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        timeout = aiohttp.ClientTimeout(total=ANSWER_SECONDS)
        async with aiohttp.ClientSession(timeout=timeout) as session:

            async def client() -> None:
                while (passed := loop.time() - began) < seconds:
                    if self._next > passed * self._rate:
                        await asyncio.sleep(0.02)
                        continue
                    await self._hand_in(session, random.randint(1, MOST_AT_ONCE))

            await asyncio.gather(*(client() for _ in range(CLIENTS)))

    async def _hand_in(self, session: aiohttp.ClientSession, count: int) -> None:
        numbers = range(self._next, self._next + count)
        self._next += count
        body = [{"number": number, "text": "x" * random.randint(0, 300)} for number in numbers]
        url = f"http://{random.choice(self._addresses)}/"
        try:
            async with session.post(url, json=body) as response:
                answer = await response.json()
                if response.status != 202:
                    self._refuse(count, answer["error"])
                    return
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            self._refuse(count, type(error).__name__)
            await asyncio.sleep(0.1)  # its process is being started anew
            return
        pairs = list(zip(answer["ids"], numbers, strict=True))
        self._ledger.write("".join(f"{item_id} {number}\n" for item_id, number in pairs))
        self._ledger.flush()
        self.accepted.update(pairs)

    def _refuse(self, count: int, why: str) -> None:
        self.refused[why] += count

    def close(self) -> None:
        self._ledger.close()
