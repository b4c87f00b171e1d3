"""What can happen to a dispatch between Cloud Tasks and the join endpoint."""

from __future__ import annotations

import io
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from werkzeug.test import run_wsgi_app

Answer = tuple[str, list[tuple[str, str]], bytes]

PLAIN, DELAYED, TWICE, AGAIN_LATER, ERROR_BEFORE, ERROR_AFTER = (
    "plain", "delayed", "twice at once", "again later", "500 before", "500 after",
)  # fmt: skip
FAULTS = (DELAYED, TWICE, AGAIN_LATER, ERROR_BEFORE, ERROR_AFTER)


class Meddler:
    """WSGI middleware that delays, doubles and fails requests, as a seeded generator says.

    ``share`` of the requests is meddled with until ``stop``, which returns when all that was
    begun has ended. ``done`` counts what was done to how many.
    """

    def __init__(self, app: Callable[..., Iterable[bytes]], seed: int, share: float) -> None:
        self._app = app
        self._random = random.Random(seed)
        self._share = share
        self._lock = threading.Lock()
        self._later: list[threading.Thread] = []
        self.done: Counter[str] = Counter()

    def stop(self) -> None:
        with self._lock:
            self._share = 0.0
            later = list(self._later)
        for thread in later:
            thread.join()

    def __call__(self, environ: dict[str, Any], start_response: Any) -> list[bytes]:
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        status, headers, answer = self._meddle(environ, body)
        start_response(status, headers)
        return [answer]

    def _meddle(self, environ: dict[str, Any], body: bytes) -> Answer:
        with self._lock:
            fault = PLAIN
            if self._random.random() < self._share:
                fault = self._random.choice(FAULTS)
            seconds = self._random.uniform(0.05, 1.5)
            self.done[fault] += 1
            if fault in (TWICE, AGAIN_LATER):
                wait = seconds if fault == AGAIN_LATER else 0.0
                second = threading.Thread(target=self._second, args=(environ, body, wait))
                second.start()
                self._later.append(second)
        if fault == ERROR_BEFORE:
            return "500 Meddled", [], b""
        if fault == DELAYED:
            time.sleep(seconds)
        answer = self._pass_on(environ, body)
        return ("500 Meddled", [], b"") if fault == ERROR_AFTER else answer

    def _second(self, environ: dict[str, Any], body: bytes, wait: float) -> None:
        time.sleep(wait)
        self._pass_on(environ, body)

    def _pass_on(self, environ: dict[str, Any], body: bytes) -> Answer:
        fresh = {key: value for key, value in environ.items() if key != "werkzeug.socket"}
        fresh["wsgi.input"] = io.BytesIO(body)
        chunks, status, headers = run_wsgi_app(self._app, fresh, buffered=True)
        return status, headers.to_wsgi_list(), b"".join(chunks)
