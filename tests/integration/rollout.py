"""Deployments of one queue behind one join URL, whose requests go to each in turn."""

from __future__ import annotations

import itertools
import threading
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import flask

from forkjoin_gcp import ForkJoinQueue, Item, Services
from forkjoin_gcp.emulators import LocalServices
from forkjoin_gcp.endpoint.core import JoinEndpoint
from forkjoin_gcp.endpoint.flask import answer
from tests.integration.conftest import serving

Queue = ForkJoinQueue[dict[str, Any]]


@dataclass
class Rollout:
    """Each deployment's handler notes what it handled, with the deployment's label."""

    name: str
    services: Services
    local: LocalServices
    stack: ExitStack
    serves: list[JoinEndpoint] = field(default_factory=list)
    handled: list[tuple[str, str]] = field(default_factory=list)
    shards: int = 0
    _turn: Iterator[int] = field(default_factory=itertools.count)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def deploy(self, label: str, **settings: Any) -> Queue:
        """Declare it; its Cloud Tasks queues are made where they are missing."""
        settings = {"services": self.services, "batch_period": 0.2, **settings}
        queue: Queue = ForkJoinQueue(settings.pop("name", self.name), **settings)

        @queue.handler
        async def handle(item: Item[dict[str, Any]]) -> None:
            with self._lock:
                self.handled.append((item.id, label))

        if queue.name == self.name:
            for shard in range(self.shards + 1, queue.config.shards + 1):
                self.local.create_queue(queue.config.task_queue(shard), max_attempts=-1)
            self.shards = max(self.shards, queue.config.shards)
        self.stack.callback(queue.close)
        return queue

    def serve(self, *endpoints: JoinEndpoint) -> None:
        """From now on these take the requests, in turn."""
        self.serves = list(endpoints)

    def ids(self) -> list[str]:
        """What was handled so far, sorted."""
        with self._lock:
            return sorted(item for item, _ in self.handled)

    def labels(self) -> set[str]:
        """Of the deployments that handled something."""
        with self._lock:
            return {label for _, label in self.handled}

    def _join(self) -> flask.Response:
        return answer(self.serves[next(self._turn) % len(self.serves)], flask.request)


@contextmanager
def rolling_out(local: LocalServices) -> Iterator[Rollout]:
    """A rollout of a queue with a name of its own, served and ended."""
    name = f"q{uuid.uuid4().hex[:10]}"
    app = flask.Flask(name)
    with ExitStack() as stack, serving(app) as port:
        environ = local.environment() | {"FORKJOIN_JOIN_URL": f"http://127.0.0.1:{port}/forkjoin"}
        made = Rollout(name, Services.from_env(environ), local, stack)
        app.add_url_rule("/forkjoin", view_func=made._join, methods=["POST"])
        yield made
