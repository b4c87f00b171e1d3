"""A served queue: its join endpoint over real HTTP, its tasks from the Cloud Tasks emulator."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import flask
import pytest
from werkzeug.serving import make_server

from forkjoin_gcp import ForkJoinQueue, Services, join_blueprint
from forkjoin_gcp.emulators import LocalServices

Declare = Callable[..., ForkJoinQueue[Any]]


def wait_until(true: Callable[[], bool], seconds: float = 30) -> None:
    """Real processes take real time: look often, and fail with what was waited for."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(0.01)


@contextmanager
def serving(app: flask.Flask) -> Iterator[int]:
    server = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def declare(local_services: LocalServices) -> Iterator[Declare]:
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
            environment = local_services.environment()
            environment["FORKJOIN_JOIN_URL"] = f"http://127.0.0.1:{port}/{name}"
            services = Services.from_env(environment | (elsewhere or {}))
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
