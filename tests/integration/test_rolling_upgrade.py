"""Two deployments of a queue at once, as in a rolling upgrade: each item is handled, and once."""

from __future__ import annotations

import itertools
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import flask
import pytest

from forkjoin_gcp import ForkJoinQueue, Item, Services
from forkjoin_gcp.emulators import LocalServices
from forkjoin_gcp.endpoint.core import JoinEndpoint
from forkjoin_gcp.endpoint.flask import answer
from tests.integration.conftest import serving, wait_until

Queue = ForkJoinQueue[dict[str, Any]]


@dataclass
class Rollout:
    """Deployments of one queue behind one join URL, whose requests go to each in turn."""

    name: str
    services: Services
    local: LocalServices
    shards: int = 0
    serves: list[JoinEndpoint] = field(default_factory=list)
    handled: list[tuple[str, str]] = field(default_factory=list)
    stack: ExitStack = field(default_factory=ExitStack)
    _turn: Iterator[int] = field(default_factory=itertools.count)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def deploy(self, label: str, **settings: Any) -> Queue:
        queue: Queue = ForkJoinQueue(
            self.name, services=self.services, batch_period=0.2, **settings
        )

        @queue.handler
        async def handle(item: Item[dict[str, Any]]) -> None:
            with self._lock:
                self.handled.append((item.id, label))

        for shard in range(self.shards + 1, queue.config.shards + 1):
            self.local.create_queue(queue.config.task_queue(shard), max_attempts=-1)
        self.shards = max(self.shards, queue.config.shards)
        self.stack.callback(queue.close)
        return queue

    def join(self) -> flask.Response:
        return answer(self.serves[next(self._turn) % len(self.serves)], flask.request)

    def ids(self) -> list[str]:
        with self._lock:
            return sorted(item for item, _ in self.handled)


@pytest.fixture
def rollout(local_services: LocalServices) -> Iterator[Rollout]:
    name = f"q{uuid.uuid4().hex[:10]}"
    app = flask.Flask(name)
    with ExitStack() as stack, serving(app) as port:
        environ = local_services.environment() | {
            "FORKJOIN_JOIN_URL": f"http://127.0.0.1:{port}/forkjoin"
        }
        made = Rollout(name, Services.from_env(environ), local_services, stack=stack)
        app.add_url_rule("/forkjoin", view_func=made.join, methods=["POST"])
        yield made


def enqueue(queues: list[Queue], items: int) -> list[str]:
    """Items from all of them at once, one a call."""
    calls: list[Callable[[dict[str, Any]], str]] = [queue.enqueue for queue in queues]
    with ThreadPoolExecutor(16) as pool:
        return sorted(pool.map(lambda n: calls[n % len(calls)]({"n": n}), range(items)))


def test_old_and_new_settings_share_a_queue(rollout: Rollout) -> None:
    """The same version: they write into each other's batches, and run each other's tasks."""
    old = rollout.deploy("old", batch_size=10)
    new = rollout.deploy("new", batch_size=25, lanes=3, shards=2, concurrency=10)
    rollout.serves = [JoinEndpoint(old), JoinEndpoint(new)]
    ids = enqueue([old, new], 400)
    ids += new.enqueue_many({"n": n} for n in range(150))
    wait_until(lambda: len(rollout.ids()) >= 550)
    assert rollout.ids() == sorted(ids), "each is handled, and once"
    assert {label for _, label in rollout.handled} == {"old", "new"}
    assert old.dead_letters() == new.dead_letters() == []


def test_a_new_version_finishes_what_the_old_one_took(rollout: Rollout) -> None:
    """Another `version`: batches of their own. The old services end before their batches run."""
    old = rollout.deploy("old", version="v1", shards=2, batch_size=10)
    new = rollout.deploy("new", version="v2", shards=2)
    rollout.serves = [JoinEndpoint(new)]
    ids = enqueue([old, new], 300)
    old.close()
    wait_until(lambda: len(rollout.ids()) >= 300)
    assert rollout.ids() == ids
    assert {label for _, label in rollout.handled} == {"new"}


def test_rolled_back_services_finish_what_the_new_ones_took(rollout: Rollout) -> None:
    """The way back: what was written with more lanes and shards is handled with fewer."""
    new = rollout.deploy("new", lanes=4, shards=3, batch_size=50)
    old = rollout.deploy("old", batch_size=10)
    rollout.serves = [JoinEndpoint(old)]
    ids = enqueue([new], 300)
    new.close()
    wait_until(lambda: len(rollout.ids()) >= 300)
    assert rollout.ids() == ids
