"""A small Valkey in process: the commands that our scripts and clients use, and no other.

Atomic, since nothing is awaited in a step. Everything is lost with ``flush``, rolled back with
``fail_over``. Every reply is compared with a real Valkey's in tests/contracts.
"""

from __future__ import annotations

import asyncio
import copy
import hashlib
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from random import Random
from typing import Any

from forkjoin_gcp.testing.simulation.lua import (
    LuaScripts,
    ReplyError,
    Status,
    UnknownScriptError,
    shared_scripts,
)

OK = Status("OK")
Hash = dict[bytes, bytes]
List = deque[bytes]
WRONG_TYPE = "WRONGTYPE Operation against a key holding the wrong kind of value"
NO_INTEGER = "ERR value is not an integer or out of range"
_PRESENT = ("NX", "XX", "GT", "LT")


@dataclass
class Entry:
    """A key's value, and when it ends: Unix time in ms, or None."""

    value: Hash | List | bytes
    ends_at: float | None = None


class SimulatedValkey:
    """One server. ``clock`` gives Unix seconds; ``refuses_info`` as an ACL may."""

    def __init__(
        self, clock: Callable[[], float], random: Random, scripts: LuaScripts | None = None
    ) -> None:
        self._clock = clock
        self._random = random
        self._scripts = scripts or shared_scripts()
        self.scripts: dict[str, bytes] = {}
        self._keys: dict[bytes, Entry] = {}
        self._blocked: dict[bytes, deque[asyncio.Future[Any]]] = {}
        self._commands: dict[str, Callable[[Sequence[bytes]], Any]] = {
            name.removeprefix("_do_").upper(): getattr(self, name)
            for name in dir(self)
            if name.startswith("_do_")
        }
        self.replication_id = self._new_replication_id()
        self.refuses_info = False

    # What happens to a server

    def flush(self) -> None:
        """Lose everything."""
        self._keys.clear()

    def evict(self, key: bytes) -> None:
        """Lose one key."""
        self._keys.pop(key, None)

    def snapshot(self) -> dict[bytes, Entry]:
        """What a replica has that is in step now."""
        return copy.deepcopy(self._keys)

    def fail_over(self, replica: dict[bytes, Entry]) -> None:
        """The replica is primary from now on; who was blocked is told nothing."""
        self._keys = replica
        self.scripts.clear()
        self._blocked.clear()
        self.replication_id = self._new_replication_id()

    def keys(self) -> dict[bytes, float | None]:
        """All keys that have not ended, sorted, and the ms that each has left."""
        for key in list(self._keys):
            self._find(key)
        now = self._now_ms()
        return {
            key: None if entry.ends_at is None else entry.ends_at - now
            for key, entry in sorted(self._keys.items())
        }

    def endless(self, keys: Sequence[bytes]) -> list[bytes]:
        """Those of ``keys`` that exist and would never end."""
        held = ((key, self._keys.get(key)) for key in keys)
        return [key for key, entry in held if entry is not None and entry.ends_at is None]

    def _new_replication_id(self) -> bytes:
        return b"%040x" % self._random.getrandbits(160)

    # Commands

    def execute(self, *words: bytes) -> Any:
        """Do a command. Raises ReplyError."""
        name = words[0].decode().upper()
        command = self._commands.get(name)
        if command is None:
            raise ReplyError(f"ERR unknown command '{name}'")
        try:
            return command(words[1:])
        except (IndexError, ValueError):
            raise ReplyError(f"ERR wrong number of arguments for '{name.lower()}'") from None

    def know(self, script: bytes | str) -> bytes:
        """The text of a script that is sent, or asked for by its digest. Raises ReplyError."""
        if isinstance(script, bytes):
            self.scripts[hashlib.sha1(script, usedforsecurity=False).hexdigest()] = script
            return script
        if script not in self.scripts:
            raise UnknownScriptError("NOSCRIPT No matching script")
        return self.scripts[script]

    def evaluate(self, text: bytes, keys: Sequence[bytes], args: Sequence[bytes]) -> Any:
        """Run a script. It may touch the keys it was given, and no other. Raises ReplyError."""
        declared = frozenset(keys)

        def call(words: Sequence[bytes]) -> Any:
            name = words[0].upper()
            touched = words[1:2] if name not in (b"DEL", b"EXISTS") else words[1:]
            if name not in (b"TIME", b"INFO", b"PING") and not declared.issuperset(touched):
                raise ReplyError("ERR Script attempted to access a non local key")
            return self.execute(*words)

        return self._scripts.run(text, keys, args, call)

    def block_pop(self, key: bytes) -> Any:
        """BLPOP without a time limit: [key, element], or a future of it."""
        entry = self._list(key)
        if entry:
            return [key, self._pop(key, entry)]
        waiting: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._blocked.setdefault(key, deque()).append(waiting)
        return waiting

    def unblock(self, key: bytes, waiting: asyncio.Future[Any]) -> None:
        """The time limit of a BLPOP is over."""
        queue = self._blocked.get(key)
        if queue is not None and waiting in queue:
            queue.remove(waiting)
        if not waiting.done():
            waiting.set_result(None)

    # Keys

    def _now_ms(self) -> float:
        return self._clock() * 1000

    def _find(self, key: bytes) -> Entry | None:
        entry = self._keys.get(key)
        if entry is not None and entry.ends_at is not None and entry.ends_at <= self._now_ms():
            del self._keys[key]
            return None
        return entry

    def _hash(self, key: bytes, *, make: bool = False) -> Hash:
        entry = self._find(key)
        if entry is None:
            made: Hash = {}
            if make:
                self._keys[key] = Entry(made)
            return made
        if not isinstance(entry.value, dict):
            raise ReplyError(WRONG_TYPE)
        return entry.value

    def _list(self, key: bytes) -> List:
        entry = self._find(key)
        if entry is None:
            return deque()
        if not isinstance(entry.value, deque):
            raise ReplyError(WRONG_TYPE)
        return entry.value

    def _pop(self, key: bytes, elements: List) -> bytes:
        element = elements.popleft()
        if not elements:
            del self._keys[key]
        return element

    def _do_del(self, words: Sequence[bytes]) -> int:
        _at_least(words, 1)
        found = [key for key in words if self._find(key) is not None]
        for key in set(found):
            del self._keys[key]
        return len(set(found))

    def _do_exists(self, words: Sequence[bytes]) -> int:
        _at_least(words, 1)
        return sum(self._find(key) is not None for key in words)

    def _do_pexpire(self, words: Sequence[bytes]) -> int:
        return self._expire(words, self._now_ms() + _integer(words[1]))

    def _do_pexpireat(self, words: Sequence[bytes]) -> int:
        return self._expire(words, _integer(words[1]))

    def _expire(self, words: Sequence[bytes], at: float) -> int:
        options = {word.decode().upper() for word in words[2:]}
        if options - set(_PRESENT):
            raise ReplyError("ERR Unsupported option " + sorted(options - set(_PRESENT))[0])
        entry = self._find(words[0])
        if entry is None:
            return 0
        ends_at = entry.ends_at
        if (
            ("NX" in options and ends_at is not None)
            or ("XX" in options and ends_at is None)
            or ("GT" in options and (ends_at is None or at <= ends_at))
            or ("LT" in options and ends_at is not None and at >= ends_at)
        ):
            return 0
        entry.ends_at = at
        self._find(words[0])
        return 1

    def _do_pttl(self, words: Sequence[bytes]) -> int:
        entry = self._find(words[0])
        if entry is None:
            return -2
        return -1 if entry.ends_at is None else int(entry.ends_at - self._now_ms())

    def _do_scan(self, words: Sequence[bytes]) -> list[Any]:
        """Always all that match, in one step: SCAN cursor MATCH pattern COUNT count."""
        if len(words) != 5 or words[1].upper() != b"MATCH" or words[3].upper() != b"COUNT":
            raise ReplyError("ERR syntax error")
        pattern = words[2].decode().replace("[", "[[]")
        names = [key for key in self.keys() if fnmatchcase(key.decode(), pattern)]
        return [b"0", names]

    # Strings

    def _do_get(self, words: Sequence[bytes]) -> bytes | None:
        entry = self._find(words[0])
        if entry is None:
            return None
        if not isinstance(entry.value, bytes):
            raise ReplyError(WRONG_TYPE)
        return entry.value

    def _do_set(self, words: Sequence[bytes]) -> Status | None:
        key, value, options = words[0], words[1], [word.upper() for word in words[2:]]
        ends_at = None
        if b"PX" in options:
            at = options.index(b"PX")
            milliseconds = _integer(options[at + 1])
            if milliseconds <= 0:
                raise ReplyError("ERR invalid expire time in 'set' command")
            ends_at = self._now_ms() + milliseconds
            del options[at : at + 2]
        if any(option not in (b"NX", b"XX") for option in options) or len(options) > 1:
            raise ReplyError("ERR syntax error")
        exists = self._find(key) is not None
        if (b"NX" in options and exists) or (b"XX" in options and not exists):
            return None
        self._keys[key] = Entry(value, ends_at)
        return OK

    # Hashes

    def _do_hset(self, words: Sequence[bytes]) -> int:
        pairs = words[1:]
        if not pairs or len(pairs) % 2:
            raise ReplyError("ERR wrong number of arguments for 'hset' command")
        held = self._hash(words[0], make=True)
        before = len(held)
        held.update(zip(pairs[::2], pairs[1::2], strict=True))
        return len(held) - before

    def _do_hsetnx(self, words: Sequence[bytes]) -> int:
        key, field, value = words
        held = self._hash(key, make=True)
        if field in held:
            return 0
        held[field] = value
        return 1

    def _do_hget(self, words: Sequence[bytes]) -> bytes | None:
        return self._hash(words[0]).get(words[1])

    def _do_hmget(self, words: Sequence[bytes]) -> list[bytes | None]:
        _at_least(words, 2)
        held = self._hash(words[0])
        return [held.get(field) for field in words[1:]]

    def _do_hgetall(self, words: Sequence[bytes]) -> list[bytes]:
        return [text for pair in self._hash(words[0]).items() for text in pair]

    def _do_hkeys(self, words: Sequence[bytes]) -> list[bytes]:
        return list(self._hash(words[0]))

    def _do_hlen(self, words: Sequence[bytes]) -> int:
        return len(self._hash(words[0]))

    def _do_hexists(self, words: Sequence[bytes]) -> int:
        return int(words[1] in self._hash(words[0]))

    def _do_hdel(self, words: Sequence[bytes]) -> int:
        _at_least(words, 2)
        held = self._hash(words[0])
        deleted = sum(held.pop(field, None) is not None for field in words[1:])
        if deleted and not held:
            del self._keys[words[0]]
        return deleted

    def _do_hincrby(self, words: Sequence[bytes]) -> int:
        key, field, by = words
        amount = _integer(by)
        held = self._hash(key, make=True)
        try:
            total = _integer(b"%d" % (_integer(held.get(field, b"0")) + amount))
        except ReplyError:
            raise ReplyError("ERR hash value is not an integer, or would overflow") from None
        held[field] = b"%d" % total
        return int(held[field])

    # Lists

    def _do_rpush(self, words: Sequence[bytes]) -> int:
        key, elements = words[0], list(words[1:])
        if not elements:
            raise ReplyError("ERR wrong number of arguments for 'rpush' command")
        held = self._list(key)
        length = len(held) + len(elements)
        held.extend(elements)
        waiting = self._blocked.get(key, deque())
        while waiting and held:
            waiting.popleft().set_result([key, held.popleft()])
        if held and self._find(key) is None:
            self._keys[key] = Entry(held)
        elif not held:
            self._keys.pop(key, None)
        return length

    def _do_lpop(self, words: Sequence[bytes]) -> bytes | None:
        held = self._list(words[0])
        return self._pop(words[0], held) if held else None

    # The server

    def _do_time(self, words: Sequence[bytes]) -> list[bytes]:
        micros = int(self._clock() * 1_000_000)
        return [b"%d" % (micros // 1_000_000), b"%d" % (micros % 1_000_000)]

    def _do_info(self, words: Sequence[bytes]) -> bytes:
        if self.refuses_info:
            raise ReplyError("NOPERM User default has no permissions to run the 'info' command")
        return b"# Replication\r\nrole:master\r\nmaster_replid:%b\r\n" % self.replication_id

    def _do_ping(self, words: Sequence[bytes]) -> Status:
        return Status("PONG")

    def _do_flushall(self, words: Sequence[bytes]) -> Status:
        self.flush()
        return OK


def _at_least(words: Sequence[bytes], count: int) -> None:
    if len(words) < count:
        raise IndexError


def _integer(word: bytes) -> int:
    try:
        number = int(word)
    except ValueError:
        raise ReplyError(NO_INTEGER) from None
    if word != b"%d" % number or not -(2**63) <= number < 2**63:
        raise ReplyError(NO_INTEGER)
    return number
