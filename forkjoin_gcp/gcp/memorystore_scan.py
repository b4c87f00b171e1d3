"""What a memory-only queue has in Valkey: a look at all of it, and its dead letters."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

from forkjoin_gcp.errors import ConfigurationError
from forkjoin_gcp.gcp.instance import Client
from forkjoin_gcp.items import DeadLetter
from forkjoin_gcp.names import Batch, Lane
from forkjoin_gcp.ports import Buried, KeyRange, Scanned

Tried = Callable[[Callable[[], Awaitable[Any]]], Awaitable[Any]]
Run = Callable[[Any, list[str], list[Any]], Awaitable[Any]]

KEYS_AT_ONCE = 1_000
"""Keys that one step of a SCAN looks at."""

_KEY = re.compile(r"fj:\{([^/{}]+)/([^/{}]+)/(\d{1,3})\}:(?:batch:([0-9a-f-]+)|dead)")
_FIELD = re.compile(rb"[0-9]{8}")


class MemorystoreScan:
    """Looks through the keys of a Valkey. Every such look goes over all keys there are."""

    def __init__(self, client: Client, tried: Tried, run: Run, script: Callable[[str], Any]):
        self._client = client
        self._tried = tried
        self._run = run
        self._scan = script("scan")

    async def versions(self) -> list[tuple[str, str]]:
        """Each queue and version that has a batch."""
        lanes = {lane for lane, _ in await self._keys("fj:{*}:batch:*")}
        return sorted({(lane.queue, lane.version) for lane in lanes})

    async def graves(self, queue: str) -> list[Lane]:
        """Each lane that has dead letters."""
        lanes = {lane for lane, _ in await self._keys(f"fj:{{{queue}/*}}:dead")}
        return sorted(lanes, key=lambda lane: (lane.version, lane.number))

    async def scan(self, wanted: KeyRange, page: int) -> AsyncIterator[list[Scanned]]:
        """Segments in key order, in lists of up to ``page``; a batch is one round trip."""
        pairs = await self._keys(f"fj:{{{wanted.queue}/{wanted.version}/*}}:batch:*")
        keys = {key: lane for lane, key in pairs if wanted.start <= key < wanted.stop}
        waiting: list[Scanned] = []
        for key in sorted(keys):
            batch = Batch.parse(wanted.queue, wanted.version, key)
            first = wanted.first if key == wanted.start else 0
            waiting += [one for one in await self._segments(batch) if one.first >= first]
            while len(waiting) >= page:
                yield waiting[:page]
                del waiting[:page]
        if waiting:
            yield waiting

    async def _segments(self, batch: Batch) -> list[Scanned]:
        answer = await self._run(self._scan, [batch.memory_key], [])
        rows = zip(answer[::4], answer[1::4], answer[2::4], answer[3::4], strict=True)
        found = [
            Scanned(batch, int(field), count, float(written), _earliest(due))
            for field, count, written, due in rows
            if _FIELD.fullmatch(field)
        ]
        return sorted(found, key=lambda one: one.first)

    async def _keys(self, pattern: str) -> list[tuple[Lane, str]]:
        """The lanes of all keys of that pattern, and their batch keys, "" for dead letters."""

        async def all_keys() -> list[bytes]:
            keys = self._client.scan_iter(match=pattern, count=KEYS_AT_ONCE)
            return [key async for key in keys]

        found = []
        for key in await self._tried(all_keys):
            match = _KEY.fullmatch(key.decode("utf-8", "replace"))
            if match is None:
                continue
            try:
                lane = Lane(match[1], match[2], int(match[3]))
                if match[4]:
                    Batch.parse(lane.queue, lane.version, match[4])
            except ConfigurationError:  # nobody here made it
                continue
            found.append((lane, match[4] or ""))
        return found


def _earliest(times: bytes) -> float:
    try:
        return min(map(float, times.split(b",")), default=0.0) if times else 0.0
    except ValueError:
        return 0.0


def dead_key(lane: Lane) -> str:
    """The hash of a lane's dead letters: item id to JSON text."""
    return f"{lane.key}:dead"


def after(ids: Sequence[bytes], last: str, limit: int) -> list[bytes]:
    """Up to ``limit`` of the ids behind ``last``, in order."""
    return sorted(each for each in ids if each > last.encode())[:limit]


def write_dead_letter(letter: DeadLetter) -> bytes:
    """The stored form of a dead letter, without its id."""
    fields = {
        "reason": letter.reason,
        "error": letter.error,
        "attempts": letter.attempts,
        "enqueued_at": letter.enqueued_at,
        "dead_at": letter.dead_at,
        "payload": letter.payload,
    }
    text = json.dumps(fields, ensure_ascii=False, separators=(",", ":"))
    return text.encode("utf-8", "replace")


def read_dead_letter(name: bytes, value: bytes) -> Buried:
    """The dead letter in a stored value, as far as it is readable: it raises nothing."""
    letter = name.decode("utf-8", "replace")
    text = value.decode("utf-8", "backslashreplace")
    try:
        fields = json.loads(text)
        found = DeadLetter(
            id=letter,
            payload=str(fields["payload"]),
            reason=str(fields["reason"]),
            error=str(fields["error"]),
            attempts=int(fields["attempts"]),
            enqueued_at=float(fields["enqueued_at"]),
            dead_at=float(fields["dead_at"]),
        )
    except (ValueError, TypeError, KeyError, ArithmeticError, RecursionError) as error:
        found = DeadLetter(letter, text, "", f"not a dead letter: {error!r}", 0, 0.0, 0.0)
    return Buried(found, hashlib.sha1(value, usedforsecurity=False).hexdigest().encode())
