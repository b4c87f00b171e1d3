"""A queue for the join function that writes down what each request did.

Each request that Cloud Tasks makes leaves one line of JSON: which batch and which of its positions,
when it began and ended, and how often the process's queue has called each service by then.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, dataclass
from typing import Any

from forkjoin_gcp import ForkJoinQueue, Services
from forkjoin_gcp.tasks import RootTask, Task

VARIABLE = "JOINS_FILE"


@dataclass(frozen=True, slots=True)
class Join:
    """One request to the join function. ``first`` is its first position; times are Unix times."""

    batch: str
    root: bool
    first: int
    generation: int
    began: float
    ended: float
    done: bool
    process: int
    counters: dict[str, int]


class Watched:
    """A queue as the join endpoint wants it, that writes down each of its joins."""

    def __init__(self, queue: ForkJoinQueue[Any], path: str) -> None:
        self._queue = queue
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    @property
    def name(self) -> str:
        return self._queue.name

    @property
    def services(self) -> Services:
        return self._queue.services

    def join(self, task: Task, *, retry_count: int) -> None:
        began, done = time.time(), False
        try:
            self._queue.join(task, retry_count=retry_count)
            done = True
        finally:
            self._note(task, began, done)

    def _note(self, task: Task, began: float, done: bool) -> None:
        root = isinstance(task, RootTask)
        join = Join(
            batch=task.batch.key,
            root=root,
            first=0 if isinstance(task, RootTask) else task.first,
            generation=0 if isinstance(task, RootTask) else task.generation,
            began=began,
            ended=time.time(),
            done=done,
            process=os.getpid(),
            counters=dict(self._queue.counters),
        )
        os.write(self._file, (json.dumps(asdict(join)) + "\n").encode())
