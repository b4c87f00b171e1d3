"""Keeps the emulator's state in SQLite, so that it outlives the process, even a killed one.

Changes that come in one turn of the event loop are committed in one transaction at the end of
that turn (group commit), on the loop's own thread: a second thread would hand the interpreter's
lock to and fro for each row. The write-ahead log is not forced to the device: what is committed
survives the end of the process, however sudden, but the last of it not a loss of power.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .journal import Journal
from .operations import Operations
from .pacing import RetryPolicy
from .queue_messages import QueueMessage, queue_message, settings_from
from .queues import Attempt, Outcome, Queue, Task
from .refusals import Refusal
from .state import CloudTasksState
from .targets import Authorization, HttpRequest

logger = logging.getLogger(__name__)

FILE_NAME = "cloud-tasks.sqlite3"
_VERSION = 1
_SCHEMA = """
CREATE TABLE secrets (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE queues (name TEXT PRIMARY KEY, message BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE deleted_queues (name TEXT PRIMARY KEY, taken_until REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE tasks (
    queue TEXT, id TEXT, create_time REAL NOT NULL,
    request TEXT NOT NULL, body BLOB NOT NULL, progress TEXT NOT NULL,
    PRIMARY KEY (queue, id)
) WITHOUT ROWID;
CREATE TABLE tombstones (
    queue TEXT, id TEXT, buried_at REAL NOT NULL, PRIMARY KEY (queue, id)
) WITHOUT ROWID;
CREATE TABLE operations (
    number INTEGER PRIMARY KEY, name TEXT UNIQUE NOT NULL, message BLOB NOT NULL
);
"""


class SqliteJournal(Journal):
    """The state in the file FILE_NAME of a directory, which is made if it is missing.

    One process at a time: the constructor raises OSError when another has the file open, when it
    cannot be written, and when it is not this version's. To be used on one event loop.
    """

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._path = directory / FILE_NAME
        self._changes: list[tuple[str, tuple[Any, ...]]] = []
        self._waiting: list[asyncio.Future[None]] = []
        self._failure: Refusal | None = None
        self._path.touch(mode=0o600)  # it holds the signing key
        self._database = sqlite3.connect(self._path, isolation_level=None, timeout=1.0)
        try:
            self._prepare()
        except (sqlite3.Error, OSError) as error:
            self._database.close()
            raise OSError(f"cannot use {self._path}: {error}") from error

    def _prepare(self) -> None:
        for setting in ("locking_mode = EXCLUSIVE", "journal_mode = WAL", "synchronous = NORMAL"):
            self._database.execute(f"PRAGMA {setting}")
        self._database.execute("BEGIN IMMEDIATE")
        (version,) = self._database.execute("PRAGMA user_version").fetchone()
        if version == 0:
            for statement in filter(str.strip, _SCHEMA.split(";")):
                self._database.execute(statement)
            self._database.execute(f"PRAGMA user_version = {_VERSION}")
        elif version != _VERSION:
            raise OSError(f"it has version {version} of the data, not {_VERSION}")
        self._database.execute("COMMIT")

    async def settled(self) -> None:
        """Returns when every change up to now is committed. Raises Refusal INTERNAL when the
        data can no longer be written, for good."""
        if self._failure is not None:
            raise self._failure
        if self._changes:
            # One for each: a caller that is cancelled cancels what it waits for.
            waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(waiting)
            await waiting

    def close(self) -> None:
        """Commits what is left and lets go of the file. Idempotent."""
        self._commit()
        self._database.close()

    def secret(self, name: str) -> bytes | None:
        """What was kept under the name; None if nothing was."""
        query = "SELECT value FROM secrets WHERE name = ?"
        row = self._database.execute(query, (name,)).fetchone()
        return None if row is None else bytes(row[0])

    def keep_secret(self, name: str, value: bytes) -> None:
        """Keeps it, at once."""
        self._database.execute("INSERT OR REPLACE INTO secrets VALUES (?, ?)", (name, value))

    def restore(self, state: CloudTasksState, operations: Operations) -> None:
        """Puts everything that was kept back into an empty state."""
        for name, taken_until in self._database.execute("SELECT * FROM deleted_queues"):
            state.restore_deleted(name, taken_until)
        for name, content in self._database.execute("SELECT * FROM queues"):
            message = QueueMessage.FromString(content)
            queue = state.restore_queue(name, settings_from(message))
            queue.paused = message.state == message.PAUSED
            if message.HasField("purge_time"):
                queue.purge_time = message.purge_time.ToNanoseconds() / 1e9
        for queue_name, *rest in self._database.execute("SELECT * FROM tasks ORDER BY create_time"):
            state.queues[queue_name].restore(_task_from(queue_name, *rest))
        buried = "SELECT * FROM tombstones ORDER BY buried_at"
        for queue_name, task_id, buried_at in self._database.execute(buried):
            state.queues[queue_name].restore_tombstone(task_id, buried_at)
        ended = "SELECT name, message FROM operations ORDER BY number"
        for name, content in self._database.execute(ended):
            operations.restore(name, content)

    def queue_changed(self, queue: Queue) -> None:
        content = queue_message(queue).SerializeToString()
        self._write("INSERT OR REPLACE INTO queues VALUES (?, ?)", queue.name, content)
        self._write("DELETE FROM deleted_queues WHERE name = ?", queue.name)

    def queue_deleted(self, name: str, taken_until: float) -> None:
        self._write("DELETE FROM queues WHERE name = ?", name)
        self._write("DELETE FROM tasks WHERE queue = ?", name)
        self._write("DELETE FROM tombstones WHERE queue = ?", name)
        self._write("INSERT OR REPLACE INTO deleted_queues VALUES (?, ?)", name, taken_until)

    def task_added(self, task: Task) -> None:
        self._write(
            "INSERT INTO tasks VALUES (?, ?, ?, ?, ?, ?)",
            task.queue_name,
            task.task_id,
            task.create_time,
            _request_text(task),
            task.request.body,
            _progress_text(task),
        )

    def task_changed(self, task: Task) -> None:
        self._write(
            "UPDATE tasks SET progress = ? WHERE queue = ? AND id = ?",
            _progress_text(task),
            task.queue_name,
            task.task_id,
        )

    def task_buried(self, task: Task, buried_at: float) -> None:
        queue_name, task_id = task.queue_name, task.task_id
        self._write("DELETE FROM tasks WHERE queue = ? AND id = ?", queue_name, task_id)
        tombstone = "INSERT OR REPLACE INTO tombstones VALUES (?, ?, ?)"
        self._write(tombstone, queue_name, task_id, buried_at)

    def name_freed(self, queue_name: str, task_id: str) -> None:
        self._write("DELETE FROM tombstones WHERE queue = ? AND id = ?", queue_name, task_id)

    def operation_ended(self, name: str, operation: bytes) -> None:
        self._write("INSERT INTO operations (name, message) VALUES (?, ?)", name, operation)

    def operation_deleted(self, name: str) -> None:
        self._write("DELETE FROM operations WHERE name = ?", name)

    def _write(self, statement: str, *values: Any) -> None:
        if not self._changes:
            asyncio.get_running_loop().call_soon(self._commit)
        self._changes.append((statement, values))

    def _commit(self) -> None:
        changes, self._changes = self._changes, []
        waiting, self._waiting = self._waiting, []
        if changes and self._failure is None:
            try:
                self._database.execute("BEGIN")
                for statement, values in changes:
                    self._database.execute(statement, values)
                self._database.execute("COMMIT")
            except sqlite3.Error as error:
                logger.exception("cannot write %s", self._path)
                self._failure = Refusal(
                    "INTERNAL", f"The Cloud Tasks emulator cannot write {self._path}: {error}"
                )
        for each in waiting:
            if each.done():
                continue
            if self._failure is None:
                each.set_result(None)
            else:
                each.set_exception(self._failure)


def _request_text(task: Task) -> str:
    """What never changes about a task, but for its body."""
    request, retry = task.request, task.retry
    authorization = request.authorization
    return json.dumps(
        {
            "url": request.url,
            "method": request.method,
            "headers": request.headers,
            "authorization": authorization
            and (authorization.email, authorization.purpose, authorization.oauth),
            "dispatch_deadline": task.dispatch_deadline,
            "retry": retry
            and (
                retry.max_attempts,
                retry.max_retry_duration,
                retry.min_backoff,
                retry.max_backoff,
                retry.max_doublings,
            ),
        }
    )


_PROGRESS = (
    "schedule_time",
    "dispatch_count",
    "response_count",
    "execution_count",
    "failures",
    "previous_status",
    "first_dispatch",
)


def _progress_text(task: Task) -> str:
    """What every attempt changes about a task."""
    progress: dict[str, Any] = {name: getattr(task, name) for name in _PROGRESS}
    if (attempt := task.last_attempt) is not None:
        outcome = attempt.outcome
        progress["last_attempt"] = {
            "times": (attempt.schedule_time, attempt.dispatch_time, attempt.response_time),
            "outcome": outcome
            and (outcome.status, outcome.error, outcome.deadline_exceeded, outcome.retry_after),
        }
    return json.dumps(progress)


def _task_from(
    queue_name: str, task_id: str, create_time: float, request: str, body: bytes, progress: str
) -> Task:
    fixed: Mapping[str, Any] = json.loads(request)
    changing: dict[str, Any] = json.loads(progress)
    attempt = changing.pop("last_attempt", None)
    last_attempt = None
    if attempt is not None:
        times, outcome = attempt["times"], attempt["outcome"]
        last_attempt = Attempt(*times)
        last_attempt.outcome = None if outcome is None else Outcome(*outcome)
    authorization, retry = fixed["authorization"], fixed["retry"]
    return Task(
        name=f"{queue_name}/tasks/{task_id}",
        task_id=task_id,
        request=HttpRequest(
            url=fixed["url"],
            method=fixed["method"],
            headers=fixed["headers"],
            body=body,
            authorization=None if authorization is None else Authorization(*authorization),
        ),
        create_time=create_time,
        dispatch_deadline=fixed["dispatch_deadline"],
        retry=None if retry is None else RetryPolicy(*retry),
        last_attempt=last_attempt,
        **changing,
    )
