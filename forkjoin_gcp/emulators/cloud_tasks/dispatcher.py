"""Sends due tasks to their targets. Driven by events: one timer a queue, no polling."""

from __future__ import annotations

import asyncio
import logging
from types import TracebackType

import aiohttp
from multidict import CIMultiDict

from .ledger import Dispatch, Ledger
from .queues import Attempt, HttpRequest, Outcome, Queue, Task, Verdict, microseconds
from .state import CloudTasksState
from .tokens import TokenSigner

logger = logging.getLogger(__name__)

USER_AGENT = "Google-Cloud-Tasks"
# Shorter than the 2 s after which gunicorn closes an idle connection: a request sent on a
# connection that the target is just closing would count as a failed attempt.
_KEEPALIVE = 1.0
_MAX_ANSWER_BYTES = 1_048_576
_MAX_RETRY_AFTER = 3_600.0
_REPLACED_HEADERS = frozenset({"host", "content-length", "transfer-encoding", "user-agent"})
_RESERVED_PREFIXES = ("x-google-", "x-appengine-", "x-cloudtasks-")


class Dispatcher:
    """Takes due tasks from their queues, sends them and books how it went.

    Use as an async context manager: leaving it abandons what is in flight, as the end of the
    service would; the targets see a closed connection.
    """

    def __init__(self, state: CloudTasksState, tokens: TokenSigner, ledger: Ledger) -> None:
        self._state = state
        self._tokens = tokens
        self._ledger = ledger
        self._timers: dict[str, tuple[float, asyncio.TimerHandle]] = {}
        self._attempts: set[asyncio.Task[None]] = set()
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Dispatcher:
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
        for _, timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        session, self._session = self._session, None
        for attempt in self._attempts:
            attempt.cancel()
        await asyncio.gather(*self._attempts, return_exceptions=True)
        if session is not None:
            await session.close()

    def wake(self, queue: Queue) -> None:
        """Sends all that may go now and sets the queue's timer for the next moment something
        may. To be called whenever the queue changed."""
        if self._session is None:
            return
        now = self._state.clock()
        while (task := queue.take_due(now)) is not None:
            self._start(queue, task)
        self._set_timer(queue, queue.wake_at(now), now)

    def run_now(self, queue: Queue, task_id: str) -> Task:
        """Sends a task at once, past all limits. Raises Refusal NOT_FOUND."""
        task = queue.take(task_id, self._state.clock())
        self._start(queue, task)
        return task

    async def quiet(self) -> None:
        """Returns when no attempt is in flight."""
        while self._attempts:
            await asyncio.wait(self._attempts)

    def forget(self, queue: Queue) -> None:
        """Drops the timer of a deleted queue."""
        timer = self._timers.pop(queue.name, None)
        if timer is not None:
            timer[1].cancel()

    def _set_timer(self, queue: Queue, wake_at: float | None, now: float) -> None:
        present = self._timers.get(queue.name)
        if present is not None:
            if present[0] == wake_at:
                return
            present[1].cancel()
            del self._timers[queue.name]
        if wake_at is not None:
            handle = asyncio.get_running_loop().call_later(
                max(0.0, wake_at - now), self._on_timer, queue
            )
            self._timers[queue.name] = wake_at, handle

    def _on_timer(self, queue: Queue) -> None:
        self._timers.pop(queue.name, None)
        self.wake(queue)

    def _start(self, queue: Queue, task: Task) -> None:
        assert task.last_attempt is not None
        self._ledger.count(queue.name, "dispatches")
        headers = self._headers(queue, task)
        run = asyncio.get_running_loop().create_task(
            self._attempt(queue, task, task.last_attempt, headers, task.dispatch_count - 1)
        )
        self._attempts.add(run)
        run.add_done_callback(self._attempts.discard)

    async def _attempt(
        self,
        queue: Queue,
        task: Task,
        attempt: Attempt,
        headers: CIMultiDict[str],
        retry_count: int,
    ) -> None:
        outcome = await self._send(task.request, headers, task.dispatch_deadline)
        now = self._state.clock()
        verdict = queue.finish(task, attempt, outcome, now)
        self._ledger.record(
            Dispatch(
                name=task.name,
                started=attempt.dispatch_time,
                finished=now,
                status=outcome.status,
                error=outcome.error,
                retry_count=retry_count,
            ),
        )
        self._ledger.count(queue.name, verdict.value)
        if verdict is Verdict.EXHAUSTED:
            logger.warning("gave up %s after %d attempts", task.name, task.dispatch_count)
        if self._state.queues.get(queue.name) is queue:
            self.wake(queue)

    async def _send(
        self, request: HttpRequest, headers: CIMultiDict[str], deadline: float
    ) -> Outcome:
        """Never raises but for cancellation: whatever a target does is an outcome."""
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

    def _headers(self, queue: Queue, task: Task) -> CIMultiDict[str]:
        request = task.request
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
        if request.oidc_email:
            token = self._tokens.token(request.oidc_email, request.oidc_audience or request.url)
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
