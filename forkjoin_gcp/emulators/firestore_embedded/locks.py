"""Waiting for transactions: of a write for those who hold what it changes, and of a transaction's
first read for a write that waits already, so that a stream of readers cannot starve it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Collection

from .documents import Scope
from .refusals import contention
from .state import DatabaseState, FirestoreState
from .transactions import Transaction, deadlocked

LOCK_SECONDS = 2.0
"""How long a write waits for a transaction that has read what it changes, as Google's emulator."""


class Locks:
    """Belongs to one event loop."""

    def __init__(self, state: FirestoreState, seconds: float = LOCK_SECONDS) -> None:
        self._state = state
        self._seconds = seconds
        self._released: asyncio.Event | None = None

    def released(self) -> None:
        """To be told when a transaction was closed, or a write waits no more."""
        if self._released is not None:
            self._released.set()
            self._released = None

    async def _next_release(self, seconds: float) -> None:
        if self._released is None:
            self._released = asyncio.Event()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._released.wait(), seconds)

    async def wait_for_holders(
        self, database: DatabaseState, paths: Collection[str], own: Transaction | None
    ) -> None:
        """Returns when nobody else holds any of `paths`. Raises Refusal (ABORTED)."""
        transactions = database.transactions
        if not transactions.holders(paths, own, self._state.seconds()):
            return
        want = transactions.want(paths)
        try:
            await self._wait_for_holders(database, paths, own)
        finally:
            transactions.wanted.remove(want)
            self.released()

    async def _wait_for_holders(
        self, database: DatabaseState, paths: Collection[str], own: Transaction | None
    ) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._seconds
        while True:
            held = database.transactions.holders(paths, own, self._state.seconds())
            if not held:
                return
            holders = set().union(*held.values())
            names = [database.documents.prefix + path for path in held]
            if loop.time() >= deadline or (own is not None and deadlocked(own, holders)):
                raise contention(names)
            if own is not None:
                own.waits_for = holders
            await self._next_release(deadline - loop.time())
            if own is not None:
                own.waits_for = set()
                if not database.transactions.is_open(own):
                    raise contention(names)

    async def wait_for_turn(
        self,
        database: DatabaseState,
        own: Transaction | None,
        paths: Collection[str],
        scope: Scope | None,
    ) -> None:
        """Returns when no write waits for what a transaction is about to read first.

        One that holds something already does not wait: the write may be waiting for it. Raises
        Refusal if the transaction has ended meanwhile.
        """
        if own is None or own.read_only or own.paths or own.scopes:
            return
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._seconds
        while database.transactions.is_wanted(paths, scope) and loop.time() < deadline:
            await self._next_release(deadline - loop.time())
            database.transactions.find(own.id, self._state.seconds())
