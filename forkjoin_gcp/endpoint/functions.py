"""The join endpoint and the sweeper as functions for functions-framework (Cloud Run functions)."""

from __future__ import annotations

from collections.abc import Callable

import flask

from forkjoin_gcp.endpoint.core import Joinable, JoinEndpoint
from forkjoin_gcp.endpoint.flask import answer
from forkjoin_gcp.endpoint.sweep import SWEEP_SECONDS, Sweepable, SweepEndpoint
from forkjoin_gcp.sweeper import MAX_DOCUMENTS


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


def sweep_function(
    *queues: Sweepable,
    max_documents: int = MAX_DOCUMENTS,
    seconds: float = SWEEP_SECONDS,
    check: bool = False,
) -> Callable[[flask.Request], flask.Response]:
    """An HTTP function, for Cloud Scheduler to call, that sweeps ``queues``, on any path.

    A call reads at most ``max_documents`` segments of each queue, and takes about ``seconds`` at
    most. Each begins somewhere else, so that calls which do not get to the end see everything in
    time. ``check`` is as for ``join_function``. Raises ConfigurationError for no queue, or two of
    one name.
    """
    endpoint = SweepEndpoint(*queues, max_documents=max_documents, seconds=seconds)
    if check:
        endpoint.check()

    def sweep(request: flask.Request) -> flask.Response:
        return answer(endpoint, request)

    return sweep
