"""A service that enqueues what it is sent, in threads: ``gunicorn tests.chaos.service:app``."""

from __future__ import annotations

from typing import Any

import flask

from forkjoin_gcp import ForkJoinError
from tests.chaos.pieces import Piece, pieces

app = flask.Flask(__name__)


@app.get("/")
def ready() -> str:
    pieces.start()
    return "ready"


@app.post("/")
def enqueue() -> tuple[dict[str, Any], int]:
    """Answers 202 and the ids of what was accepted; anything else, and nobody can tell."""
    payloads = [Piece(**one) for one in flask.request.get_json()]
    try:
        if len(payloads) == 1:
            return {"ids": [pieces.enqueue(payloads[0])]}, 202
        return {"ids": pieces.enqueue_many(payloads)}, 202
    except ForkJoinError as error:
        return {"error": type(error).__name__}, 503
