"""A connection to a service whose answers can be withheld, so that a test may lose one."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable


class LossyProxy:
    """Forwards TCP. ``withhold`` keeps back all that the service says; ``cut`` then drops the
    connections with it. Those made afterwards are whole."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._silent = False
        self._writers: list[asyncio.StreamWriter] = []
        self._tasks: set[asyncio.Task[None]] = set()

    def withhold(self) -> None:
        self._silent = True

    def cut(self) -> None:
        self._silent = False
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    async def lose_answer(
        self, call: Awaitable[object], done: Callable[[], Awaitable[object]]
    ) -> object:
        """Make ``call`` lose its answer once ``done`` says that the service has taken the step."""
        self.withhold()
        task = asyncio.ensure_future(call)
        async with asyncio.timeout(10):
            while not await done():
                assert not task.done(), "there was an answer"
                await asyncio.sleep(0.005)
        self.cut()
        return await task

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(*self._target)
        self._writers += [writer, back]
        for source, sink, loses in ((reader, back, False), (there, writer, True)):
            task = asyncio.ensure_future(self._pump(source, sink, loses))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pump(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, loses: bool
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(65536):
                if loses and self._silent:
                    continue
                sink.write(data)
                await sink.drain()
        sink.close()

    async def end(self) -> None:
        self.cut()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@contextlib.asynccontextmanager
async def lossy(address: str) -> AsyncIterator[tuple[LossyProxy, str]]:
    """A proxy of ``host:port``, and its own address."""
    host, _, port = address.rpartition(":")
    proxy = LossyProxy(host, int(port))
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    try:
        yield proxy, f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        await proxy.end()
