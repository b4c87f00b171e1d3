"""What stands before the join functions, as Cloud Run's front end does."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import Sequence

CONNECT_SECONDS = 2.0
PIECE = 65_536


class Front:
    """Passes connections on to one of ``addresses`` that takes them.

    Of a share of the connections it loses an answer: the work was done, and nobody hears of it.
    ``counts`` says how often that was, and how often nobody took a connection.
    """

    def __init__(self, addresses: Sequence[tuple[str, int]], lost_share: float, seed: int) -> None:
        self._addresses = list(addresses)
        self._random = random.Random(seed)
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.Task[None]] = set()
        self.lost_share = lost_share
        self.counts: Counter[str] = Counter()

    async def start(self, port: int) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", port)

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        for task in self._open:
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        with contextlib.ExitStack() as stack:
            stack.callback(self._open.discard, task)
            stack.callback(writer.close)
            with contextlib.suppress(OSError, asyncio.CancelledError):
                behind = await self._connect()
                if behind is None:
                    self.counts["nobody there"] += 1
                    return
                stack.callback(behind[1].close)
                await self._join((reader, writer), behind)

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        for address in self._random.sample(self._addresses, len(self._addresses)):
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(CONNECT_SECONDS):
                    return await asyncio.open_connection(*address)
        return None

    async def _join(
        self,
        before: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        behind: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    ) -> None:
        """Until one side ends the connection."""
        loses = self._random.random() < self.lost_share
        tasks = [
            asyncio.create_task(_pass_on(before[0], behind[1])),
            asyncio.create_task(_pass_on(behind[0], before[1], once_and_lose=loses)),
        ]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            self.counts["answers lost"] += loses
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def _pass_on(
    source: asyncio.StreamReader, target: asyncio.StreamWriter, *, once_and_lose: bool = False
) -> None:
    while data := await source.read(PIECE):
        if once_and_lose:
            return
        target.write(data)
        await target.drain()
