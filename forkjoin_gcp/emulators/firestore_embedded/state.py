"""Everything the service holds: its databases, their open transactions, and the one clock.

Pure: no I/O. Who wants what was changed kept, takes it from `changes` after each call.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from .documents import Database, Scope, Stored
from .paths import check_database
from .refusals import Refusal, invalid
from .transactions import Past, Transactions, View
from .writes import PlannedWrite, check_precondition, outcome

HISTORY_SECONDS = 3_600
"""How far back a read_time may lie."""
HISTORY_VERSIONS = 100_000
HISTORY_BYTES = 32 << 20


class Change(NamedTuple):
    """A document that is now `stored`, or gone where that is None."""

    database: str
    path: str
    stored: Stored | None


class Written(NamedTuple):
    """What a write came to: `stored` is None after a deletion."""

    stored: Stored | None
    results: Sequence[Any]


class _Version(NamedTuple):
    at: int
    path: str
    before: Stored | None


class DatabaseState:
    """One database with what happens in it."""

    def __init__(self, name: str, changes: list[Change]) -> None:
        self.documents = Database(name)
        self.transactions = Transactions(self.documents)
        self._changes = changes
        self._history: deque[_Version] = deque()
        self._history_bytes = 0
        self._forgotten = 0
        """Of this time (µs) and all before, versions are missing in the history."""

    def apply(self, writes: Sequence[PlannedWrite], now: int) -> list[Written]:
        """All writes, or none: then raises Refusal."""
        after: dict[str, Stored | None] = {}
        written = []
        for write in writes:
            path = write.path
            repeated = path in after
            present = after[path] if repeated else self.documents.get(path)
            # That of a repeat is the version from before the commit, which was checked.
            if not (repeated and write.version is not None):
                check_precondition(write, present, self.documents.prefix + path)
            stored, results = outcome(write, present, now)
            after[path] = stored
            written.append((write, results))
        for path, stored in after.items():
            present = self.documents.get(path)
            # Changed, and changed back by a later write of this commit.
            if stored is not None and present is not None and stored.is_same(present):
                after[path] = present
            else:
                self._replace(path, present, stored, now)
        # A document written twice is told of as what became of it.
        return [Written(after[write.path], results) for write, results in written]

    def _replace(self, path: str, present: Stored | None, stored: Stored | None, now: int) -> None:
        if stored is present:
            return
        self.transactions.replaced(path, present)
        self._remember(_Version(now, path, present))
        if stored is None:
            self.documents.remove(path)
        else:
            self.documents.put(stored)
        self._changes.append(Change(self.documents.name, path, stored))

    def _remember(self, version: _Version) -> None:
        history = self._history
        history.append(version)
        if version.before is not None:
            self._history_bytes += len(version.before.body)
        oldest = version.at - HISTORY_SECONDS * 1_000_000
        while (
            len(history) > HISTORY_VERSIONS
            or self._history_bytes > HISTORY_BYTES
            or history[0].at < oldest
        ):
            gone = history.popleft()
            self._forgotten = gone.at
            if gone.before is not None:
                self._history_bytes -= len(gone.before.body)

    def past(self, read_time: int, now: int) -> Past:
        """The database as it was at `read_time` (µs). Raises Refusal for one out of reach."""
        if read_time > now:
            raise invalid("The requested 'read_time' cannot be in the future.")
        if read_time < max(self._forgotten, now - HISTORY_SECONDS * 1_000_000):
            raise Refusal("FAILED_PRECONDITION", "The requested 'read_time' is too old.")
        past = Past(self.documents)
        for version in reversed(self._history):
            if version.at <= read_time:
                break
            past.before[version.path] = version.before
        return past

    def restore(self, stored: Stored) -> None:
        """Puts back what was kept from an earlier life."""
        self.documents.put(stored)
        self._forgotten = max(self._forgotten, stored.updated)

    def clear(self) -> None:
        """Removes every document and closes every transaction."""
        self.transactions.clear()
        everything = list(self.documents.scan(Scope("", "", deep=True)))
        for stored in everything:
            self.documents.remove(stored.path)
            self._changes.append(Change(self.documents.name, stored.path, None))
        self._history.clear()
        self._history_bytes = 0


def check_repeats(writes: Sequence[PlannedWrite]) -> None:
    """Raises Refusal for documents that a commit writes in a way that it may not."""
    before: dict[str, PlannedWrite] = {}
    for write in writes:
        if write.path in before:
            _check_repeat(before[write.path], write)
        before[write.path] = write


def _check_repeat(before: PlannedWrite, write: PlannedWrite) -> None:
    """A document written twice in a commit: Firestore takes only what can become one write."""
    if before.deletes:
        was = "delete"
        mends = write.exists is True or write.version is not None
        if not mends:
            return
        is_now = "delete" if write.deletes else "update"
    else:
        was = _mutation(before)
        if write.version is not None:
            if write.version != before.version:
                raise invalid("Cannot collapse mutations with different base versions.")
            return
        if write.exists is not False:
            return
        is_now = "delete" if write.deletes else "insert"
    raise invalid(f"Cannot {was} then {is_now} an entity in the same request.")


def _mutation(write: PlannedWrite) -> str:
    if write.version is not None or write.exists:
        return "update"
    return "upsert" if write.exists is None else "insert"


class FirestoreState:
    """All databases. `clock` gives seconds since the epoch."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.last = 0
        """The time that was given last, in µs."""
        self.databases: dict[str, DatabaseState] = {}
        self.changes: list[Change] = []

    def database(self, name: str) -> DatabaseState:
        """The one of this name, which need not have been made. Raises Refusal."""
        state = self.databases.get(name)
        if state is None:
            check_database(name)
            state = self.databases[name] = DatabaseState(name, self.changes)
        return state

    def tick(self) -> int:
        """The present in µs since the epoch; later than any that was given before."""
        self.last = max(self.last + 1, int(self._clock() * 1_000_000))
        return self.last

    def resume(self, last: int) -> None:
        """Times to come are later than `last`, in µs."""
        self.last = max(self.last, last)

    def seconds(self) -> float:
        """The clock."""
        return self._clock()


__all__ = ["Change", "DatabaseState", "FirestoreState", "View", "Written"]
