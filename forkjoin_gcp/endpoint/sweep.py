"""Cloud Scheduler's call in, a sweep's report out. No web framework, and no Google library.

    405  not POST
    401  no token, or one that does not verify
    403  a good token of somebody else
    503  a service is away, or the environment lacks something: Cloud Scheduler may try again
    200  the sweep is done, or has come to its bound

The body of the call is not read. A refusal says why in one short sentence; what went wrong inside
is logged, never answered.
"""

from __future__ import annotations

import json
import logging
import time
from typing import Any, Protocol, Unpack

from forkjoin_gcp.config import Services
from forkjoin_gcp.endpoint.access import Access, AccessRefused, sweep_policy
from forkjoin_gcp.endpoint.core import JoinRequest, JoinResponse, Refused, error_response
from forkjoin_gcp.errors import ConfigurationError, ForkJoinError
from forkjoin_gcp.sweeper import SweepOptions, SweepReport

logger = logging.getLogger(__name__)

SWEEP_SECONDS = 150.0
"""How long a call may sweep: Cloud Scheduler waits 180 s for an answer unless told otherwise."""


class Sweepable(Protocol):
    """A queue, as the sweep function sees it."""

    @property
    def name(self) -> str:
        """What its items are stored under."""

    @property
    def services(self) -> Services:
        """Who may call; ConfigurationError where the environment is wrong. Asked at first use."""

    def sweep(self, **options: Unpack[SweepOptions]) -> SweepReport:
        """Sweep once; what was found. Blocks. Raises ServiceError and ConfigurationError."""


class SweepEndpoint:
    """Answers Cloud Scheduler's calls for some queues, one after another.

    Raises ConfigurationError for no queue, two of one name, and bounds that are none.
    """

    def __init__(self, *queues: Sweepable, max_documents: int, seconds: float) -> None:
        if not queues:
            raise ConfigurationError("a sweep function needs at least one queue")
        self._queues: dict[str, Sweepable] = {}
        for queue in queues:
            if self._queues.setdefault(queue.name, queue) is not queue:
                raise ConfigurationError(f"two queues are called {queue.name!r}: sweep them apart")
        if max_documents < 1 or not seconds > 0:
            raise ConfigurationError(
                f"max_documents={max_documents!r}, seconds={seconds!r}: both must be more than 0"
            )
        self._max_documents = max_documents
        self._seconds = seconds
        self._access = Access(sweep_policy)

    def check(self) -> None:
        """Raise ConfigurationError, naming the variable, where it is not known who may call."""
        for queue in self._queues.values():
            self._access.check(queue.services)

    def answer(self, request: JoinRequest) -> JoinResponse:
        """The answer to ``request``. Never raises an Exception."""
        try:
            self._admit(request)
            answered = self._sweep()
        except Refused as refused:
            logger.warning("sweep refused (%d): %s", refused.status, refused.reason)
            return error_response(refused.status, refused.reason, refused.headers)
        except ForkJoinError as error:
            logger.error("sweep failed: %s", error)  # noqa: TRY400
        except Exception:
            logger.exception("sweep failed")
        else:
            if None not in answered:
                return JoinResponse(200, json.dumps({"queues": answered}).encode())
        return error_response(503, "not everything could be swept")

    def _admit(self, request: JoinRequest) -> None:
        if request.method != "POST":
            raise Refused(405, "only POST is answered", Allow="POST")
        authorization = request.headers.get("authorization", "")
        for queue in self._queues.values():
            try:
                self._access.admit(queue.services, authorization)
            except AccessRefused as error:
                raise Refused(
                    error.status, error.reason, WWW_Authenticate=error.challenge
                ) from None

    def _sweep(self) -> list[dict[str, Any] | None]:
        """A summary for each queue, None where something failed: one does not keep the others."""
        end_at = time.monotonic() + self._seconds
        answered: list[dict[str, Any] | None] = []
        for n, queue in enumerate(self._queues.values()):
            # What a queue leaves of its share is the next ones'.
            share = (end_at - time.monotonic()) / (len(self._queues) - n)
            try:
                report = queue.sweep(
                    max_documents=self._max_documents,
                    seconds=max(1.0, share),
                    known=self._queues.keys(),
                )
            except ForkJoinError as error:
                logger.error("sweep of %s failed: %s", queue.name, error)  # noqa: TRY400
                answered.append(None)
            else:
                # Each of its batches is in the log already.
                summary = {**report.as_json(), "stale": len(report.stale)}
                _log(report, summary)
                answered.append(None if report.failed else summary)
        return answered


def _log(report: SweepReport, summary: dict[str, Any]) -> None:
    logger.info("sweep %s", summary, extra={"forkjoin": {"event": "sweep", **summary}})
    for error in report.errors:
        logger.error("sweep of %s: %s", report.queue, error)
    for batch in report.stale:
        if batch.error:
            logger.error("sweep of %s: %s: %s", report.queue, batch.batch.key, batch.error)
    for queue, version in report.unknown:
        logger.warning("segments of %s.%s are in the store; nobody here sweeps it", queue, version)
    if report.resume:
        logger.warning("sweep of %s ended at its bound; the next begins elsewhere", report.queue)
