"""One port for both protocols: gRPC is handed on, HTTP/1 is answered here.

What a connection begins with tells them apart. Handing on costs the server about 5 % of the time
of a bulk write (100 documents of 1 KB a call).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import Awaitable, Callable
from urllib.parse import unquote

from .refusals import Refusal

_HTTP2 = b"PRI * HTTP/2.0"
_MAX_HEAD = 65_536
_RESET = re.compile(r"/emulator/v1/(projects/[^/]+/databases/[^/]+)/documents/?")

Clear = Callable[[str], Awaitable[None]]


class Front:
    """Listens where everyone calls; gRPC itself listens on `grpc_port` of the same host."""

    def __init__(self, host: str, grpc_port: int, clear: Clear) -> None:
        self._host = host
        self._grpc_port = grpc_port
        self._clear = clear
        self._server: asyncio.Server | None = None
        self.connections: set[asyncio.BaseTransport] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self, port: int) -> int:
        """The port it listens on. Raises OSError."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Incoming(self), self._host, port)
        return int(self._server.sockets[0].getsockname()[1])

    async def close(self) -> None:
        """Ends all connections."""
        if self._server is not None:
            self._server.close()
        for transport in list(self.connections):
            transport.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def hand_on(self, incoming: _Incoming) -> None:
        """Joins a connection to the gRPC server."""
        self._run(self._connect(incoming))

    async def _connect(self, incoming: _Incoming) -> None:
        loop = asyncio.get_running_loop()
        try:
            await loop.create_connection(
                lambda: _Outgoing(self, incoming), self._host, self._grpc_port
            )
        except OSError:
            incoming.transport.abort()

    def answer(self, incoming: _Incoming, head: bytes) -> None:
        """Answers one HTTP/1 request and closes."""
        self._run(self._answer(incoming, head))

    async def _answer(self, incoming: _Incoming, head: bytes) -> None:
        method, _, rest = head.partition(b"\r\n")[0].decode("latin-1").partition(" ")
        target = rest.partition(" ")[0].partition("?")[0]
        status, kind, body = await self._respond(method, target)
        incoming.transport.write(
            f"HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\n"
            "connection: close\r\n\r\n".encode()
            + (b"" if method == "HEAD" else body)
        )
        incoming.transport.close()

    async def _respond(self, method: str, target: str) -> tuple[str, str, bytes]:
        if method in ("GET", "HEAD") and target == "/":
            return "200 OK", "text/plain", b"Ok\n"
        found = _RESET.fullmatch(unquote(target))
        if method == "DELETE" and found:
            try:
                await self._clear(found[1])
            except Refusal as refusal:
                return "400 Bad Request", "application/json", _error(400, refusal.message)
            return "200 OK", "application/json", b"{\n}\n"
        what = f"The embedded Firestore has nothing at {method} {target}."
        return "404 Not Found", "application/json", _error(404, what)

    def _run(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _error(code: int, message: str) -> bytes:
    return json.dumps({"error": {"code": code, "message": message}}).encode() + b"\n"


class _Side(asyncio.Protocol):
    """One end of a connection that is handed on."""

    transport: asyncio.Transport

    def __init__(self, front: Front) -> None:
        self._front = front
        self.peer: _Side | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self._front.connections.add(transport)

    def data_received(self, data: bytes) -> None:
        assert self.peer is not None
        self.peer.transport.write(data)

    def pause_writing(self) -> None:
        if self.peer is not None:
            self.peer.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.peer is not None:
            with contextlib.suppress(RuntimeError):
                self.peer.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self._front.connections.discard(self.transport)
        if self.peer is not None:
            self.peer.transport.close()


class _Incoming(_Side):
    """A caller, of whom it is not known yet what they speak."""

    def __init__(self, front: Front) -> None:
        super().__init__(front)
        self._head = b""
        self._decided = False

    def data_received(self, data: bytes) -> None:
        if self.peer is not None:
            self.peer.transport.write(data)
            return
        self._head += data
        if self._decided:
            return
        if self._head.startswith(_HTTP2):
            self._decided = True
            self.transport.pause_reading()
            self._front.hand_on(self)
        elif not _HTTP2.startswith(self._head[: len(_HTTP2)]):
            if b"\r\n\r\n" in self._head:
                self._decided = True
                self._front.answer(self, self._head)
            elif len(self._head) > _MAX_HEAD:
                self.transport.abort()

    def joined(self, peer: _Side) -> None:
        """Sends what came so far, and all that comes."""
        self.peer = peer
        peer.transport.write(self._head)
        self._head = b""
        if self.transport.is_closing():
            peer.transport.close()
        else:
            self.transport.resume_reading()


class _Outgoing(_Side):
    """The way to the gRPC server."""

    def __init__(self, front: Front, incoming: _Incoming) -> None:
        super().__init__(front)
        self._incoming = incoming

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.peer = self._incoming
        self._incoming.joined(self)
