"""Segments and dead letters as Firestore documents, in raw protobuf messages. No I/O.

A segment is ``forkjoin/{queue}.{version}/batches/{batch key}/fj_segments/{first position}``:

    payloads          array of strings   JSON text, one an item
    count             integer            items still to be handled: the length of payloads
    nonce             string             the writer's
    enqueued_at       timestamp
    expire_at         timestamp          the field for Firestore's TTL policy

and, only where they say something:

    positions         array of integers  unless consecutive from the document's own
    attempts          array of integers  unless all 0
    due               array of doubles   Unix time, s; unless all 0
    origin            string             the batch the items were first written under, if another
    shift             integer            added to a position gives the one it had there, unless 0
    handled_payloads, handled_positions, handled_attempts   as above, of ``on_success="keep"``

A dead letter is ``forkjoin/{queue}.{version}/fj_dead_letters/{item id}``, its fields those of
DeadLetter. Wrapped messages cost several times as much as raw ones: hence the ``pb()``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from google.protobuf.json_format import MessageToDict  # type: ignore[import-untyped]

from forkjoin_gcp.gcp.stored_items import (
    DefectError,
    check_origin,
    check_shift,
    clip,
    restore_items,
    unreadable,
)
from forkjoin_gcp.items import DeadLetter, FreshItems, Segment, StoredItem, payload_bytes
from forkjoin_gcp.names import Batch
from forkjoin_gcp.ports import Found

SEGMENTS = "fj_segments"
DEAD_LETTERS = "fj_dead_letters"
EXPIRE_AT = "expire_at"
"""The field by which a TTL policy deletes segments. Dead letters stay until somebody decides."""

MAX_TEXT_BYTES = 900_000
"""Of a dead letter's payload, or of the text of a document that is no segment: what a document
holds. Longer texts are cut."""

MAX_ERRORS_BYTES = 1_000_000
"""Of the error texts of the dead letters put down in one commit, together."""

_LAST_TIME = 253_402_300_799.0

Revision = tuple[int, int]
"""A document's update time: seconds and nanoseconds."""


def fill_segment(document: Any, segment: Segment, batch: Batch) -> None:
    """Set the fields of a raw Document to those of ``segment``, which is stored under ``batch``."""
    fields = document.fields
    _fill_items(fields, "", segment.items, segment.first)
    fields["count"].integer_value = len(segment.items)
    fields["nonce"].string_value = segment.nonce
    _set_time(fields["enqueued_at"], segment.enqueued_at)
    _set_time(fields[EXPIRE_AT], segment.expire_at)
    if segment.origin != batch.key:
        fields["origin"].string_value = segment.origin
    if segment.shift:
        fields["shift"].integer_value = segment.shift
    if segment.handled:
        _fill_items(fields, "handled_", segment.handled, segment.first)


def segment_bytes(segment: Segment) -> int:
    """More than the bytes that a write of ``segment`` takes."""
    size = 4_000 + payload_bytes(_payloads(segment.items))
    return size + payload_bytes(_payloads(segment.handled)) if segment.handled else size


def _payloads(items: Sequence[StoredItem]) -> Sequence[str]:
    return items.payloads if isinstance(items, FreshItems) else [item.payload for item in items]


def _fill_items(fields: Any, prefix: str, items: Sequence[StoredItem], first: int) -> None:
    # The hot path, a few operations an item. Appending empty values and setting them was the
    # fastest of five ways measured: 0.3 µs an item of 1 KB.
    payloads = fields[prefix + "payloads"].array_value
    payloads.SetInParent()  # an empty array, too, says what it is
    add = payloads.values.add
    for payload in _payloads(items):
        add().string_value = payload
    if isinstance(items, FreshItems) and items.first == first:
        return
    consecutive, fresh = True, True
    for position, item in enumerate(items, first):
        if item.position != position:
            consecutive = False
        if item.attempts or item.due:
            fresh = False
    if not consecutive:
        add = fields[prefix + "positions"].array_value.values.add
        for item in items:
            add().integer_value = item.position
    if not fresh:
        add = fields[prefix + "attempts"].array_value.values.add
        for item in items:
            add().integer_value = item.attempts
        if not prefix and any(item.due for item in items):
            add = fields["due"].array_value.values.add
            for item in items:
                add().double_value = item.due


def read_segment(document: Any, batch: Batch) -> Found:
    """What a raw Document of ``batch`` holds. Raises ValueError for an id that is no position."""
    first = position_of(document.name)
    revision = revision_of(document)
    try:
        segment = _parse(document.fields, first, batch)
    except DefectError as defect:
        return Found(first, None, revision, str(defect), document_text(document))
    return Found(first, segment, revision)


def _parse(fields: Any, first: int, batch: Batch) -> Segment:
    origin, shift = batch.key, 0
    if "origin" in fields:
        origin = check_origin(_typed(fields, "origin", "string_value"), batch)
    if "shift" in fields:
        shift = check_shift(_typed(fields, "shift", "integer_value"), first)
    return Segment(
        first=first,
        items=_parse_items(fields, "", first),
        nonce=_typed(fields, "nonce", "string_value"),
        origin=origin,
        shift=shift,
        enqueued_at=_time(_typed(fields, "enqueued_at", "timestamp_value")),
        expire_at=_time(_typed(fields, EXPIRE_AT, "timestamp_value")),
        handled=_parse_items(fields, "handled_", first) if "handled_payloads" in fields else (),
    )


