"""Runs Valkey's scripts: the real Lua text, on PUC Lua 5.1 as in Valkey, in this process."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from typing import Any

from lupa import lua51

Call = Callable[[Sequence[bytes]], Any]
"""Does one command; returns a reply, raises ReplyError."""


class ReplyError(Exception):
    """An error reply, as ``ERR unknown command``."""


class UnknownScriptError(ReplyError):
    """NOSCRIPT: a script that was asked for by its digest, and never sent."""


class Status(str):
    """A status reply, as ``OK``."""

    __slots__ = ()


_PRELUDE = """
local call, pcall_, decode = ...
redis = {
  call = function(...) return call(...) end,
  pcall = function(...) return pcall_(...) end,
  error_reply = function(text) return {err = text} end,
  status_reply = function(text) return {ok = text} end,
}
cjson = {decode = decode}
KEYS, ARGV = {}, {}
setmetatable(_G, {
  __newindex = function(_, name)
    error('Attempt to modify a readonly table: ' .. tostring(name), 2)
  end,
  __index = function(_, name)
    error('Script attempted to access nonexistent global variable ' .. tostring(name), 2)
  end,
})
return function(script, keys, argv)
  KEYS, ARGV = keys, argv
  return script()
end
"""


class LuaScripts:
    """Compiles and runs scripts. One can serve any number of servers, one at a time."""

    def __init__(self) -> None:
        self._lua = lua51.LuaRuntime(encoding=None, register_eval=False, register_builtins=False)
        self._call: Call | None = None
        self._start = self._lua.execute(
            _PRELUDE.encode(), self._called, self._pcalled, self._decoded
        )
        self._compiled: dict[bytes, Any] = {}

    def run(self, text: bytes, keys: Sequence[bytes], args: Sequence[bytes], call: Call) -> Any:
        """What the script returns, as a reply. Raises ReplyError."""
        table = self._lua.table_from
        self._call = call
        try:
            script = self._compiled.get(text)
            if script is None:
                script = self._compiled[text] = self._lua.compile(text)
            result = self._start(script, table(keys), table(args))
        except lua51.LuaError as error:
            raise ReplyError(f"ERR script: {error}") from error
        return self._reply(result)

    def _called(self, *words: Any) -> Any:
        assert self._call is not None
        return self._value(self._call([_word(word) for word in words]))

    def _pcalled(self, *words: Any) -> Any:
        try:
            return self._called(*words)
        except ReplyError as error:
            return self._lua.table_from({b"err": str(error).encode()})

    def _value(self, reply: Any) -> Any:
        """A reply as Lua sees it."""
        if reply is None:
            return False
        if isinstance(reply, Status):
            return self._lua.table_from({b"ok": reply.encode()})
        if isinstance(reply, list):
            return self._lua.table_from([self._value(each) for each in reply])
        return reply

    def _reply(self, value: Any) -> Any:
        """What Lua returned as a reply."""
        if value is None or value is False:
            return None
        if value is True:
            return 1
        if isinstance(value, int | float):
            number = int(value)
            return number if -(2**63) <= number < 2**63 else -(2**63)  # as the cast in C
        if isinstance(value, bytes):
            return value
        if lua51.lua_type(value) != "table":
            return None
        error, status = value[b"err"], value[b"ok"]
        if error is not None:
            raise ReplyError(error.decode())
        if status is not None:
            return Status(status.decode())
        replies = []
        for at in range(1, len(value) + 1):
            each = value[at]
            if each is None:
                break
            replies.append(self._reply(each))
        return replies

    def _decoded(self, text: bytes) -> Any:
        """cjson.decode, which raises for what is no JSON."""
        return self._json(json.loads(text))

    def _json(self, value: Any) -> Any:
        if isinstance(value, str):
            return value.encode()
        if isinstance(value, list):
            return self._lua.table_from([self._json(each) for each in value])
        if isinstance(value, dict):
            pairs = {key.encode(): self._json(each) for key, each in value.items()}
            return self._lua.table_from(pairs)
        return value


@functools.cache
def shared_scripts() -> LuaScripts:
    """One for all servers of this process: compiling takes longer than running."""
    return LuaScripts()


def _word(word: Any) -> bytes:
    """A command's word. Of a number, as Valkey does, the shortest text that reads the same."""
    if isinstance(word, bytes):
        return word
    if isinstance(word, bool) or not isinstance(word, int | float):
        raise ReplyError("ERR Lua redis lib command arguments must be strings or integers")
    return repr(word).encode()
