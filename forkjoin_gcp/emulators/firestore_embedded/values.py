"""Firestore values: their order, and what may be stored."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from .paths import path_order, split_document
from .refusals import invalid

MAX_NAME_BYTES = 1_500
MAX_VALUE_BYTES = 1_048_487
"""Of one string or bytes value."""
MAX_DEPTH = 20
"""Maps within maps."""

NULL, BOOLEAN, NAN, NUMBER, TIMESTAMP, STRING, BYTES, REFERENCE, GEO_POINT, ARRAY, VECTOR, MAP = (
    range(12)
)
Order = tuple[Any, ...]
"""Compares as Firestore compares values: the rank of the type, then the value."""

_MIN_SECONDS, _MAX_SECONDS = -62_135_596_800, 253_402_300_799


def order(value: Any) -> Order:
    """What sorts, and is equal, as a raw Value does."""
    return _ORDERS[value.WhichOneof("value_type")](value)


def _number(number: float) -> Order:
    # Python compares int and float exactly, as Firestore does.
    return (NAN,) if number != number else (NUMBER, number)


def _reference(value: Any) -> Order:
    return reference_order(value.reference_value)


def reference_order(name: str) -> Order:
    """The order of a reference, or of a document's full name."""
    _, project, _, database, _, path = name.split("/", 5)
    return (REFERENCE, project, database, path_order(path))


def _map(value: Any) -> Order:
    fields = value.map_value.fields
    if is_vector(fields):
        numbers = fields["value"].array_value.values
        return (VECTOR, len(numbers), tuple(order(each) for each in numbers))
    return (MAP, tuple((name, order(fields[name])) for name in sorted(fields)))


_ORDERS: dict[str | None, Callable[[Any], Order]] = {
    "null_value": lambda _: (NULL,),
    "boolean_value": lambda value: (BOOLEAN, value.boolean_value),
    "integer_value": lambda value: (NUMBER, value.integer_value),
    "double_value": lambda value: _number(value.double_value),
    "timestamp_value": lambda value: (
        TIMESTAMP,
        value.timestamp_value.seconds,
        value.timestamp_value.nanos,
    ),
    "string_value": lambda value: (STRING, value.string_value),
    "bytes_value": lambda value: (BYTES, value.bytes_value),
    "reference_value": _reference,
    "geo_point_value": lambda value: (
        GEO_POINT,
        value.geo_point_value.latitude,
        value.geo_point_value.longitude,
    ),
    "array_value": lambda value: (ARRAY, tuple(order(each) for each in value.array_value.values)),
    "map_value": _map,
}


def is_vector(fields: Any) -> bool:
    """Whether the fields of a map are those by which clients send a vector."""
    return (
        len(fields) == 2
        and "__type__" in fields
        and "value" in fields
        and fields["__type__"].string_value == "__vector__"
    )


def check_fields(fields: Any, depth: int = 0) -> None:
    """Raises Refusal for what a document, or a map, may not hold; cuts timestamps to µs."""
    for name in fields:
        if not name:
            raise invalid("The property.name is the empty string.")
        if name[:2] == "__" and name[-2:] == "__" and len(name) > 4:
            raise invalid(f"field name {name} is reserved")
        if len(name) > 375 and len(name.encode()) > MAX_NAME_BYTES:
            raise invalid(f"The property.name is longer than {MAX_NAME_BYTES} bytes.")
        value = fields[name]
        kind = value.WhichOneof("value_type")
        if kind == "string_value":
            # By far the most frequent, and the text itself says nothing else.
            if value.ByteSize() > MAX_VALUE_BYTES:
                _check_length(len(value.string_value.encode()))
        elif kind not in _SIMPLE:
            check_value(value, depth)


def check_value(value: Any, depth: int = 0) -> None:
    """Raises Refusal for what may not be stored; cuts timestamps to microseconds."""
    kind = value.WhichOneof("value_type")
    if kind in _SIMPLE:
        return
    if kind == "array_value":
        for each in value.array_value.values:
            inner = each.WhichOneof("value_type")
            if inner == "array_value":
                raise invalid("Cannot convert an array value in an array value.")
            if inner not in _SIMPLE:
                check_value(each, depth)
    elif kind == "map_value":
        if not is_vector(value.map_value.fields):
            if depth >= MAX_DEPTH:
                raise invalid(f"a map is nested more than {MAX_DEPTH} deep.")
            check_fields(value.map_value.fields, depth + 1)
    else:
        _check_scalar(kind, value)


_SIMPLE = frozenset({"null_value", "boolean_value", "integer_value", "double_value"})


def _check_scalar(kind: str | None, value: Any) -> None:
    if kind == "string_value":
        if value.ByteSize() > MAX_VALUE_BYTES:
            _check_length(len(value.string_value.encode()))
    elif kind == "bytes_value":
        _check_length(len(value.bytes_value))
    elif kind == "timestamp_value":
        _check_timestamp(value.timestamp_value)
    elif kind == "reference_value":
        split_document(value.reference_value, "Resource name")
    elif kind == "geo_point_value":
        _check_point(value.geo_point_value)
    else:
        raise invalid(f"Cannot convert firestore.v1.Value with type {kind or 'unset'}.")


def _check_length(length: int) -> None:
    if length > MAX_VALUE_BYTES:
        raise invalid(f"A value is longer than {MAX_VALUE_BYTES} bytes.")


def _check_timestamp(timestamp: Any) -> None:
    if not _MIN_SECONDS <= timestamp.seconds <= _MAX_SECONDS:
        raise invalid("Timestamp seconds exceeds limit for field.")
    if not 0 <= timestamp.nanos < 1_000_000_000:
        raise invalid("Timestamp nanos exceeds limit for field.")
    if timestamp.nanos % 1_000:
        timestamp.nanos -= timestamp.nanos % 1_000


def _check_point(point: Any) -> None:
    for name, number, most in (
        ("latitude", point.latitude, 90.0),
        ("longitude", point.longitude, 180.0),
    ):
        if math.isnan(number) or not -most <= number <= most:
            raise invalid(f"Geo point {name} '{number}' outside permitted range {-most} to {most}.")
