"""The part of redis-py's asyncio client that this package uses, over a simulated network."""

from __future__ import annotations

import asyncio
import functools
import re
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from forkjoin_gcp.gcp import scripts
from forkjoin_gcp.testing.simulation.lua import UnknownScriptError
from forkjoin_gcp.testing.simulation.network import Link, Network
from forkjoin_gcp.testing.simulation.valkey import SimulatedValkey

_scripts: Any = scripts

Patch = Callable[[bytes], bytes]

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

    async def eval(self, text: str, key_count: int, *words: Any) -> Any:
        return await self._run(text.encode(), key_count, words)

    async def evalsha(self, digest: str, key_count: int, *words: Any) -> Any:
        """Raises redis-py's NoScriptError where the server does not know the script."""
        try:
            return await self._run(digest, key_count, words)
        except UnknownScriptError as error:
            raise _scripts.NoScriptError(str(error)) from error

    async def _run(self, script: bytes | str, key_count: int, words: Sequence[Any]) -> Any:
        """Run a script that is given as its text, or as its digest."""
        encoded = [_bytes(word) for word in words]
        keys, args = encoded[:key_count], encoded[key_count:]

        def evaluate() -> Any:
            text = self._server.know(script)
            reply = self._server.evaluate(self._patch(text), keys, args)
            if self._watch is not None:
                self._watch(name_of(text), keys, args, reply)
            return reply

        known = script if isinstance(script, bytes) else self._server.scripts.get(script, b"")
        return await self._call(name_of(known), evaluate)

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


@functools.cache
def name_of(text: bytes) -> str:
    """What a script does, from its last line, as ``release+reserve``."""
    last = text.rstrip().rpartition(b"\n")[2].decode()
    return "+".join(re.findall(r"\b(\w+)\(", last)) or "script"


def _bytes(word: Any) -> bytes:
    return word if isinstance(word, bytes) else str(word).encode()
