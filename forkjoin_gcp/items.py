"""Items and segments, and the codec between a payload and the JSON text that is stored."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import pairwise
from typing import Any, Generic, TypeVar, overload

import orjson
from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError

from forkjoin_gcp.config import MAX_PAYLOAD_BYTES
from forkjoin_gcp.errors import ConfigurationError, InvalidPayload, PayloadError, PayloadTooLarge
from forkjoin_gcp.names import Batch, item_id, split_at_chunks

P = TypeVar("P")

MAX_SEGMENT_BYTES = 950_000
"""Payload bytes of one segment, at most: what a Firestore document (1 MiB) holds beside its fields'
names, its path, and 16 bytes or so an item for positions, attempts and due times."""

SURVIVING_LENGTH = 4_000
"""A payload's encoded length up to which it can hold no integer that Python refuses to read (4,300
digits: sys.int_info.default_max_str_digits)."""

ITEM_OVERHEAD_BYTES = 40
"""Counted for each stored item beside its payload."""


@dataclass(frozen=True)
class Item(Generic[P]):
    """One payload, as a handler gets it.

    ``id`` never changes, whatever happens to the item on its way: handlers that must not act twice
    on an item delivered twice key their effects on it. ``attempt`` counts from 1. ``enqueued_at``
    is UTC, by the enqueuing process's clock.
    """

    id: str
    payload: P
    attempt: int
    enqueued_at: datetime


@dataclass(slots=True)
class StoredItem:
    """An item in a segment: its position, its payload as JSON text, and how its tries went.

    ``due`` is the Unix time in seconds before which it is not tried again; 0 is now. Nobody changes
    one; it is not frozen because there is one for each item, and a frozen one takes three times as
    long to make.
    """

    position: int
    payload: str
    attempts: int = 0
    due: float = 0.0


class FreshItems(Sequence[StoredItem]):
    """Items that nobody has tried yet, at consecutive positions from ``first``.

    They are made when they are asked for. A writer asks for few of them, and ten thousand of them
    at once would cost it more in garbage collection than in being made.
    """

    __slots__ = ("first", "payloads")

    def __init__(self, first: int, payloads: Sequence[str]) -> None:
        self.first = first
        self.payloads = payloads

    def __len__(self) -> int:
        return len(self.payloads)

    @overload
    def __getitem__(self, at: int) -> StoredItem: ...
    @overload
    def __getitem__(self, at: slice) -> tuple[StoredItem, ...]: ...
    def __getitem__(self, at: int | slice) -> StoredItem | tuple[StoredItem, ...]:
        if isinstance(at, slice):
            return tuple(self)[at]
        return StoredItem(self.first + range(len(self.payloads))[at], self.payloads[at])

    def __iter__(self) -> Iterator[StoredItem]:
        return (StoredItem(place, text) for place, text in enumerate(self.payloads, self.first))

    def __eq__(self, other: object) -> bool:
        return tuple(self) == tuple(other) if isinstance(other, Sequence) else NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"FreshItems({self.first}, {len(self.payloads)} payloads)"


@dataclass(frozen=True, slots=True)
class Segment:
    """The items that one write put down together: one stored document.

    ``first`` is the position it was written at, and its key; the items left may begin later.
    ``nonce`` tells a writer's own segment from another's at the same place. ``origin`` and
    ``shift`` keep items' ids when a segment moves: the batch key the items were first written
    under, and what to add to a position to have the one it had there. ``enqueued_at`` and
    ``expire_at`` are Unix times in seconds. ``handled`` is filled by ``on_success="keep"`` alone.
    """

    first: int
    items: Sequence[StoredItem]
    nonce: str
    origin: str
    shift: int
    enqueued_at: float
    expire_at: float
    handled: Sequence[StoredItem] = ()

    def item_id(self, item: StoredItem) -> str:
        """The item's id, the one it had where it was first written."""
        return item_id(self.origin, item.position + self.shift)


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """An item that will not be tried again, why, and all that is needed to hand it in once more.

    ``reason`` is one of ``rejected``, ``attempts`` (used up), ``undecodable`` and ``crashed`` (its
    process died of it); ``error`` is the text behind it. Times are Unix times in seconds.
    """

    id: str
    payload: str
    reason: str
    error: str
    attempts: int
    enqueued_at: float
    dead_at: float


