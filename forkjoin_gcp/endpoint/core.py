"""A join request in, an answer out. No web framework, and no Google library.

    405  not POST                                  404  the queue is not served here
    401  no token, or one that does not verify     200  the task is done
    403  a good token of somebody else             409  another delivery of the task is at work
    415  not application/json
    413  over MAX_BODY_BYTES
    400  not a task                                503  anything else: Cloud Tasks tries again

The token is checked before the body is read. A refusal says why in one short sentence; what went
wrong inside is logged, never answered. Handlers' failures are no concern of this page: the queue
settles those, and a task whose handlers failed is done.
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from forkjoin_gcp.config import Services
from forkjoin_gcp.endpoint.access import Access, AccessRefused, join_policy
from forkjoin_gcp.errors import (
    ChunkBusy,
    ConfigurationError,
    ForkJoinError,
    QueueClosed,
    ServiceError,
)
from forkjoin_gcp.loading import is_joinable
from forkjoin_gcp.tasks import Task, parse_task

logger = logging.getLogger(__name__)

MAX_BODY_BYTES = 65_536
"""No more of a body is read than this, and one byte. A task's is a few hundred bytes."""

RETRY_AFTER = 5
"""Seconds that a 503 asks Cloud Tasks to wait, at least."""

_MAX_REASON = 200
_COUNT = re.compile(r"[0-9]{1,9}", re.ASCII)


class Joinable(Protocol):
    """A queue, as the endpoint sees it."""

    @property
    def name(self) -> str:
        """What tasks call it."""

    @property
    def services(self) -> Services:
        """Who may call; ConfigurationError where the environment is wrong. Asked at first use."""

    def join(self, task: Task, *, retry_count: int) -> None:
        """Do the task and return when it is done. Blocks; safe from many threads.

        ``retry_count`` is how often Cloud Tasks tried before. Raises ServiceError where the
        machinery failed, ChunkBusy where another delivery of the task's chunk is at work,
        QueueClosed, and HandlerError where no handler is declared.
        """


@dataclass(frozen=True)
class JoinRequest:
    """What came in. ``body`` is the bytes, or a function that reads at most so many of them.

    Header names are taken in any case. Whatever a ``body`` function raises means that the body
    did not come; Refused says how that is answered.
    """

    method: str
    headers: Mapping[str, str]
    body: bytes | Callable[[int], bytes] = b""

    def __post_init__(self) -> None:
        lower = {name.lower(): value for name, value in self.headers.items()}
        object.__setattr__(self, "headers", lower)

    @property
    def retry_count(self) -> int:
        """How often Cloud Tasks tried before; 0 where it does not say so in digits."""
        text = self.headers.get("x-cloudtasks-taskretrycount", "").strip()
        return int(text) if _COUNT.fullmatch(text) else 0


@dataclass(frozen=True)
class JoinResponse:
    """What goes out: a JSON object, ``{}`` or ``{"error": "…"}``."""

    status: int
    body: bytes = b"{}"
    headers: Mapping[str, str] = field(default_factory=dict)


