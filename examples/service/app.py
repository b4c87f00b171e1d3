"""A Cloud Run service that takes pages to fetch, one a request, and enqueues them."""

from __future__ import annotations

import os

import flask
from pages import Page, pages
from pydantic import ValidationError

from forkjoin_gcp import PayloadError, QueueClosed, QueueFull, ServiceError
from forkjoin_gcp.json_logs import log_json

if "K_SERVICE" in os.environ:  # on Cloud Run, whose logs have fields
    log_json()
app = flask.Flask(__name__)


@app.get("/healthz")
def healthz() -> dict[str, str]:
    """For the start-up probe: this process answers. Enqueuing says itself what is away."""
    return {"status": "ok"}


@app.post("/urls")
def enqueue() -> tuple[dict[str, str], int] | tuple[dict[str, str], int, dict[str, str]]:
    """Enqueue ``{"url": ..., "line": ...}`` and answer 202 with its id: it is durable then."""
    try:
        page = Page.model_validate_json(flask.request.get_data())
        return {"id": pages.enqueue(page)}, 202
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        return {"error": f"{'.'.join(map(str, first['loc'])) or 'body'}: {first['msg']}"}, 400
    except PayloadError as error:
        return {"error": str(error)}, 400
    except (QueueFull, QueueClosed, ServiceError) as error:
        # Not accepted, or nobody can tell: the caller is to send it again.
        app.logger.warning("not enqueued: %s", error)
        return {"error": "try again later"}, 503, {"Retry-After": "1"}


@app.get("/stats")
def stats() -> dict[str, int]:
    """What this process's queue has called so far, and how often."""
    return dict(pages.counters)