def _parse_items(fields: Any, prefix: str, first: int) -> tuple[StoredItem, ...]:
    values = _typed(fields, prefix + "payloads", "array_value").values
    # Most are plain: one read of a protobuf field an item, and no more.
    payloads = [value.string_value or _text_of(value) for value in values]
    positions, attempts, due = (
        _plain(fields[prefix + name]) if prefix + name in fields else None
        for name in ("positions", "attempts", "due")
    )
    return restore_items(prefix + "payloads", payloads, positions, attempts, due, first)


def _text_of(value: Any) -> str:
    if value.WhichOneof("value_type") == "string_value":
        return str(value.string_value)
    return unreadable(_plain(value))


def _typed(fields: Any, name: str, kind: str) -> Any:
    if name not in fields:
        raise DefectError(f"{name} is missing")
    value = fields[name]
    found = value.WhichOneof("value_type")
    if found != kind:
        raise DefectError(f"{name} is {found or 'empty'}, not {kind}")
    return getattr(value, kind)


def count_of(document: Any) -> int:
    """Items still to be handled; 1, so that somebody looks at it, where a document does not say."""
    if "count" not in document.fields:
        return 1
    value = document.fields["count"]
    if value.WhichOneof("value_type") != "integer_value":
        return 1
    return max(0, int(value.integer_value))


def due_of(document: Any) -> float:
    """When the first of a segment's items may be tried: Unix time in seconds, 0 for now."""
    if "due" not in document.fields:
        return 0.0
    times = _plain(document.fields["due"])
    numbers = times if isinstance(times, list) else [0.0]
    return min((float(n) for n in numbers if isinstance(n, int | float)), default=0.0)


def updated_at(document: Any) -> float:
    """When Firestore last wrote a document: Unix time in seconds."""
    return _time(document.update_time)


def nonce_of(document: Any) -> str | None:
    """The nonce of the segment in a document; None where it has none."""
    if "nonce" not in document.fields:
        return None
    value = document.fields["nonce"]
    return value.string_value if value.WhichOneof("value_type") == "string_value" else None


def revision_of(document: Any) -> Revision:
    """The revision that a precondition on ``update_time`` asks for."""
    return document.update_time.seconds, document.update_time.nanos


def position_of(name: str) -> int:
    """The first position of the segment called ``name``. Raises ValueError where it is none."""
    last = name.rpartition("/")[2]
    if len(last) != 8 or not (last.isascii() and last.isdigit()):
        raise ValueError(f"document {name}: its id is no position")
    return int(last)


def fill_dead_letter(document: Any, letter: DeadLetter, letters: int) -> None:
    """Set the fields of a raw Document to those of a dead letter, one of ``letters`` in a commit.

    Cuts what a document does not hold.
    """
    room = min(4_000, MAX_ERRORS_BYTES // max(letters, 1))
    fields = document.fields
    fields["payload"].string_value = clip(letter.payload, MAX_TEXT_BYTES)
    fields["reason"].string_value = letter.reason
    fields["error"].string_value = clip(letter.error, room)
    fields["attempts"].integer_value = letter.attempts
    _set_time(fields["enqueued_at"], letter.enqueued_at)
    _set_time(fields["dead_at"], letter.dead_at)


def read_dead_letter(document: Any) -> DeadLetter:
    """The dead letter in a raw Document, as far as it is readable: it raises nothing."""
    fields = document.fields
    return DeadLetter(
        id=document.name.rpartition("/")[2],
        payload=_text_of(fields["payload"]) if "payload" in fields else document_text(document),
        reason=_lenient(fields, "reason", "string_value", ""),
        error=_lenient(fields, "error", "string_value", ""),
        attempts=_lenient(fields, "attempts", "integer_value", 0),
        enqueued_at=_time(_lenient(fields, "enqueued_at", "timestamp_value", None)),
        dead_at=_time(_lenient(fields, "dead_at", "timestamp_value", None)),
    )


def _lenient(fields: Any, name: str, kind: str, default: Any) -> Any:
    if name not in fields or fields[name].WhichOneof("value_type") != kind:
        return default
    return getattr(fields[name], kind)


def document_text(document: Any) -> str:
    """A document's fields as JSON, for a person to read."""
    plain = {name: _plain(document.fields[name]) for name in sorted(document.fields)}
    return clip(json.dumps(plain, ensure_ascii=False), MAX_TEXT_BYTES)


def _plain(value: Any) -> Any:
    kind = value.WhichOneof("value_type")
    if kind is None or kind == "null_value":
        return None
    if kind == "map_value":
        return {name: _plain(each) for name, each in value.map_value.fields.items()}
    if kind == "array_value":
        return [_plain(each) for each in value.array_value.values]
    if kind in ("string_value", "integer_value", "boolean_value", "double_value"):
        return getattr(value, kind)
    shown: Mapping[str, Any] = MessageToDict(value)
    return next(iter(shown.values()), None)


def _set_time(value: Any, seconds: float) -> None:
    value.timestamp_value.FromMicroseconds(round(seconds * 1e6))


def _time(timestamp: Any) -> float:
    if timestamp is None:
        return 0.0
    # The last second of the year 9999 has floats that are in the year 10000, which is no date.
    return min(float(timestamp.ToMicroseconds() / 1e6), _LAST_TIME)
