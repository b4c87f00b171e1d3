"""The fork-join protocol as App Engine had it in 2010, call by call, with today's ordinary clients.

It is what the package is compared with, and nothing else: it loses items where the 2010 protocol
does. What was ported to what:

* memcache → Valkey through redis-py's sync client. A counter that starts at 2**16 is SET NX and
  INCR in one pipeline, because memcache did both in one call: one round trip. The reader closes the
  counter by taking 2**15 off.
* an entity with the hashed index as a property → one Firestore document per item, written and
  queried (index equals, in key order, from a cursor) with google-cloud-firestore's sync client. The
  cursor is the last document's id.
* a named task per item, of which all but one are refused as duplicates → google-cloud-tasks' sync
  client. Cloud Tasks does not tell a name in use from one used lately, so the 2010 conflict error
  is not raised; and a task's name may not follow a hash, so it is as it was.
* cursor and task name reach the handler in the task's body and its X-CloudTasks-TaskName header.
  Tasks carry no token and the endpoint checks none (App Engine saw to that): less work than the
  package's requests.

The settings are those a user of 2010 would write for the same batches; a reader that finds writers
looks again every ``sync_timeout``, 250 ms.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import redis
from google.api_core.exceptions import AlreadyExists
from google.auth.credentials import AnonymousCredentials
from google.cloud import firestore, tasks_v2
from google.cloud.firestore_v1.base_query import FieldFilter
from google.cloud.tasks_v2.services.cloud_tasks.transports import CloudTasksGrpcTransport

from benchmarks.setting import Setting, Work
from forkjoin_gcp.names import knuth_hash

FAKE_ZERO = 2**16
LOCK_OFFSET = 2**15


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds, but for the counts."""

    batch_period: float = 0.5
    batch_size: int = 100
    lock_timeout: float = 10.0
    sync_timeout: float = 0.25
    stall_timeout: float = 60.0
    acquire_timeout: float = 0.01
    acquire_attempts: int = 20


class Queue2010:
    """One queue of the 2010 protocol. Safe from many threads, as its clients are."""

    def __init__(self, name: str, setting: Setting, target: str, timing: Timing) -> None:
        self.name = f"fjq-{name}"
        self.timing = timing
        self._target = target
        # As many connections as callers: the client's own limit is 100, and it refuses the others.
        self._memory: Any = redis.Redis.from_url(
            setting.valkey_url, decode_responses=True, max_connections=1_000
        )
        # The client finds the emulator's address in the environment, as it does for its users.
        credentials: Any = AnonymousCredentials()  # type: ignore[no-untyped-call]
        self._database: Any = firestore.Client(project=setting.project, credentials=credentials)
        self._collection = self._database.collection(self.name)
        channel = grpc.insecure_channel(setting.cloud_tasks)
        self._tasks = tasks_v2.CloudTasksClient(transport=CloudTasksGrpcTransport(channel=channel))
        self._queue = self._tasks.queue_path(setting.project, setting.location, name)

    def enqueue(self, work: Work) -> None:
        """The three steps a user of 2010 wrote: index, entity, task."""
        index = self.next_index()
        self.put(index, work)
        self.add(index)

    def next_index(self) -> int:
        """Hold the current index for a writer and return its hash."""
        key = f"{self.name}-index"
        for _ in range(self.timing.acquire_attempts):
            current = self._memory.get(key)
            if current is None:
                self._memory.set(key, 1, nx=True)
                current = self._memory.get(key)
            index = knuth_hash(int(current))
            with self._memory.pipeline(transaction=False) as pipeline:
                pipeline.set(self._lock(index), FAKE_ZERO, nx=True).incr(self._lock(index))
                writers = pipeline.execute()[1]
            if writers >= FAKE_ZERO:
                return index
            self._memory.decr(self._lock(index))
            time.sleep(self.timing.acquire_timeout)
        self._memory.incr(key)
        raise RuntimeError("no index that is open to writers")

    def put(self, index: int, work: Work) -> None:
        """Write the item as a document of its own."""
        self._collection.document().set({**work, "work_index": index})

    def put_many(self, index: int, items: Sequence[Work]) -> None:
        """Lay out a large batch for a reader. No call of the protocol, and never measured."""
        for begin in range(0, len(items), 500):
            group = self._database.batch()
            for work in items[begin : begin + 500]:
                group.set(self._collection.document(), {**work, "work_index": index})
            group.commit()

    def add(self, index: int) -> None:
        """See that the index has its task, and give the hold back."""
        try:
            self.schedule(index)
        finally:
            self.release(index)

    def schedule(self, index: int) -> None:
        now = time.time()
        gap = int(now / self.timing.stall_timeout)
        at = datetime.fromtimestamp(now, UTC) + timedelta(seconds=self.timing.batch_period)
        self._create_task(f"{self.name}-v1-{gap}-{index}-0", b"", at)

    def release(self, index: int) -> None:
        self._memory.decr(self._lock(index))

    def is_closed(self, index: int) -> bool:
        """Whether a reader has closed the index to writers."""
        writers = self._memory.get(self._lock(index))
        return writers is not None and int(writers) < FAKE_ZERO

    def pop(self, task_name: str, cursor: str) -> list[dict[str, Any]]:
        """The items of one request; the task of the next request is created if there may be one."""
        head, index_text, generation = task_name.rsplit("-", 2)
        index = int(index_text)
        if not cursor:
            self._close(index)
        query = (
            self._collection.where(filter=FieldFilter("work_index", "==", index))
            .order_by("__name__")
            .limit(self.timing.batch_size)
        )
        if cursor:
            query = query.start_after({"__name__": self._collection.document(cursor)})
        found = list(query.stream())
        if len(found) == self.timing.batch_size:
            following = f"{head}-{index}-{int(generation) + 1}"
            self._create_task(following, found[-1].id.encode(), None)
        return [document.to_dict() or {} for document in found]

    def _close(self, index: int) -> None:
        """Move on to the next index, and poll until the last writer of this one is done."""
        self._memory.incr(f"{self.name}-index")
        self._memory.decrby(self._lock(index), LOCK_OFFSET)
        for _ in range(int(self.timing.lock_timeout / self.timing.sync_timeout)):
            writers = self._memory.get(self._lock(index))
            if writers is None or int(writers) <= LOCK_OFFSET:
                return
            time.sleep(self.timing.sync_timeout)

    def _create_task(self, name: str, body: bytes, at: datetime | None) -> None:
        task = tasks_v2.Task(
            name=f"{self._queue}/tasks/{name}",
            schedule_time=at,
            http_request=tasks_v2.HttpRequest(url=self._target, body=body),
        )
        try:
            self._tasks.create_task(parent=self._queue, task=task)
        except AlreadyExists:
            return

    def _lock(self, index: int) -> str:
        return f"{self.name}-add-lock:{index}"
