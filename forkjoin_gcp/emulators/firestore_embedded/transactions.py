"""Open transactions and what they hold: what a read-write one has read, nobody else changes.

Firestore's default, pessimistic concurrency. Read-only ones hold nothing: they see the database as
it was when they began. Pure: the clock's values are passed in.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from heapq import merge
from typing import Protocol

from .documents import Database, Scope, Stored
from .paths import path_order
from .refusals import Refusal, invalid, transaction_closed

IDLE_SECONDS = 60.0
"""Without a call, a transaction ends. (Google documents 60 s.)"""
TOTAL_SECONDS = 270.0


class View(Protocol):
    """Documents as they are, or as they were."""

    def get(self, path: str) -> Stored | None:
        """The document at a path."""

    def scan(self, scope: Scope, since: tuple[str, ...] = ()) -> Iterator[Stored]:
        """The documents of a scope at or after a place, in key order."""


class Past:
    """A database as it was before `before`: the versions that were replaced since, by path."""

    def __init__(self, present: Database) -> None:
        self._present = present
        self.before: dict[str, Stored | None] = {}

    def get(self, path: str) -> Stored | None:
        if path in self.before:
            return self.before[path]
        return self._present.get(path)

    def scan(self, scope: Scope, since: tuple[str, ...] = ()) -> Iterator[Stored]:
        before = self.before
        kept = (each for each in self._present.scan(scope, since) if each.path not in before)
        replaced = [
            stored
            for path, stored in before.items()
            if stored is not None
            and scope.holds(path.rpartition("/")[0])
            and path_order(path) >= since
        ]
        replaced.sort(key=lambda stored: path_order(stored.path))
        yield from merge(kept, replaced, key=lambda stored: path_order(stored.path))


class Transaction:
    """One that is open. `paths` and `scopes` are what it has read and so holds."""

    def __init__(self, number: bytes, began: float, past: Past | None, read_time: int) -> None:
        self.id = number
        self.began = began
        self.used = began
        self.past = past
        self.read_time = read_time
        self.paths: set[str] = set()
        self.scopes: set[Scope] = set()
        self.waits_for: set[Transaction] = set()

    @property
    def read_only(self) -> bool:
        return self.past is not None

    def holds(self, path: str) -> bool:
        """Whether nobody else may change the document at `path`."""
        if path in self.paths:
            return True
        collection = path.rpartition("/")[0]
        return any(scope.holds(collection) for scope in self.scopes)


class Transactions:
    """The transactions of one database. Raises Refusal for ids that are none."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._open: dict[bytes, Transaction] = {}
        # Tells an id of ours that is closed from what never was one.
        self._mark = os.urandom(6)
        self._count = 0
        self.wanted: list[frozenset[str]] = []
        """What writes wait for that others hold."""

    def begin(self, now: float, *, read_only: bool, read_time: int) -> Transaction:
        """`now` in seconds of any clock, `read_time` in µs since the epoch."""
        self._count += 1
        number = self._mark + self._count.to_bytes(8, "big")
        past = Past(self._database) if read_only else None
        transaction = self._open[number] = Transaction(number, now, past, read_time)
        return transaction

    def find(self, number: bytes, now: float) -> Transaction:
        """The open one of this id."""
        self._expire(now)
        transaction = self._open.get(number)
        if transaction is None:
            raise self._unknown(number)
        transaction.used = now
        return transaction

    def check_known(self, number: bytes) -> None:
        """Passes for one that is open or was."""
        if number not in self._open:
            refusal = self._unknown(number)
            if not self._was_ours(number):
                raise refusal

    def _was_ours(self, number: bytes) -> bool:
        head, tail = number[: len(self._mark)], number[len(self._mark) :]
        return head == self._mark and 0 < int.from_bytes(tail, "big") <= self._count

    def _unknown(self, number: bytes) -> Refusal:
        if self._was_ours(number):
            return transaction_closed()
        return invalid("Invalid transaction.")

    def close(self, number: bytes) -> None:
        """Lets go of all it holds. Idempotent."""
        self._open.pop(number, None)

    def clear(self) -> None:
        """Closes all."""
        self._open.clear()

    @property
    def any_open(self) -> bool:
        """Whether there is any."""
        return bool(self._open)

    def is_open(self, transaction: Transaction) -> bool:
        return transaction.id in self._open

    def holders(
        self, paths: Iterable[str], own: Transaction | None, now: float
    ) -> dict[str, set[Transaction]]:
        """Who else holds which of `paths`."""
        if not self._open:
            return {}
        self._expire(now)
        others = [each for each in self._open.values() if each is not own and not each.read_only]
        if not others:
            return {}
        held = {path: {each for each in others if each.holds(path)} for path in paths}
        return {path: holders for path, holders in held.items() if holders}

    def want(self, paths: Iterable[str]) -> frozenset[str]:
        """Notes that a write waits; to be taken out of `wanted` again."""
        want = frozenset(paths)
        self.wanted.append(want)
        return want

    def is_wanted(self, paths: Iterable[str], scope: Scope | None) -> bool:
        """Whether a write waits for any of `paths`, or for a document within `scope`."""
        if any(not want.isdisjoint(paths) for want in self.wanted):
            return True
        return scope is not None and any(
            scope.holds(path.rpartition("/")[0]) for want in self.wanted for path in want
        )

    def replaced(self, path: str, before: Stored | None) -> None:
        """Keeps a version that is about to be replaced for the readers of the past."""
        for transaction in self._open.values():
            if transaction.past is not None:
                transaction.past.before.setdefault(path, before)

    def _expire(self, now: float) -> None:
        gone = [
            number
            for number, each in self._open.items()
            if now - each.used > IDLE_SECONDS or now - each.began > TOTAL_SECONDS
        ]
        for number in gone:
            del self._open[number]


def deadlocked(own: Transaction, holders: Iterable[Transaction]) -> bool:
    """Whether one that `own` would wait for waits, in the end, for `own`."""
    seen: set[Transaction] = set()
    ahead = list(holders)
    while ahead:
        each = ahead.pop()
        if each is own:
            return True
        if each not in seen:
            seen.add(each)
            ahead.extend(each.waits_for)
    return False
