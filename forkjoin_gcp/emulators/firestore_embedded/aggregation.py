"""count, sum and avg over what a query finds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from google.cloud.firestore_v1 import types

from . import fields
from .fields import NAME, FieldPath
from .queries import Match, Query, Sort
from .refusals import invalid

MAX_AGGREGATIONS = 5

_Document: Any = types.Document.pb()
_Value: Any = types.Value.pb()
_MOST, _LEAST = (1 << 63) - 1, -(1 << 63)


class Aggregation(NamedTuple):
    """One figure to be calculated; `up_to` is where a count may stop."""

    alias: str
    kind: str
    path: FieldPath | None
    up_to: int | None


def parse_aggregations(messages: Sequence[Any], query: Query) -> list[Aggregation]:
    """Of raw Aggregations. Raises Refusal."""
    if not messages:
        raise invalid("Aggregations can not be empty.")
    if len(messages) > MAX_AGGREGATIONS:
        raise invalid(f"A query may have at most {MAX_AGGREGATIONS} aggregations.")
    aggregations = []
    aliases: set[str] = set()
    for number, message in enumerate(messages, 1):
        alias = message.alias or f"field_{number}"
        if alias in aliases:
            raise invalid(f"Aggregation aliases contain duplicate alias: {alias}.")
        if alias.startswith("__") and alias.endswith("__"):
            raise invalid(f'The property.name "{alias}" is reserved.')
        aliases.add(alias)
        aggregations.append(_parse(message, alias, query))
    _require_fields(query, {each.path for each in aggregations if each.path is not None})
    return aggregations


def _parse(message: Any, alias: str, query: Query) -> Aggregation:
    kind = message.WhichOneof("operator")
    if kind is None:
        raise invalid("Operator field in Aggregation is not set.")
    if kind == "count":
        up_to = message.count.up_to.value if message.count.HasField("up_to") else None
        if up_to is not None and up_to < 0:
            raise invalid(
                "The `up_to` value in a COUNT aggregation must be greater than or equal to zero."
            )
        return Aggregation(alias, kind, None, up_to)
    path = fields.parse(getattr(message, kind).field.field_path)
    if path == NAME:
        raise invalid("Aggregations are not supported for the property: __key__")
    if query.select is not None and path not in query.select:
        raise invalid(
            f"The aggregation property {'.'.join(path)} is not present in the base query's "
            "property mask."
        )
    return Aggregation(alias, kind, path, None)


def _require_fields(query: Query, paths: set[FieldPath]) -> None:
    """A sum or an average sees only documents that have its field, and so do its neighbours."""
    sorts = query.sorts
    paths = paths - {sort.path for sort in sorts}
    below = query.scope.deep and query.scope.parent
    if paths and (below or query.named):
        raise invalid(
            f"This query requires an index that has fields {[*map('.'.join, sorted(paths))]} after "
            "__name__ and Firestore does not currently support such an index."
        )
    for path in sorted(paths):
        sorts.insert(len(sorts) - 1, Sort(path, sorts[-1].descending))


def calculate(aggregation: Aggregation, matches: Sequence[Match]) -> Any:
    """The raw Value of one aggregation."""
    if aggregation.kind == "count":
        count = len(matches)
        if aggregation.up_to is not None:
            count = min(count, aggregation.up_to)
        return _Value(integer_value=count)
    assert aggregation.path is not None
    numbers = []
    for match in matches:
        document = match.document
        if document is None:
            document = match.stored.fill(_Document())
        value = fields.find(document.fields, aggregation.path)
        kind = None if value is None else value.WhichOneof("value_type")
        if kind in ("integer_value", "double_value"):
            numbers.append(getattr(value, kind))
    return _sum(numbers) if aggregation.kind == "sum" else _average(numbers)


def _sum(numbers: Sequence[float]) -> Any:
    if all(isinstance(number, int) for number in numbers):
        total = sum(numbers)
        if _LEAST <= total <= _MOST:
            return _Value(integer_value=int(total))
        return _Value(double_value=float(total))
    return _Value(double_value=_float_sum(numbers))


def _average(numbers: Sequence[float]) -> Any:
    if not numbers:
        return _Value(null_value=0)
    if all(isinstance(number, int) for number in numbers):
        return _Value(double_value=sum(numbers) / len(numbers))
    return _Value(double_value=_float_sum(numbers) / len(numbers))


def _float_sum(numbers: Sequence[float]) -> float:
    whole = sum(number for number in numbers if isinstance(number, int))
    total = float(whole)
    for number in numbers:
        if isinstance(number, float):
            total += number
    return math.nan if total != total else total
