"""The join endpoints of both protocols, on one threaded HTTP server in a process of its own."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from dataclasses import dataclass

import flask
from werkzeug.serving import make_server

from benchmarks.protocol_2010 import Queue2010, Timing
from benchmarks.setting import Setting, Work
from forkjoin_gcp import ForkJoinQueue, Item, join_blueprint
from forkjoin_gcp.config import Settings


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request of Cloud Tasks: which task, and when it came (time.monotonic)."""

    queue: str
    task: str
    at: float


class SideServing:
    """Handles what both protocols deliver by writing down when it came."""

    def __init__(self, setting: Setting) -> None:
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self._setting = setting
        self._app = flask.Flask(__name__)
        self._server = make_server("127.0.0.1", 0, self._app, threaded=True)
        self._base = f"http://127.0.0.1:{self._server.server_port}"
        self._arrivals: list[Arrival] = []
        self._seen: dict[str, float] = {}
        self._handled: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._queues: dict[str, ForkJoinQueue[Work]] = {}
        self._old: dict[str, Queue2010] = {}
        self._thread: threading.Thread | None = None

    def serve(self, package: dict[str, Settings], old: dict[str, float]) -> tuple[str, str]:
        """Serve these queues, the old ones by batch_period; the URLs of the two endpoints."""
        join_url, pop_url = f"{self._base}/forkjoin", f"{self._base}/pop"
        for name, settings in package.items():
            self._queues[name] = self._declare(name, settings, join_url)
        for name, batch_period in old.items():
            timing = Timing(batch_period=batch_period)
            self._old[name] = Queue2010(name, self._setting, pop_url, timing)
        self._app.before_request(self._arrive)
        self._app.register_blueprint(join_blueprint(*self._queues.values(), check=True))
        self._app.add_url_rule("/pop", view_func=self._pop, methods=["POST"])
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        return join_url, pop_url

    def arrivals(self, queue: str) -> list[Arrival]:
        """The requests since the last call, in the order in which they came."""
        found = [one for one in self._arrivals if one.queue == queue]
        self._arrivals = [one for one in self._arrivals if one.queue != queue]
        return found

    def seen(self, url: str) -> float | None:
        """When a handler first saw the item (time.monotonic)."""
        return self._seen.get(url)

    def handled(self, queue: str) -> int:
        """Items handled since the last ``forget``."""
        return self._handled[queue]

    def forget(self, queue: str) -> None:
        self._handled[queue] = 0

    def counters(self, queue: str) -> dict[str, int]:
        """What the package's own side of the queue has counted here."""
        return dict(self._queues[queue].counters)

    def close(self) -> None:
        if self._thread is not None:
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()
        for queue in self._queues.values():
            queue.close()

    def _declare(self, name: str, settings: Settings, join_url: str) -> ForkJoinQueue[Work]:
        services = self._setting.services(join_url)
        queue = ForkJoinQueue(name, payload=Work, services=services, **settings)

        @queue.handler
        async def handle(item: Item[Work]) -> None:
            self._see(name, item.payload["url"])

        return queue

    def _arrive(self) -> None:
        now = time.monotonic()
        headers = flask.request.headers
        queue, task = headers["X-CloudTasks-QueueName"], headers["X-CloudTasks-TaskName"]
        self._arrivals.append(Arrival(queue, task, now))

    def _pop(self) -> str:
        headers = flask.request.headers
        queue = headers["X-CloudTasks-QueueName"]
        cursor = flask.request.get_data().decode()
        for work in self._old[queue].pop(headers["X-CloudTasks-TaskName"], cursor):
            self._see(queue, work["url"])
        return ""

    def _see(self, queue: str, url: str) -> None:
        now = time.monotonic()
        with self._lock:
            self._handled[queue] += 1
            self._seen.setdefault(url, now)
