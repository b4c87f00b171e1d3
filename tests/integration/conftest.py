"""A served queue: its join endpoint over real HTTP, its tasks from the Cloud Tasks emulator."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from typing import Any

import flask
import pytest

from forkjoin_gcp import ForkJoinQueue, Services, join_blueprint
from forkjoin_gcp.emulators import LocalServices
from forkjoin_gcp.testing.local import serving, wait_until

__all__ = ["Declare", "declare", "serving", "wait_until"]

Declare = Callable[..., ForkJoinQueue[Any]]


@pytest.fixture
def declare(local_services: LocalServices, local_environment: dict[str, str]) -> Iterator[Declare]:
    """Declare a queue that is served: its Cloud Tasks queues made, tokens verified, closed after.

    ``create=False`` makes no Cloud Tasks queue; ``elsewhere`` overrides where services are.
    """
    app = flask.Flask("served")
    queues: list[ForkJoinQueue[Any]] = []
    with serving(app) as port:

        def make(
            *, create: bool = True, elsewhere: dict[str, str] | None = None, **settings: Any
        ) -> ForkJoinQueue[Any]:
            name = f"q{uuid.uuid4().hex[:10]}"
            join_url = {"FORKJOIN_JOIN_URL": f"http://127.0.0.1:{port}/{name}"}
            services = Services.from_env(local_environment | join_url | (elsewhere or {}))
            queue: ForkJoinQueue[Any] = ForkJoinQueue(name, services=services, **settings)
            queues.append(queue)
            app.register_blueprint(join_blueprint(queue, rule=f"/{name}", name=name))
            for shard in range(1, queue.config.shards + 1) if create else ():
                local_services.create_queue(queue.config.task_queue(shard))
            return queue

        try:
            yield make
        finally:
            for queue in queues:
                queue.close()
