"""The emulator as a whole: the gRPC side, the HTTP side and the dispatcher on one event loop."""

from __future__ import annotations

import asyncio
import contextlib
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import grpc
from aiohttp import web

from . import admin
from .dispatcher import Dispatcher
from .faults import Faults
from .ledger import Ledger
from .operations import Operations
from .sender import Sender
from .service import CloudTasksService
from .sqlite_journal import SqliteJournal
from .state import Clock, CloudTasksState
from .tokens import TokenSigner

_SIGNING_KEY = "signing key"
_GRPC_OPTIONS = (
    # Without this two emulators could listen on one port and share its calls.
    ("grpc.so_reuseport", 0),
    # By default gRPC cancels calls at random once 1,000 wait. The service would take them.
    ("grpc.server.max_pending_requests", 1_000_000),
    ("grpc.server.max_pending_requests_hard_limit", 1_000_000),
)


class CloudTasksEmulator:
    """Cloud Tasks on this machine.

    Use as an async context manager; it serves while the block runs. Port 0 takes a free one.
    What it holds ends with it; with `data` it is kept in that directory instead, and the next
    emulator on it goes on from there, even after a kill: queues, tasks and their attempts,
    tombstones, operations, the signing key. What was in flight is sent again.
    `tombstone_age` and `queue_tombstone_age` are in seconds. `clock` gives seconds since the
    epoch; timers are those of the event loop, so a virtual clock needs a loop that agrees.
    With `auto_create_queues` a missing queue comes to be when a task names it; the real service
    answers NOT_FOUND.

    Entering raises OSError when a port is taken, or `data` cannot be used or is in use.
    `faults` makes it fail on purpose. It can be entered once.
    """

    def __init__(
        self,
        grpc_port: int = 0,
        http_port: int = 0,
        tombstone_age: float = 86_400.0,
        *,
        queue_tombstone_age: float = 259_200.0,
        auto_create_queues: bool = False,
        recent_dispatches: int = 1_000,
        data: Path | None = None,
        host: str = "127.0.0.1",
        clock: Clock = time.time,
    ) -> None:
        self.state = CloudTasksState(
            clock,
            tombstone_age=tombstone_age,
            queue_tombstone_age=queue_tombstone_age,
            auto_create=auto_create_queues,
        )
        self._host = host
        self._ports = (grpc_port, http_port)
        self._ledger = Ledger(recent_dispatches)
        self._data = data
        self.faults = Faults(self.state.forget_tombstones_after)
        self._dispatcher: Dispatcher | None = None
        self._addresses: tuple[str, str] | None = None
        self._running: contextlib.AsyncExitStack | None = None

    @property
    def grpc_address(self) -> str:
        """host:port of the API. Raises RuntimeError before the emulator runs."""
        return self._address(0)

    @property
    def http_address(self) -> str:
        """host:port of the HTTP side. Raises RuntimeError before the emulator runs."""
        return self._address(1)

    @property
    def http_url(self) -> str:
        """Base URL of the HTTP side: /health, /stats, /faults, certificates, token information."""
        return f"http://{self.http_address}"

    @property
    def certs_url(self) -> str:
        """Where the key that verifies the tasks' OIDC tokens is published (a JWK Set)."""
        return self.http_url + admin.CERTS_PATH

    def stats(self, recent: int = admin.RECENT_IN_STATS, tombstones: int = 0) -> dict[str, Any]:
        """Counters in all, state and counters by queue, how often each fault happened, and, newest
        first, the `recent` last dispatches and the `tombstones` names taken last by tasks that are
        gone. Only plain JSON types."""
        queues = {
            name: {
                "tasks": len(queue.tasks),
                "in_flight": queue.in_flight,
                "tombstones": queue.tombstones,
                "paused": queue.paused,
                **self._ledger.queue_counters(name),
            }
            for name, queue in self.state.queues.items()
        }
        return {
            **self._ledger.counters(),
            "faults": dict(self.faults.counts),
            "queues": queues,
            "recent": self._ledger.recent(recent),
            "tombstones": [
                {"name": name, "gone_at": gone_at}
                for name, gone_at in self.state.buried(tombstones)
            ],
        }

    async def quiet(self) -> None:
        """Returns when no task is in flight and the outcome of each that was is booked. Tasks
        that wait for their time are not waited for."""
        if self._dispatcher is not None:
            await self._dispatcher.quiet()

    async def __aenter__(self) -> CloudTasksEmulator:
        async with contextlib.AsyncExitStack() as stack:
            operations = Operations(self.state)
            journal = self._open_journal(stack, operations)
            tokens = await self._signer(journal)
            sender = await stack.enter_async_context(Sender(tokens))
            dispatcher = Dispatcher(self.state, sender, self._ledger, self.faults)
            http_port = await self._serve_http(stack, tokens)
            service = CloudTasksService(
                self.state, dispatcher, self._ledger, self.faults, operations, journal
            )
            grpc_port = await self._serve_grpc(stack, service)
            # Last: what was due while nothing ran goes out when the rest can answer.
            self._dispatcher = await stack.enter_async_context(dispatcher)
            self._addresses = (f"{self._host}:{grpc_port}", f"{self._host}:{http_port}")
            self._running = stack.pop_all()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        running, self._running = self._running, None
        if running is not None:
            await running.aclose()

    def _open_journal(
        self, stack: contextlib.AsyncExitStack, operations: Operations
    ) -> SqliteJournal | None:
        if self._data is None:
            return None
        journal = SqliteJournal(self._data)
        stack.callback(journal.close)
        journal.restore(self.state, operations)
        self.state.keep_in(journal)
        return journal

    async def _signer(self, journal: SqliteJournal | None) -> TokenSigner:
        kept = None if journal is None else journal.secret(_SIGNING_KEY)
        # Making the key takes up to a second of pure computation.
        tokens = await asyncio.to_thread(TokenSigner, self.state.clock, kept)
        if journal is not None and kept is None:
            journal.keep_secret(_SIGNING_KEY, tokens.private_key)
        return tokens

    async def _serve_grpc(
        self, stack: contextlib.AsyncExitStack, service: CloudTasksService
    ) -> int:
        server = grpc.aio.server(options=_GRPC_OPTIONS)
        server.add_generic_rpc_handlers(service.handlers())
        try:
            port = server.add_insecure_port(f"{self._host}:{self._ports[0]}")
        except RuntimeError as error:
            raise OSError(f"cannot listen on {self._host}:{self._ports[0]}: {error}") from error
        await server.start()
        stack.push_async_callback(server.stop, None)
        return int(port)

    async def _serve_http(self, stack: contextlib.AsyncExitStack, tokens: TokenSigner) -> int:
        app = admin.application(self.faults, tokens, self.stats)
        runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=1.0)
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        await web.TCPSite(runner, self._host, self._ports[1]).start()
        return int(runner.addresses[0][1])

    def _address(self, side: int) -> str:
        if self._addresses is None:
            raise RuntimeError("the Cloud Tasks emulator is not running")
        return self._addresses[side]