class Refused(Exception):
    """The request is answered with ``status``, and with ``reason`` as its error."""

    def __init__(self, status: int, reason: str, **headers: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


class JoinEndpoint:
    """Answers join requests for some queues. Safe from many threads.

    Raises ConfigurationError for no queue, two of one name, and what is no queue. Nothing else is
    needed until the first request, unless ``check`` is called.
    """

    def __init__(self, *queues: Joinable) -> None:
        if not queues:
            raise ConfigurationError("a join endpoint needs at least one queue")
        self._queues: dict[str, Joinable] = {}
        for queue in queues:
            if not is_joinable(queue):
                raise ConfigurationError(f"{type(queue).__name__} object: not a fork-join queue")
            if self._queues.setdefault(queue.name, queue) is not queue:
                raise ConfigurationError(f"two queues are called {queue.name!r}: serve them apart")
        self._access = Access(join_policy)

    def check(self) -> None:
        """Raise ConfigurationError, naming the variable, where it is not known who may call."""
        for queue in self._queues.values():
            self._access.check(queue.services)

    def answer(self, request: JoinRequest) -> JoinResponse:
        """The answer to ``request``. Never raises an Exception."""
        try:
            self._join(request)
        except Refused as refused:
            logger.warning("join request refused (%d): %s", refused.status, refused.reason)
            return error_response(refused.status, refused.reason, refused.headers)
        except ChunkBusy as error:
            # Not 503: Cloud Tasks would slow the whole queue down for it.
            logger.info("join put off for %.1f s: the chunk is busy", error.after)
            seconds = max(1, math.ceil(error.after))
            return error_response(409, "the chunk is busy", {"Retry-After": str(seconds)})
        except (ServiceError, QueueClosed) as error:
            logger.warning("join failed, Cloud Tasks will try again: %s", error)
        except ForkJoinError as error:
            logger.error("join failed until this is put right: %s", error)  # noqa: TRY400
        except Exception:
            logger.exception("join failed")
        else:
            return JoinResponse(200)
        return error_response(503, "try again later", {"Retry-After": str(RETRY_AFTER)})

    def _join(self, request: JoinRequest) -> None:
        if request.method != "POST":
            raise Refused(405, "only POST is answered", Allow="POST")
        refusals = self._authenticate(request.headers.get("authorization", ""))
        task = _read_task(request)
        name = task.batch.lane.queue
        if name not in self._queues:
            raise Refused(404, f"no queue {name!r} is served here")
        if (refusal := refusals[name]) is not None:
            raise refusal
        self._queues[name].join(task, retry_count=request.retry_count)

    def _authenticate(self, authorization: str) -> dict[str, Exception | None]:
        """Why the caller may not use each queue, None where it may; raised if it may use none."""
        refusals: dict[str, Exception | None] = {}
        for name, queue in self._queues.items():
            try:
                self._access.admit(queue.services, authorization)
                refusals[name] = None
            except AccessRefused as error:
                refusals[name] = Refused(
                    error.status, error.reason, WWW_Authenticate=error.challenge
                )
            except ForkJoinError as error:
                refusals[name] = error
        if None not in refusals.values():
            # A failure of our own comes first: the caller may be in the right and should come back.
            failures = [error for error in refusals.values() if error is not None]
            raise min(failures, key=lambda error: isinstance(error, Refused))
        return refusals


def _read_task(request: JoinRequest) -> Task:
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise Refused(415, "the content type must be application/json")
    length = request.headers.get("content-length", "").strip()
    if length.isascii() and length.isdigit() and int(length[:20]) > MAX_BODY_BYTES:
        raise _too_large()
    try:
        return parse_task(_read(request.body))
    except ConfigurationError as error:
        raise Refused(400, _short(str(error))) from None


def _read(body: bytes | Callable[[int], bytes]) -> bytes:
    if isinstance(body, bytes):
        if len(body) > MAX_BODY_BYTES:
            raise _too_large()
        return body
    pieces = bytearray()
    while piece := _next_piece(body, MAX_BODY_BYTES + 1 - len(pieces)):
        pieces += piece
        if len(pieces) > MAX_BODY_BYTES:
            raise _too_large()
    return bytes(pieces)


def _next_piece(body: Callable[[int], bytes], size: int) -> bytes:
    try:
        return body(size)
    except Refused:
        raise
    except Exception:  # what servers raise for a body in broken chunks is in no standard
        raise Refused(400, "the body could not be read to its end") from None


def _too_large() -> Refused:
    return Refused(413, f"the body is over {MAX_BODY_BYTES:,} bytes")


def _short(reason: str) -> str:
    """One line, of printable characters: part of it is the caller's, and it goes to a log."""
    line = "".join(character if character.isprintable() else "�" for character in reason)
    return line if len(line) <= _MAX_REASON else line[: _MAX_REASON - 1] + "…"


def error_response(
    status: int, reason: str, headers: Mapping[str, str] | None = None
) -> JoinResponse:
    """An answer that says why not."""
    return JoinResponse(status, json.dumps({"error": reason}).encode(), headers or {})