class PayloadCodec(Generic[P]):
    """Turns payloads of one type into JSON text and back, checking both ways.

    The type is anything pydantic's TypeAdapter takes; ConfigurationError where it takes it not.
    """

    def __init__(self, payload: type[P]) -> None:
        try:
            try:
                # Not-a-number has no place in JSON; written as a constant it survives the way back.
                constants = ConfigDict(ser_json_inf_nan="constants")
                self._adapter: TypeAdapter[P] = TypeAdapter(payload, config=constants)
            except PydanticUserError:  # models, dataclasses, TypedDicts bring a config of their own
                self._adapter = TypeAdapter(payload)
        except Exception as error:  # whatever a type's own schema hooks raise
            raise ConfigurationError(
                f"payload={payload!r}: no type pydantic knows: {_reason(error)}"
            ) from error
        self.name = getattr(payload, "__name__", str(payload))
        self._survives = survives_json(self._adapter.core_schema)

    def encode(self, payload: P) -> str:
        """The payload's JSON text; what is returned here decodes again.

        Raises InvalidPayload, and PayloadTooLarge over MAX_PAYLOAD_BYTES of UTF-8.
        """
        adapter = self._adapter
        try:
            # The adapter's own parts, as its methods cost half as much again. What does not fit
            # the type does not raise when it is dumped but when it is read back.
            encoded = self._dump(adapter.validator.validate_python(payload))
            if not self._survives or len(encoded) > SURVIVING_LENGTH:
                adapter.validator.validate_json(encoded)
        except (ValidationError, PydanticSerializationError, RecursionError) as error:
            raise InvalidPayload(f"payload is not a valid {self.name}: {_reason(error)}") from None
        if len(encoded) > MAX_PAYLOAD_BYTES:
            raise PayloadTooLarge(
                f"payload is {len(encoded):,} bytes as JSON, and at most {MAX_PAYLOAD_BYTES:,} "
                "are taken: put what is large in Cloud Storage and enqueue its address"
            )
        return encoded.decode()

    def encode_all(self, payloads: Iterable[P]) -> list[str]:
        """The JSON texts of all payloads, in order; raises as ``encode``, naming the first bad one.

        Raises PayloadError where there is none.
        """
        given = list(payloads)
        if not given:
            raise PayloadError("enqueue_many was given no items")
        if self._survives:
            with contextlib.suppress(ValidationError, orjson.JSONEncodeError, RecursionError):
                check, dump = self._adapter.validator.validate_python, orjson.dumps
                # Decoded one by one: memory used again is cheaper than memory asked for.
                texts = [dump(check(each)).decode() for each in given]
                if max(map(len, texts)) <= SURVIVING_LENGTH:
                    return texts
        encoded = []
        for number, payload in enumerate(given):
            try:
                encoded.append(self.encode(payload))
            except PayloadError as error:
                raise type(error)(f"item {number}: {error}") from None
        return encoded

    def _dump(self, checked: P) -> bytes:
        if self._survives:
            # The same text in a quarter of the time. What it does not know (integers of more than
            # 64 bits) pydantic does, which also says what is wrong with a text.
            with contextlib.suppress(orjson.JSONEncodeError):
                return orjson.dumps(checked)
        return self._adapter.serializer.to_json(checked, by_alias=True, warnings=False)

    def decode(self, text: str) -> P:
        """The payload in ``text``. Raises InvalidPayload."""
        try:
            return self._adapter.validate_json(text)
        except (ValidationError, RecursionError) as error:
            raise InvalidPayload(f"not a valid {self.name}: {_reason(error)}") from None


