"""A chunk's lease while it runs: taken, renewed, given back.

Without an answer from Memorystore a chunk runs all the same: that it should run beside another
delivery of itself is a nuisance, and settling is safe against it.
"""

from __future__ import annotations

import asyncio
import logging
import random
import uuid
from collections.abc import Coroutine
from typing import Any, TypeVar

from forkjoin_gcp.errors import ChunkBusy, IndexUnavailable
from forkjoin_gcp.names import Chunk
from forkjoin_gcp.ports import Busy, Counters, Lease, WorkIndex

logger = logging.getLogger(__name__)
T = TypeVar("T")

LEASE_SECONDS = 10.0
"""How long a lease lasts unless it is renewed: so long a chunk waits after its process died."""

RENEWALS = 3
"""How often a lease is renewed while it lasts."""

CALLS_AT_ONCE = 16
"""Each call in progress has a connection of its own: chunks that begin together share these."""

GIVE_BACK_TRIES = 2
"""One lost answer should not make the next generation wait, and count a run that ended as vanished.
Repeating is harmless: the token is not the holder any more."""


class Held:
    """A chunk's lease from its start to its end. Renews itself on the event loop it was made on.

    ``vanished`` and ``split`` are those of ports.Lease.
    """

    def __init__(self, leases: Leases, chunk: Chunk, token: str, granted: Lease | None) -> None:
        self._leases = leases
        self._chunk = chunk
        self._token = token
        self._is_held = True
        self._was_granted = granted is not None
        self.vanished = granted.vanished if granted else 0
        self.split = granted.split if granted else None
        self._renewing = asyncio.ensure_future(self._renew())

    async def count_start(self) -> bool:
        """Count the start of a suspect's handler; False where the lease was lost.

        Where nobody answers nothing is counted, and so nothing held against it.
        """
        try:
            return await self._leases.renew(self._chunk, self._token, starts=self.vanished + 1)
        except IndexUnavailable:
            return True

    async def give_back(self, *, vanished: int = 0) -> None:
        """End the lease; ``vanished`` is what the next one will say. No error is raised."""
        for _ in range(GIVE_BACK_TRIES if self._was_granted else 1):
            try:
                await self._unlease(vanished=vanished)
            except IndexUnavailable as error:
                logger.info("lease of %s not given back: %s", self._chunk.key, error)
            else:
                return
        self.drop()

    async def note_split(self, at: int) -> None:
        """End the lease, and say to all that come that the chunk was split. IndexUnavailable."""
        await self._unlease(split=at)

    def drop(self) -> None:
        """Let the lease run out: as when this process had died."""
        self._is_held = False
        self._renewing.cancel()

    async def _unlease(self, **left: int) -> None:
        self._renewing.cancel()
        if self._is_held:
            await self._leases.unlease(self._chunk, self._token, **left)
            self._is_held = False

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(self._leases.seconds / RENEWALS)
            try:
                if await self._leases.renew(self._chunk, self._token):
                    continue
            except IndexUnavailable:
                continue
            if self._was_granted:
                self._leases.counters["lease_lost"] += 1
            return


class Leases:
    """Takes leases of chunks that last ``seconds``; each call waits ``timeout`` for an answer."""

    def __init__(
        self, index: WorkIndex, counters: Counters, timeout: float, seconds: float
    ) -> None:
        self._index = index
        self._timeout = timeout
        self._calls = asyncio.Semaphore(CALLS_AT_ONCE)
        self.counters = counters
        self.seconds = seconds

    async def take(self, chunk: Chunk) -> Held:
        """A lease of ``chunk``. Raises ChunkBusy where it, or a suspect's lane, is another's."""
        token = uuid.uuid4().hex
        granted: Lease | Busy | None
        try:
            granted = await self._in_time(self._index.lease(chunk, token, self.seconds))
        except IndexUnavailable as error:
            logger.info("%s runs without a lease: %s", chunk.key, error)
            self.counters["lease_skipped"] += 1
            granted = None
        if isinstance(granted, Busy):
            self.counters["chunks_busy"] += 1
            # Suspects wait for each other, mostly for a moment: not all for the same one.
            share = random.random() if chunk.suspect else 1.0
            raise ChunkBusy(after=granted.seconds * share)
        return Held(self, chunk, token, granted)

    async def renew(self, chunk: Chunk, token: str, **noted: int) -> bool:
        """As WorkIndex.renew."""
        return await self._in_time(self._index.renew(chunk, token, self.seconds, **noted))

    async def unlease(self, chunk: Chunk, token: str, **left: int) -> None:
        """As WorkIndex.unlease."""
        await self._in_time(self._index.unlease(chunk, token, **left))

    async def _in_time(self, call: Coroutine[Any, Any, T]) -> T:
        try:
            async with asyncio.timeout(self._timeout):
                async with self._calls:
                    return await call
        except TimeoutError:
            raise IndexUnavailable(f"no answer from Memorystore in {self._timeout:g} s") from None
        finally:
            call.close()  # it may not have had its turn
