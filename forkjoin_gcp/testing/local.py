"""Queues on local services: each with a project of its own, joined over HTTP."""

from __future__ import annotations

import contextlib
import copy
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import flask
from werkzeug.serving import make_server

from forkjoin_gcp.config import Services
from forkjoin_gcp.emulators import valkey
from forkjoin_gcp.endpoint.core import JoinEndpoint
from forkjoin_gcp.endpoint.flask import answer
from forkjoin_gcp.ports import Counters
from forkjoin_gcp.testing.in_memory import replaced

if TYPE_CHECKING:
    from forkjoin_gcp import emulators
    from forkjoin_gcp.queue import ForkJoinQueue

LOOK_SECONDS = 0.01


def wait_until(true: Callable[[], bool], seconds: float = 30) -> None:
    """Return when ``true()`` is, looking often; AssertionError when it is not within ``seconds``.

    For what takes real time: a queue on local services, another process.
    """
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(LOOK_SECONDS)


@contextlib.contextmanager
def serving(app: flask.Flask) -> Iterator[int]:
    """Serve ``app`` on 127.0.0.1 from threads of this process; gives the port."""
    server = make_server("127.0.0.1", 0, app, threaded=True)
    # How soon it sees that it is to end; half a second unless given.
    looks = {"poll_interval": LOOK_SECONDS}
    thread = threading.Thread(target=server.serve_forever, kwargs=looks, name="forkjoin-serving")
    thread.start()
    try:
        yield server.port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class LocalQueues:
    """Puts declared queues on local services, one test after another, and takes them off again.

    All join endpoints are behind one port. Tasks that come when their test is over are answered
    200 and forgotten, so that none is left for the next.
    """

    def __init__(self, services: emulators.LocalServices, port: int) -> None:
        self._services = services
        self._port = port
        self._endpoints: dict[str, JoinEndpoint] = {}

    @classmethod
    @contextlib.contextmanager
    def served(cls, services: emulators.LocalServices) -> Iterator[LocalQueues]:
        """Local queues whose join endpoints are served while the context lasts."""
        app = flask.Flask(__name__)
        with serving(app) as port:
            queues = cls(services, port)
            app.add_url_rule("/<token>", view_func=queues._join, methods=["POST"])
            yield queues

    @contextlib.contextmanager
    def on(self, queue: ForkJoinQueue[Any], project: str) -> Iterator[None]:
        """While the context lasts, ``queue`` is on the local services, in ``project``.

        It starts empty, with counters at 0 and a version of its own, whatever its name was used
        for before. Its Cloud Tasks queues are created.
        """
        token = f"t{uuid.uuid4().hex[:12]}"
        config = queue.config.model_copy(update={"version": token})
        environment = self._services.environment()
        environment["FORKJOIN_PROJECT"] = project
        environment["FORKJOIN_JOIN_URL"] = f"http://127.0.0.1:{self._port}/{token}"
        services = copy.copy(self._services)  # where queues are created is an attribute of it
        services.project = project
        for shard in range(1, config.shards + 1):
            services.create_queue(config.task_queue(shard))
        with replaced(
            queue,
            config=config,
            counters=Counters(),
            _services=Services.from_env(environment),
            _connect=None,
            _engine=None,
            _closed=False,
        ):
            self._endpoints[token] = JoinEndpoint(queue)
            try:
                yield
            finally:
                del self._endpoints[token]
                queue.close()
                # In Valkey no project keeps tests apart, and dead letters of all versions show.
                address = environment["FORKJOIN_MEMORYSTORE"].removeprefix("redis://")
                valkey.remove(address, f"fj:{{{config.name}/{token}/*")

    def _join(self, token: str) -> flask.Response:
        endpoint = self._endpoints.get(token)
        return flask.Response() if endpoint is None else answer(endpoint, flask.request)
