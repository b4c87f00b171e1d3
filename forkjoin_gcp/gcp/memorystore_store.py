"""WorkStore in Memorystore, for a memory-only queue: a hash a batch, an atomic script a step.

Faster than Firestore, and not durable: what the server evicts or loses in a failover is lost.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from hashlib import blake2b
from importlib import resources
from typing import Any

from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    ClusterDownError,
    ConnectionError,  # noqa: A004
    OutOfMemoryError,
    ReadOnlyError,
    RedisClusterException,
    RedisError,
    TimeoutError,  # noqa: A004
    TryAgainError,
)
from tenacity import (
    AsyncRetrying,
    retry_if_exception,
    stop_after_attempt,
    wait_random_exponential,
)

from forkjoin_gcp.config import LOCAL_HINT, VARIABLES
from forkjoin_gcp.errors import SegmentConflict, StoreRefused, StoreUnavailable
from forkjoin_gcp.gcp.instance import Client
from forkjoin_gcp.gcp.memorystore_scan import (
    MemorystoreScan,
    dead_key,
    read_dead_letter,
    write_dead_letter,
)
from forkjoin_gcp.gcp.memorystore_scan import (
    after as ids_after,
)
from forkjoin_gcp.gcp.scripts import Script
from forkjoin_gcp.gcp.stored_items import (
    DefectError,
    check_origin,
    check_shift,
    clip,
    restore_items,
)
from forkjoin_gcp.items import DeadLetter, Segment, StoredItem
from forkjoin_gcp.names import Batch, Lane, segment_id
from forkjoin_gcp.ports import Buried, Change, Counters, Found, KeyRange, Listed, Scanned

TRIES = 3
"""Of a call that got no answer. All are harmless to repeat."""

MAX_CALL_BYTES = 4_000_000
"""Of the values in one call, so that no script keeps the server from its other clients for long."""

MAX_FIELDS = 1_000
"""Asked for in one read."""

MAX_TEXT_BYTES = 900_000
"""Of the text of what is stored but no segment. Longer texts are cut."""

_HEAD = re.compile(rb'\{"revision":"[0-9a-f]+",')
_FIELD = re.compile(rb"[0-9]{8}")
_PASSING = (
    ConnectionError,
    TimeoutError,
    BusyLoadingError,
    ClusterDownError,
    ReadOnlyError,
    RedisClusterException,
    TryAgainError,
    OSError,
)


class MemorystoreStore:
    """Keeps segments in the Valkey that ``client`` is of; everything for ``expire_after`` seconds.

    The client must return bytes, have time limits of its own and repeat nothing by itself. Calls
    are counted as ``memorystore.round_trip``.
    """

    def __init__(self, client: Client, expire_after: float, counters: Counters) -> None:
        self._client = client
        self._ttl_ms = max(1, round(expire_after * 1000))
        self._counters = counters
        self._create = self._script("create")
        self._discard = self._script("discard")
        self._move = self._script("move")
        self._listing = self._script("listing")
        self._settle = self._script("settle")
        self._requeue = self._script("requeue")
        self._purge = self._script("purge")
        self._scan = MemorystoreScan(client, self._tried, self._run, self._script)

    async def create(self, batch: Batch, segments: Sequence[Segment]) -> list[Exception | None]:
        triples = [(segment, _write_segment(segment, batch)) for segment in segments]
        calls = _slices(triples, lambda each: len(each[1]))
        answers = await asyncio.gather(
            *(self._create_some(batch, call) for call in calls), return_exceptions=True
        )
        results: list[Exception | None] = []
        for call, answer in zip(calls, answers, strict=True):
            if isinstance(answer, list):
                results += answer
            elif isinstance(answer, StoreRefused | StoreUnavailable):
                results += [answer] * len(call)
            else:
                raise answer
        failures = [result for result in results if isinstance(result, StoreUnavailable)]
        if failures and len(failures) == len(results):
            raise failures[0]
        return results

    async def _create_some(
        self, batch: Batch, triples: Sequence[tuple[Segment, bytes]]
    ) -> list[Exception | None]:
        args: list[Any] = []
        for segment, value in triples:
            args += [segment_id(segment.first), segment.nonce, value]
        written = await self._run(
            self._create, [batch.memory_key], args, (segment for segment, _ in triples)
        )
        return [
            None if done else _conflict(batch, segment)
            for (segment, _), done in zip(triples, written, strict=True)
        ]

    async def discard(self, batch: Batch, segments: Sequence[Segment]) -> None:
        args = [text for s in segments for text in (segment_id(s.first), s.nonce)]
        await self._run(self._discard, [batch.memory_key], args)

    async def move(
        self, batch: Batch, found: Found, target: Batch, pieces: Sequence[Segment]
    ) -> bool:
        return await self._exchange(batch, found, None, target, pieces)

    async def split(self, batch: Batch, found: Found, pieces: Sequence[Segment]) -> bool:
        return await self._exchange(batch, found, pieces[0], batch, pieces[1:])

    async def _exchange(
        self,
        batch: Batch,
        found: Found,
        left: Segment | None,
        target: Batch,
        pieces: Sequence[Segment],
    ) -> bool:
        value = b"" if left is None else _write_segment(left, batch)
        args: list[Any] = [segment_id(found.first), found.revision, value]
        for piece in pieces:
            args += [segment_id(piece.first), piece.nonce, _write_segment(piece, target)]
        keys = [batch.memory_key, target.memory_key]
        answer = await self._run(self._move, keys, args, pieces)
        if answer == b"conflict":
            raise _conflict(target, pieces[0])
        return bool(answer == b"moved")

    async def listing(self, batch: Batch) -> list[Listed]:
        answer = await self._run(self._listing, [batch.memory_key], [])
        pairs = zip(answer[::2], answer[1::2], strict=True)
        found = [Listed(int(field), count) for field, count in pairs if _FIELD.fullmatch(field)]
        return sorted(found, key=lambda listed: listed.first)

    async def read(self, batch: Batch, first: int, stop: int) -> list[Found]:
        key = batch.memory_key
        places: Sequence[int] = range(first, stop)
        if len(places) > MAX_FIELDS:
            fields = await self._tried(lambda: self._client.hkeys(key))
            known = sorted(int(field) for field in fields if _FIELD.fullmatch(field))
            places = [place for place in known if first <= place < stop]
        found: list[Found] = []
        for begin in range(0, len(places), MAX_FIELDS):
            some = places[begin : begin + MAX_FIELDS]
            found += await self._read_some(batch, some)
        return [one for one in found if one.segment is None or one.segment.items]

    async def _read_some(self, batch: Batch, places: Sequence[int]) -> list[Found]:
        fields = [segment_id(place) for place in places]
        values = await self._tried(lambda: self._client.hmget(batch.memory_key, fields))
        return [
            _read_segment(value, place, batch)
            for place, value in zip(places, values, strict=True)
            if value is not None
        ]

    async def settle(self, batch: Batch, changes: Sequence[Change]) -> list[bool]:
        results: list[bool] = []
        encoded = [(change, _settlement(batch, change)) for change in changes]
        for some in _slices(encoded, lambda each: sum(map(len, each[1]))):
            args = [arg for _, each in some for arg in each]
            left = [change.left for change, _ in some if change.left is not None]
            keys = [batch.memory_key, dead_key(batch.lane)]
            results += map(bool, await self._run(self._settle, keys, args, left))
        return results

    async def dead_letters(self, lane: Lane, limit: int) -> list[DeadLetter]:
        """Those of this lane alone, which is all that its hash tag reaches."""
        return [one.letter for one in await self.find_dead(lane, "", limit)]

    async def versions(self) -> list[tuple[str, str]]:
        return await self._scan.versions()

    def scan(self, wanted: KeyRange, page: int) -> AsyncIterator[list[Scanned]]:
        return self._scan.scan(wanted, page)

    async def graves(self, queue: str) -> list[Lane]:
        """Each lane is one, which is all that its hash tag reaches."""
        return await self._scan.graves(queue)

    async def find_dead(self, grave: Lane, after: str, limit: int) -> list[Buried]:
        key = dead_key(grave)
        ids = ids_after(await self._tried(lambda: self._client.hkeys(key)), after, limit)
        if not ids:
            return []
        values = await self._tried(lambda: self._client.hmget(key, ids))
        pairs = zip(ids, values, strict=True)
        return [read_dead_letter(name, value) for name, value in pairs if value is not None]

    async def requeue(self, grave: Lane, buried: Buried, target: Batch, segment: Segment) -> bool:
        args = [buried.letter.id, buried.revision, segment_id(segment.first), segment.nonce]
        keys = [dead_key(grave), target.memory_key]
        value = _write_segment(segment, target)
        answer = await self._run(self._requeue, keys, [*args, value], [segment])
        if answer == b"conflict":
            raise _conflict(target, segment)
        return bool(answer == b"moved")

    async def purge(self, grave: Lane, buried: Sequence[Buried]) -> list[bool]:
        """One whose deletion was repeated, as its answer was lost, counts as gone before."""
        args = [arg for one in buried for arg in (one.letter.id, one.revision)]
        return list(map(bool, await self._run(self._purge, [dead_key(grave)], args)))

    async def close(self) -> None:
        await self._client.aclose()

    def _script(self, name: str) -> Script:
        folder = resources.files("forkjoin_gcp.gcp") / "lua"
        parts = [(folder / f"segments_{part}.lua").read_text("utf-8") for part in ("shared", name)]
        return Script(self._client, "\n".join(parts))

    async def _run(
        self, script: Script, keys: list[str], args: list[Any], written: Iterable[Segment] = ()
    ) -> Any:
        latest = max((segment.expire_at for segment in written), default=0.0)
        every = [self._ttl_ms, max(0, round(latest * 1000)), *args]
        return await self._tried(lambda: script(keys=keys, args=every))

    async def _tried(self, call: Callable[[], Awaitable[Any]]) -> Any:
        """Make a call, and again where it got no answer."""

        async def count_and_call() -> Any:
            self._counters["memorystore.round_trip"] += 1
            return await call()

        tries = AsyncRetrying(
            stop=stop_after_attempt(TRIES),
            wait=wait_random_exponential(multiplier=0.05, max=0.5),
            retry=retry_if_exception(_may_pass),
            reraise=True,
        )
        try:
            return await tries(count_and_call)
        except OutOfMemoryError as error:
            raise StoreUnavailable(
                "Memorystore is full: the instance needs more memory, or an eviction policy for "
                f"keys with a time to live ({_text(error)})"
            ) from error
        except _PASSING as error:
            raise StoreUnavailable(
                f"Memorystore did not answer: {_text(error)}. Check {VARIABLES['memorystore']}, "
                f"or Services(memorystore=...). {LOCAL_HINT}"
            ) from error
        except RedisError as error:
            raise StoreRefused(f"Memorystore refused a call: {_text(error)}") from error


def _may_pass(error: BaseException) -> bool:
    return isinstance(error, _PASSING) and not isinstance(error, AuthenticationError)


def _text(error: Exception) -> str:
    return " ".join(str(error).split())[:500] or type(error).__name__


def _conflict(batch: Batch, segment: Segment) -> SegmentConflict:
    return SegmentConflict(
        f"another writer's segment stands at {segment_id(segment.first)} of {batch.memory_key}"
    )


def _slices(entries: Sequence[Any], size_of: Callable[[Any], int]) -> list[list[Any]]:
    """Cut into calls of an acceptable size."""
    parts: list[list[Any]] = []
    size = 0
    for entry in entries:
        more = size_of(entry)
        if not parts or size + more > MAX_CALL_BYTES:
            parts.append([])
            size = 0
        parts[-1].append(entry)
        size += more
    return parts


def _settlement(batch: Batch, change: Change) -> list[bytes]:
    value = b"" if change.left is None else _write_segment(change.left, batch)
    revision = change.found.revision
    assert isinstance(revision, bytes)
    args = [segment_id(change.found.first).encode(), revision, value]
    args.append(str(len(change.dead)).encode())
    for letter in change.dead:
        args += [letter.id.encode(), write_dead_letter(letter)]
    return args


def _write_segment(segment: Segment, batch: Batch) -> bytes:
    fields: dict[str, Any] = {"count": len(segment.items), "nonce": segment.nonce}
    if segment.origin != batch.key:
        fields["origin"] = segment.origin
    if segment.shift:
        fields["shift"] = segment.shift
    fields["enqueued_at"] = segment.enqueued_at
    fields["expire_at"] = segment.expire_at
    fields |= _item_lists("", segment.items, segment.first)
    if segment.handled:
        fields |= _item_lists("handled_", segment.handled, segment.first)
    text = json.dumps(fields, ensure_ascii=False, separators=(",", ":"))
    body = text.encode("utf-8", "replace")
    revision = blake2b(body, digest_size=8).hexdigest()
    return b'{"revision":"%s",%s' % (revision.encode(), body[1:])


def _item_lists(prefix: str, items: Sequence[StoredItem], first: int) -> dict[str, list[Any]]:
    lists: dict[str, list[Any]] = {}
    if any(item.position != place for place, item in enumerate(items, first)):
        lists[prefix + "positions"] = [item.position for item in items]
    if any(item.attempts for item in items):
        lists[prefix + "attempts"] = [item.attempts for item in items]
    if not prefix and any(item.due for item in items):
        lists["due"] = [item.due for item in items]
    return lists | {prefix + "payloads": [item.payload for item in items]}


def _read_segment(value: bytes, first: int, batch: Batch) -> Found:
    head = _HEAD.match(value)
    revision = head[0] if head else value
    try:
        return Found(first, _parse(value, first, batch), revision)
    except DefectError as defect:
        raw = clip(value.decode("utf-8", "backslashreplace"), MAX_TEXT_BYTES)
        return Found(first, None, revision, str(defect), raw)


def _parse(value: bytes, first: int, batch: Batch) -> Segment:
    try:
        fields = json.loads(value)
    except (ValueError, RecursionError) as error:
        raise DefectError(f"no JSON: {error}") from None
    if not isinstance(fields, dict):
        raise DefectError("no JSON object")
    nonce = fields.get("nonce")
    if not isinstance(nonce, str):
        raise DefectError("nonce is no text")
    return Segment(
        first=first,
        items=_parse_items(fields, "", first),
        nonce=nonce,
        origin=check_origin(fields["origin"], batch) if "origin" in fields else batch.key,
        shift=check_shift(fields.get("shift", 0), first),
        enqueued_at=_time(fields, "enqueued_at"),
        expire_at=_time(fields, "expire_at"),
        handled=_parse_items(fields, "handled_", first) if "handled_payloads" in fields else (),
    )


def _parse_items(fields: dict[str, Any], prefix: str, first: int) -> tuple[StoredItem, ...]:
    names = (prefix + "payloads", prefix + "positions", prefix + "attempts", prefix + "due")
    payloads, positions, attempts, due = (fields.get(name) for name in names)
    return restore_items(names[0], payloads, positions, attempts, due, first)


def _time(fields: dict[str, Any], name: str) -> float:
    seconds = fields.get(name)
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds < 2e11:
        raise DefectError(f"{name} is no time")
    return float(seconds)
