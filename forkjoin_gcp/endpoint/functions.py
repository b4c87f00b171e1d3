"""The join endpoint as a function for functions-framework (Cloud Run functions)."""

from __future__ import annotations

from collections.abc import Callable

import flask

from forkjoin_gcp.endpoint.core import Joinable, JoinEndpoint
from forkjoin_gcp.endpoint.flask import answer


def join_function(
    *queues: Joinable, check: bool = False
) -> Callable[[flask.Request], flask.Response]:
    """An HTTP function that answers Cloud Tasks' requests for ``queues``, on any path.

    With ``check`` a ConfigurationError says at once what the environment lacks; without it that is
    logged at the first request, which is answered 503. Raises ConfigurationError for no queue, or
    two of one name.
    """
    endpoint = JoinEndpoint(*queues)
    if check:
        endpoint.check()

    def join(request: flask.Request) -> flask.Response:
        return answer(endpoint, request)

    return join
