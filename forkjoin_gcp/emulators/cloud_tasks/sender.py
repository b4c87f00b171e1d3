"""One request to a target: its headers, its token, its outcome."""

from __future__ import annotations

import asyncio
from types import TracebackType

import aiohttp
from multidict import CIMultiDict

from .queues import Outcome, Queue, Task
from .targets import HttpRequest
from .times import microseconds
from .tokens import TokenSigner

USER_AGENT = "Google-Cloud-Tasks"
# Shorter than the 2 s after which gunicorn closes an idle connection: a request sent on a
# connection that the target is just closing would count as a failed attempt.
_KEEPALIVE = 1.0
_MAX_ANSWER_BYTES = 1_048_576
_MAX_RETRY_AFTER = 3_600.0
_REPLACED_HEADERS = frozenset({"host", "content-length", "transfer-encoding", "user-agent"})
_RESERVED_PREFIXES = ("x-google-", "x-appengine-", "x-cloudtasks-")


class Sender:
    """Sends requests as Cloud Tasks does. Use as an async context manager."""

    def __init__(self, tokens: TokenSigner) -> None:
        self._tokens = tokens
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Sender:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEPALIVE),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            skip_auto_headers=("Content-Type", "User-Agent"),
        )
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def send(
        self, request: HttpRequest, headers: CIMultiDict[str], deadline: float
    ) -> Outcome:
        """Never raises but for cancellation: whatever a target does in `deadline` seconds is an
        outcome."""
        assert self._session is not None
        try:
            async with (
                asyncio.timeout(deadline),
                self._session.request(
                    request.method,
                    request.url,
                    data=request.body or None,
                    headers=headers,
                    allow_redirects=False,
                ) as response,
            ):
                await _drain(response)
                return Outcome(response.status, retry_after=_retry_after(response))
        except TimeoutError:
            text = f"no answer within the dispatch deadline of {deadline:g} s"
            return Outcome(None, text, deadline_exceeded=True)
        except Exception as error:
            return Outcome(None, f"{type(error).__name__}: {error}"[:500])

    def headers(self, queue: Queue, task: Task, request: HttpRequest) -> CIMultiDict[str]:
        """Those of the request that a client may set, and the service's own, as of now."""
        headers: CIMultiDict[str] = CIMultiDict()
        for name, value in (request.headers or {}).items():
            lower = name.lower()
            if lower not in _REPLACED_HEADERS and not lower.startswith(_RESERVED_PREFIXES):
                headers[name] = value
        headers["User-Agent"] = USER_AGENT
        headers["X-CloudTasks-QueueName"] = queue.queue_id
        headers["X-CloudTasks-TaskName"] = task.task_id
        headers["X-CloudTasks-TaskRetryCount"] = str(task.dispatch_count - 1)
        headers["X-CloudTasks-TaskExecutionCount"] = str(task.execution_count)
        seconds, micros = divmod(microseconds(task.schedule_time), 1_000_000)
        headers["X-CloudTasks-TaskETA"] = f"{seconds}.{micros:06}"
        if task.dispatch_count > 1:
            if task.previous_status is not None:
                headers["X-CloudTasks-TaskPreviousResponse"] = str(task.previous_status)
            headers["X-CloudTasks-TaskRetryReason"] = ""
        if (who := request.authorization) is not None:
            if who.oauth:
                token = self._tokens.access_token(who.email, who.purpose)
            else:
                token = self._tokens.token(who.email, who.purpose or request.url)
            headers["Authorization"] = f"Bearer {token}"
        return headers


async def _drain(response: aiohttp.ClientResponse) -> None:
    """Reads the answer to its end, so that the connection can be used again and an answer that
    breaks off counts as none. Of an endless one, no more than a megabyte."""
    seen = 0
    async for chunk in response.content.iter_any():
        seen += len(chunk)
        if seen > _MAX_ANSWER_BYTES:
            response.close()
            return


def _retry_after(response: aiohttp.ClientResponse) -> float:
    """Seconds of a Retry-After header in its number form; its date form is not emulated."""
    text = response.headers.get("Retry-After", "").strip()
    return min(float(text), _MAX_RETRY_AFTER) if text.isascii() and text.isdigit() else 0.0
