"""The embedded Firestore as a whole: gRPC, HTTP and, if wanted, what is kept on disk."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

import grpc

from .commits import Commits
from .front import Front
from .locks import LOCK_SECONDS, Locks
from .reads import Reads
from .service import FirestoreService
from .state import FirestoreState
from .storage import Storage

MAX_MESSAGE_BYTES = 32 << 20
"""What gRPC lets through, so that the service can refuse more than 10 MiB in Firestore's words."""

_GRPC_OPTIONS = (
    # Without this two servers could listen on one port and share its calls.
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", -1),
    # By default gRPC cancels calls at random once 1,000 wait.
    ("grpc.server.max_pending_requests", 1_000_000),
    ("grpc.server.max_pending_requests_hard_limit", 1_000_000),
)


class EmbeddedFirestore:
    """Firestore on this machine, in this process. Use as an async context manager.

    Serves gRPC and HTTP on one port while the block runs; 0 takes a free one. Without `directory`
    what it holds ends with it; with one, everything it has answered for survives its end, also by
    SIGKILL (not a power failure). `clock` gives seconds since the epoch. A write waits at most
    `lock_seconds` for a transaction that has read what it changes.

    Entering raises OSError when the port is taken, or the directory is in use or unreadable.
    """

    def __init__(
        self,
        port: int = 0,
        *,
        host: str = "127.0.0.1",
        directory: Path | None = None,
        clock: Callable[[], float] = time.time,
        lock_seconds: float = LOCK_SECONDS,
    ) -> None:
        self._host = host
        self._port = port
        self._directory = directory
        self.state = FirestoreState(clock)
        self._locks = Locks(self.state, lock_seconds)
        self._storage: Storage | None = None
        self._addresses: tuple[str, str] | None = None
        self._running: contextlib.AsyncExitStack | None = None

    @property
    def address(self) -> str:
        """host:port of gRPC and HTTP: what FIRESTORE_EMULATOR_HOST takes."""
        return self._address(0)

    @property
    def grpc_address(self) -> str:
        """host:port of gRPC alone, which spares a call the way through the common port."""
        return self._address(1)

    def _address(self, side: int) -> str:
        if self._addresses is None:
            raise RuntimeError("the embedded Firestore is not running")
        return self._addresses[side]

    async def __aenter__(self) -> EmbeddedFirestore:
        async with contextlib.AsyncExitStack() as stack:
            if self._directory is not None:
                self._storage = Storage(self._directory, self.state)
                stack.push_async_callback(self._storage.close)
            grpc_port = await self._serve_grpc(stack)
            front = Front(self._host, grpc_port, self._clear)
            port = await front.start(self._port)
            stack.push_async_callback(front.close)
            self._addresses = (f"{self._host}:{port}", f"{self._host}:{grpc_port}")
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

    async def _serve_grpc(self, stack: contextlib.AsyncExitStack) -> int:
        server = grpc.aio.server(options=_GRPC_OPTIONS)
        commits, reads = Commits(self.state, self._locks), Reads(self.state, self._locks)
        service = FirestoreService(commits, reads, self._settled)
        server.add_generic_rpc_handlers((service.handlers(),))
        port = int(server.add_insecure_port(f"{self._host}:0"))
        await server.start()
        stack.push_async_callback(server.stop, None)
        return port

    async def _settled(self) -> None:
        if self._storage is None:
            self.state.changes.clear()
        else:
            await self._storage.keep(self.state.changes)

    async def _clear(self, database: str) -> None:
        """Raises Refusal for what is no database."""
        self.state.database(database).clear()
        self._locks.released()
        await self._settled()