def survives_json(schema: Any) -> bool:
    """Whether what a pydantic core schema has validated, dumped, certainly validates again.

    True only for typed dictionaries, lists and plain dictionaries of plain texts, whole numbers,
    booleans and nulls. Models are not among them (an instance is taken as it is, whatever was done
    to it), nor is anything with a constraint, an alias or a hook of its own.
    """
    kind = schema["type"]
    if not schema.keys() <= _PLAIN_KEYS.get(kind, frozenset()):
        return False
    inner: list[Any] = []
    if kind == "typed-dict":
        if schema["extra_behavior"] == "allow" or schema["config"].keys() - {"title"}:
            return False
        fields = schema["fields"].values()
        if any(field.get("metadata") or field.keys() - _PLAIN_FIELD for field in fields):
            return False
        inner = [field["schema"] for field in fields]
    elif kind == "dict":
        inner = [schema.get("keys_schema", _ANY), schema.get("values_schema", _ANY)]
        if inner[0] != {"type": "str"}:
            return False
    elif kind == "list":
        inner = [schema.get("items_schema", _ANY)]
    elif kind == "nullable":
        inner = [schema["schema"]]
    return not schema.get("computed_fields") and all(map(survives_json, inner))


_ANY = {"type": "any"}
_PLAIN_FIELD = frozenset({"type", "schema", "required", "metadata"})
_PLAIN_KEYS = {
    "str": frozenset({"type"}),
    "int": frozenset({"type"}),
    "bool": frozenset({"type"}),
    "none": frozenset({"type"}),
    "nullable": frozenset({"type", "schema"}),
    "list": frozenset({"type", "items_schema"}),
    "dict": frozenset({"type", "keys_schema", "values_schema"}),
    "typed-dict": frozenset(
        {"type", "fields", "cls", "computed_fields", "extra_behavior", "config", "ref"}
    ),
}


def build_segments(
    batch: Batch,
    start: int,
    batch_size: int,
    payloads: Sequence[str],
    *,
    nonce: str,
    enqueued_at: float,
    expire_at: float,
) -> list[Segment]:
    """Lay ``payloads`` out from ``start``, cut at chunk boundaries and at the byte limit."""
    segments = []
    for first, count in split_at_chunks(start, len(payloads), batch_size):
        texts = payloads[first - start : first - start + count]
        for begin, end in _cut(texts):
            items = FreshItems(first + begin, texts[begin:end])
            segments.append(
                Segment(items.first, items, nonce, batch.key, 0, enqueued_at, expire_at)
            )
    return segments


def move_segment(source: Segment, start: int, batch_size: int) -> list[Segment]:
    """The segments that hold ``source``'s items from position ``start`` of another batch.

    ``source`` is as it was written, so its positions have no gaps. Items keep their ids.
    """
    shift = source.shift + source.items[0].position - start
    pieces, offset = [], 0
    for first, count in split_at_chunks(start, len(source.items), batch_size):
        part = source.items[offset : offset + count]
        offset += count
        placed = [replace(item, position=place) for place, item in enumerate(part, first)]
        for begin, end in _cut([item.payload for item in placed]):
            items = tuple(placed[begin:end])
            pieces.append(replace(source, first=items[0].position, items=items, shift=shift))
    return pieces


def _cut(texts: Sequence[str]) -> list[tuple[int, int]]:
    """Where payloads of one chunk must be cut to keep below the byte limit, as (begin, end)."""
    if payload_bytes(texts) <= MAX_SEGMENT_BYTES:
        return [(0, len(texts))]
    cuts = [0]
    size = 0
    for n, text in enumerate(texts):
        item_size = len(text.encode()) + ITEM_OVERHEAD_BYTES
        if size and size + item_size > MAX_SEGMENT_BYTES:
            cuts.append(n)
            size = 0
        size += item_size
    return list(pairwise([*cuts, len(texts)]))


def payload_bytes(texts: Sequence[str]) -> int:
    """What payloads take in a stored segment, at most."""
    # Four bytes a character at most, one where all are ASCII, which a text knows of itself.
    size = sum(map(len, texts))
    if not all(map(str.isascii, texts)):
        size = sum(len(text) if text.isascii() else 4 * len(text) for text in texts)
    return size + ITEM_OVERHEAD_BYTES * len(texts)


def _reason(error: Exception) -> str:
    """What is wrong and where, without the payload's text, which may be private."""
    if not isinstance(error, ValidationError):
        return " ".join(str(error).split())[:200]
    details = error.errors(include_url=False, include_input=False, include_context=False)
    shown = [f"{'.'.join(map(str, d['loc'])) or 'payload'}: {d['msg']}" for d in details[:3]]
    more = [f"and {len(details) - 3} more"] if len(details) > 3 else []
    return "; ".join(shown + more)
