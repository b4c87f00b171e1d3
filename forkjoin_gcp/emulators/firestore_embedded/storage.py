"""What a restart finds: the documents in a SQLite database.

A background thread writes; while it does, the next changes gather and become one SQLite
transaction. WAL with synchronous=NORMAL: what has been committed survives the end of the process
by SIGKILL. It may not survive a power failure, which no test needs.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from .documents import Stored
from .state import Change, FirestoreState

_FILE = "firestore.sqlite3"
_SCHEMA = """
CREATE TABLE IF NOT EXISTS documents (
    database TEXT NOT NULL, path TEXT NOT NULL, body BLOB NOT NULL,
    created INTEGER NOT NULL, updated INTEGER NOT NULL,
    PRIMARY KEY (database, path)
);
CREATE TABLE IF NOT EXISTS clock (only INTEGER PRIMARY KEY CHECK (only = 0), last INTEGER NOT NULL);
"""
_Row = tuple[str, str, bytes, int, int]


class Storage:
    """Loads a state when made, and keeps its changes from then on.

    Belongs to one event loop. Raises OSError when the directory is in use or unreadable.
    """

    def __init__(self, directory: Path, state: FirestoreState) -> None:
        self._state = state
        self._failed: OSError | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="firestore-storage")
        self._waiting: list[Change] = []
        self._next: asyncio.Future[None] | None = None
        self._writing: asyncio.Future[None] | None = None
        self._writer: asyncio.Task[None] | None = None
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(
                directory / _FILE, isolation_level=None, check_same_thread=False, timeout=0.5
            )
            self._open()
            self._load()
        except sqlite3.Error as error:
            raise OSError(f"cannot keep documents in {directory}: {error}") from error

    def _open(self) -> None:
        execute = self._connection.execute
        # One process at a time: a second would not see what the first holds in memory.
        execute("PRAGMA locking_mode = EXCLUSIVE")
        execute("PRAGMA journal_mode = WAL")
        execute("PRAGMA synchronous = NORMAL")
        self._connection.executescript(_SCHEMA)
        execute("BEGIN IMMEDIATE")
        execute("COMMIT")

    def _load(self) -> None:
        state = self._state
        for (last,) in self._connection.execute("SELECT last FROM clock"):
            state.resume(last)
        rows = self._connection.execute(
            "SELECT database, path, body, created, updated FROM documents"
        )
        for database, path, body, created, updated in rows:
            state.resume(updated)
            state.database(database).restore(Stored(path, body, created, updated))

    async def keep(self, changes: list[Change]) -> None:
        """Takes `changes` over, and returns when all that was taken so far is on disk.

        Raises OSError when that fails, and from then on: what is in memory is no longer on disk.
        """
        if self._failed is not None:
            raise self._failed
        if changes:
            self._waiting += changes
            changes.clear()
            if self._next is None:
                self._next = asyncio.get_running_loop().create_future()
            if self._writer is None or self._writer.done():
                self._writer = asyncio.create_task(self._write_all())
        last = self._next or self._writing
        if last is not None:
            await asyncio.shield(last)

    async def _write_all(self) -> None:
        loop = asyncio.get_running_loop()
        while self._next is not None:
            self._writing, self._next = self._next, None
            batch, self._waiting = self._waiting, []
            try:
                await loop.run_in_executor(self._thread, self._write, batch, self._state.last)
            except sqlite3.Error as error:
                self._failed = OSError(f"the documents can no longer be kept: {error}")
                self._writing.set_exception(self._failed)
            else:
                self._writing.set_result(None)
            self._writing = None

    def _write(self, batch: Sequence[Change], latest: int) -> None:
        # The last change of a document is what counts.
        last = {(each.database, each.path): each.stored for each in batch}
        kept: list[_Row] = []
        gone: list[tuple[str, str]] = []
        for (database, path), stored in last.items():
            if stored is None:
                gone.append((database, path))
            else:
                kept.append((database, path, stored.body, stored.created, stored.updated))
        connection = self._connection
        with connection:
            connection.execute("BEGIN")
            connection.executemany("DELETE FROM documents WHERE database = ? AND path = ?", gone)
            connection.executemany("INSERT OR REPLACE INTO documents VALUES (?, ?, ?, ?, ?)", kept)
            connection.execute(
                "INSERT INTO clock VALUES (0, ?) "
                "ON CONFLICT DO UPDATE SET last = max(last, excluded.last)",
                (latest,),
            )

    async def close(self) -> None:
        """Returns when everything is on disk and the files are closed."""
        if self._writer is not None:
            await self._writer
        self._thread.shutdown()
        self._connection.close()
