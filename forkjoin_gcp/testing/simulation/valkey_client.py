"""The part of redis-py's asyncio client that this package uses, over a simulated network."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

from forkjoin_gcp.testing.simulation.network import Link, Network
from forkjoin_gcp.testing.simulation.valkey import SimulatedValkey

Patch = Callable[[str], str]

Watch = Callable[[str, Sequence[bytes], Sequence[bytes], Any], None]
"""Is told of each script when it has run: its name, keys, arguments and reply."""


class SimulatedValkeyClient:
    """Repeats nothing, gives up after ``socket_timeout`` seconds, and returns bytes.

    What goes wrong on the way is a builtin ConnectionError or TimeoutError, which are OSErrors as
    a real socket's; what the server refuses is a ReplyError, which nobody expects. ``patch`` may
    change a script's text.
    """

    def __init__(
        self,
        server: SimulatedValkey,
        network: Network,
        link: Link,
        socket_timeout: float,
        patch: Patch = lambda text: text,
        watch: Watch | None = None,
    ) -> None:
        self._server = server
        self._network = network
        self._link = link
        self._timeout = socket_timeout
        self._patch = patch
        self._watch = watch

    def register_script(self, text: str) -> Callable[..., Awaitable[Any]]:
        patched = self._patch(text).encode()
        what = "+".join(re.findall(r"\b(\w+)\(", text.rstrip().rpartition("\n")[2])) or "script"

        async def run(keys: Sequence[Any] = (), args: Sequence[Any] = (), **_: Any) -> Any:
            encoded = [_bytes(key) for key in keys], [_bytes(arg) for arg in args]

            def evaluate() -> Any:
                reply = self._server.evaluate(patched, *encoded)
                if self._watch is not None:
                    self._watch(what, *encoded, reply)
                return reply

            return await self._call(what, evaluate)

        return run

    async def blpop(self, keys: Sequence[str], timeout: float) -> Any:  # noqa: ASYNC109
        (key,) = (_bytes(key) for key in keys)
        loop = asyncio.get_running_loop()

        def block() -> Any:
            found = self._server.block_pop(key)
            if isinstance(found, asyncio.Future):
                loop.call_later(timeout, self._server.unblock, key, found)
            return found

        return await self._call("BLPOP", block)

    async def execute_command(self, *words: Any) -> Any:
        encoded = [_bytes(word) for word in words]
        return await self._call(str(words[0]), lambda: self._server.execute(*encoded))

    async def ping(self) -> bool:
        await self.execute_command("PING")
        return True

    async def set(self, key: str, value: str, *, px: int) -> None:
        await self.execute_command("SET", key, value, "PX", px)

    async def scan_iter(self, match: str, count: int) -> AsyncIterator[bytes]:
        """All keys in one step, however many ``count`` asks for."""
        for key in (await self.execute_command("SCAN", 0, "MATCH", match, "COUNT", count))[1]:
            yield key

    async def hkeys(self, key: str) -> list[bytes]:
        found: list[bytes] = await self.execute_command("HKEYS", key)
        return found

    async def hmget(self, key: str, fields: Sequence[Any]) -> list[bytes | None]:
        found: list[bytes | None] = await self.execute_command("HMGET", key, *fields)
        return found

    async def aclose(self) -> None:
        return

    async def _call(self, what: str, action: Callable[[], Any]) -> Any:
        return await self._network.call(self._link, what, action, self._timeout)


def _bytes(word: Any) -> bytes:
    return word if isinstance(word, bytes) else str(word).encode()
