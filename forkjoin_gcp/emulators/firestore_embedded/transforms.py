"""Field transforms: what a server time, an increment, or an array union makes of a document."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from google.cloud.firestore_v1 import types

from .documents import set_time
from .fields import FieldPath, find, parse, put
from .refusals import invalid
from .values import NAN, check_value, order

_Value: Any = types.Value.pb()
_REQUEST_TIME = 1
_MOST, _LEAST = (1 << 63) - 1, -(1 << 63)


class Transform(NamedTuple):
    """One checked FieldTransform."""

    path: FieldPath
    kind: str
    message: Any


def parse_transforms(messages: Sequence[Any]) -> list[Transform]:
    """Raises Refusal."""
    transforms = [_parse(message) for message in messages]
    paths = {transform.path for transform in transforms}
    for path in paths:
        for length in range(1, len(path)):
            if path[:length] in paths:
                raise invalid(
                    f"Cannot transform property {'.'.join(path[:length])} and its nested property "
                    "at the same time."
                )
    return transforms


def _parse(message: Any) -> Transform:
    path = parse(message.field_path)
    kind = message.WhichOneof("transform_type")
    if kind is None:
        raise invalid("Operation type must be specified for field transformation.")
    if path[0] == "__name__":
        raise invalid("The name of a document cannot be transformed.")
    if kind == "set_to_server_value":
        if message.set_to_server_value != _REQUEST_TIME:
            raise invalid(
                "ServerValue type must be specified for set_to_server_value transformation."
            )
    elif kind in ("append_missing_elements", "remove_all_from_array"):
        for value in getattr(message, kind).values:
            check_value(value)
    elif _kind(getattr(message, kind)) is None:
        raise invalid("Input must be int64 or double.")
    return Transform(path, kind, message)


def apply_transforms(fields: Any, transforms: Sequence[Transform], now: int) -> list[Any]:
    """Changes a document's raw fields; the raw Values that the writer is told, one each."""
    results = []
    for path, kind, message in transforms:
        present = find(fields, path)
        result = value = _Value()
        if kind == "set_to_server_value":
            # In milliseconds, as documented.
            set_time(value.timestamp_value, now - now % 1_000)
        elif kind in ("append_missing_elements", "remove_all_from_array"):
            change = _append if kind == "append_missing_elements" else _remove
            value.array_value.SetInParent()
            change(present, getattr(message, kind).values, value.array_value.values)
            result = _Value(null_value=0)
        else:
            _calculate(kind, present, getattr(message, kind), value)
        put(fields, path, value)
        results.append(result)
    return results


def _elements(present: Any) -> Sequence[Any]:
    if present is not None and present.WhichOneof("value_type") == "array_value":
        elements: Sequence[Any] = present.array_value.values
        return elements
    return ()


def _append(present: Any, more: Sequence[Any], result: Any) -> None:
    result.extend(_elements(present))
    there = {order(each) for each in result}
    for each in more:
        key = order(each)
        if key not in there:
            there.add(key)
            result.append(each)


def _remove(present: Any, gone: Sequence[Any], result: Any) -> None:
    keys = {order(each) for each in gone}
    result.extend(each for each in _elements(present) if order(each) not in keys)


def _calculate(kind: str, present: Any, operand: Any, result: Any) -> None:
    held = None if present is None else _kind(present)
    if held is None:
        result.CopyFrom(operand)
    elif kind == "increment":
        _add(getattr(present, held), getattr(operand, str(_kind(operand))), result)
    else:
        # On a tie the stored value stays, and not-a-number beats every number.
        mine, theirs = order(present), order(operand)
        if NAN in (mine[0], theirs[0]):
            wins = mine[0] != NAN
        else:
            wins = theirs > mine if kind == "maximum" else theirs < mine
        result.CopyFrom(operand if wins else present)


def _add(present: float, operand: float, result: Any) -> None:
    if isinstance(present, int) and isinstance(operand, int):
        result.integer_value = max(_LEAST, min(_MOST, present + operand))
    else:
        result.double_value = float(present) + float(operand)


def _kind(value: Any) -> str | None:
    kind: str | None = value.WhichOneof("value_type")
    return kind if kind in ("integer_value", "double_value") else None
