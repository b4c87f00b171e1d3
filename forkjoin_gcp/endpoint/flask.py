"""The join endpoint as a Flask blueprint."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import flask
from werkzeug.exceptions import HTTPException

from forkjoin_gcp.endpoint.core import (
    Joinable,
    JoinEndpoint,
    JoinRequest,
    JoinResponse,
    Refused,
)

# All of them reach the endpoint, so that a wrong one gets its answer and not Flask's.
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT")


class Endpoint(Protocol):
    """What answers a request. Never raises an Exception."""

    def answer(self, request: JoinRequest) -> JoinResponse:
        """The answer to ``request``."""


def join_blueprint(
    *queues: Joinable, rule: str = "/forkjoin", name: str = "forkjoin", check: bool = False
) -> flask.Blueprint:
    """A blueprint that answers Cloud Tasks' requests for ``queues`` at ``rule``.

    ``name`` is the blueprint's, for an app that has several. With ``check`` a ConfigurationError
    says at once what the environment lacks; without it that is logged at the first request, which
    is answered 503. Raises ConfigurationError for no queue, or two of one name.
    """
    endpoint = JoinEndpoint(*queues)
    if check:
        endpoint.check()
    blueprint = flask.Blueprint(name, __name__)

    @blueprint.route(rule, methods=_METHODS, provide_automatic_options=False)
    def join() -> flask.Response:
        return answer(endpoint, flask.request)

    return blueprint


def answer(endpoint: Endpoint, request: flask.Request) -> flask.Response:
    """Answer one Flask request."""

    def read(size: int) -> bytes:
        try:
            return request.stream.read(size)
        except HTTPException as error:  # the app's own limit, or a client that went away
            raise Refused(error.code or 400, error.name) from None

    given = endpoint.answer(JoinRequest(request.method, dict(request.headers), read))
    response = flask.Response(
        _stream(given.body), given.status, given.headers, content_type="application/json"
    )
    response.content_length = len(given.body)
    return response


def _stream(body: bytes) -> Iterator[bytes]:
    # A response that streams: after any other, functions-framework reads what is left of the
    # request into memory, however much that is.
    yield body
