"""Structured queries: checked, then run over a view of the documents."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

from google.cloud.firestore_v1 import types

from . import fields
from .documents import Scope, Stored
from .fields import NAME, FieldPath
from .filters import (
    INEQUALITIES,
    Composite,
    FieldTest,
    Filter,
    Test,
    check_key,
    compile_filter,
    parse_filter,
    possible,
    walk_all,
)
from .paths import check_collection_id, check_size, path_order
from .refusals import invalid, key_scan_descends, not_served
from .transactions import View
from .values import REFERENCE, Order, check_value, order

_Document: Any = types.Document.pb()
_ASCENDING, _DESCENDING = 1, 2


class Sort(NamedTuple):
    """One field of the order of a query."""

    path: FieldPath
    descending: bool


class Cursor(NamedTuple):
    """A place in the order of the results: before or after what begins with `values`."""

    values: tuple[Order, ...]
    before: bool


class Match(NamedTuple):
    """A document a query found. `document` is the raw one, where it was needed to decide."""

    stored: Stored
    document: Any
    keys: tuple[Order, ...]


class Query:
    """A query that is acceptable. `scope` is all it looks at, `select` None for whole documents."""

    def __init__(self, message: Any, database: str, parent: str) -> None:
        """Of a raw StructuredQuery. Raises Refusal."""
        self._prefix: Order = (REFERENCE, *database.split("/")[1::2])
        self.scope = _scope(message, parent)
        self._filter: Filter | None = None
        self._test: Test | None = None
        self._hopeless = False
        """Whether no document can pass the filter: then Firestore looks at nothing else."""
        tree: Filter | None = None
        if message.HasField("where"):
            tree = parse_filter(message.where, database)
            self._test = compile_filter(tree)
            self._filter = possible(tree)
            self._hopeless = self._filter is None
        explicit = _orders(message)
        self.sorts = self._complete(explicit)
        self.named = bool(explicit) and explicit[-1].path == NAME
        """Whether the name has its place in the order for another reason than to break ties."""
        self.named |= any(test.path == NAME for test in walk_all(tree))
        self._start = _cursor(message, "start_at", explicit, database)
        self._end = _cursor(message, "end_at", explicit, database)
        if message.limit.value < 0:
            raise invalid("limit is negative")
        if message.offset < 0:
            raise invalid("offset is negative")
        self._offset = message.offset
        self.limit: int | None = message.limit.value if message.HasField("limit") else None
        self.select: list[FieldPath] | None = None
        if message.HasField("select"):
            self.select = [fields.parse(each.field_path) for each in message.select.fields]
        if message.HasField("find_nearest"):
            raise not_served("vector search (find_nearest)")
        self._check_served(tree)

    def _complete(self, explicit: list[Sort]) -> list[Sort]:
        """With what Firestore adds: fields of inequalities, and the name, which breaks ties."""
        sorts = list(explicit)
        tests = walk_all(self._filter)
        given = {sort.path for sort in sorts}
        unequal = {test.path for test in tests if test.operator in INEQUALITIES}
        if unequal and NAME not in unequal and any(test.path == NAME for test in tests):
            raise invalid(
                "Equality on key is not allowed if there are other inequality fields and key does "
                "not appear in inequalities."
            )
        more = unequal - given - {NAME}
        if sorts and sorts[-1].path == NAME:
            if more:
                raise _after_key()
            return sorts
        descending = bool(sorts) and sorts[-1].descending
        sorts += [Sort(path, descending) for path in sorted(more)]
        return [*sorts, Sort(NAME, descending)]

    def _check_served(self, tree: Filter | None) -> None:
        """Raises Refusal for an order, or a filter, that no index of Firestore could serve."""
        filtered = {test.path for test in walk_all(tree)} - {NAME}
        if not self.scope.collection:
            if filtered:
                raise invalid(f"kind is required for filter: {'.'.join(min(filtered))}")
            if self.sorts != [Sort(NAME, descending=False)]:
                raise invalid("kind is required for all orders except __key__ ascending")
        if self.scope.deep and self.scope.parent and (filtered or self.sorts[0].path != NAME):
            raise invalid("collection group queries are only allowed at the root parent")
        # A filter on another field is served by an index, which can be read from its end.
        others = {test.path for test in walk_all(self._filter)} - {NAME}
        if self.sorts[0] == Sort(NAME, descending=True) and not (others or self._hopeless):
            raise key_scan_descends()

    def run(self, view: View) -> list[Match]:
        """What the query finds, in order."""
        if self._hopeless:
            return []
        found = self._matches(view)
        if len(self.sorts) > 1 or self.sorts[0].descending:
            ranked = list(found)
            for at, sort in reversed(list(enumerate(self.sorts))):
                ranked.sort(key=lambda match, at=at: match.keys[at], reverse=sort.descending)  # type: ignore[misc]
            found = iter(ranked)
        if self._start is not None or self._end is not None:
            found = (match for match in found if self._within(match))
        stop = None if self.limit is None else self._offset + self.limit
        return list(islice(found, self._offset, stop))

    def _matches(self, view: View) -> Iterator[Match]:
        test, sorts = self._test, self.sorts
        since, until = self._name_range()
        by_name = len(sorts) == 1
        for stored in view.scan(self.scope, since):
            place = path_order(stored.path)
            if until is not None and place > until:
                break
            name = (*self._prefix, place)
            if by_name and (test is None or not self._reads_fields):
                if test is None or test((name, None)):
                    yield Match(stored, None, (name,))
                continue
            document = stored.fill(_Document())
            if test is not None and not test((name, document.fields)):
                continue
            keys = self._keys(name, document)
            if keys is not None:
                yield Match(stored, document, keys)

    @property
    def _reads_fields(self) -> bool:
        return any(test.path != NAME for test in walk_all(self._filter))

    def _keys(self, name: Order, document: Any) -> tuple[Order, ...] | None:
        """What a document is sorted by; None where it lacks a field, and so is not found."""
        keys = []
        for sort in self.sorts:
            if sort.path == NAME:
                keys.append(name)
                continue
            value = fields.find(document.fields, sort.path)
            if value is None:
                return None
            keys.append(order(value))
        return tuple(keys)

    def _name_range(self) -> tuple[tuple[str, ...], tuple[str, ...] | None]:
        """The first and last name that can match: what lies outside is not looked at."""
        lows: list[Order] = []
        highs: list[Order] = []
        for test in _required(self._filter):
            if test.path == NAME:
                if test.operator in ("EQUAL", "GREATER_THAN", "GREATER_THAN_OR_EQUAL"):
                    lows.append(test.operands[0])
                if test.operator in ("EQUAL", "LESS_THAN", "LESS_THAN_OR_EQUAL"):
                    highs.append(test.operands[0])
                if test.operator == "IN":
                    lows.append(min(test.operands))
                    highs.append(max(test.operands))
        if self.sorts == [Sort(NAME, descending=False)]:
            if self._start is not None and self._start.values:
                lows.append(self._start.values[0])
            if self._end is not None and self._end.values:
                highs.append(self._end.values[0])
        since = max(lows)[3] if lows else ()
        return since, min(highs)[3] if highs else None

    def _within(self, match: Match) -> bool:
        if self._start is not None:
            side = self._side(match, self._start.values)
            if side < 0 or (side == 0 and not self._start.before):
                return False
        if self._end is not None:
            side = self._side(match, self._end.values)
            if side > 0 or (side == 0 and self._end.before):
                return False
        return True

    def _side(self, match: Match, values: Sequence[Order]) -> int:
        """-1, 0 or 1: a result comes before, at or after a place."""
        for key, value, sort in zip(match.keys, values, self.sorts, strict=False):
            if key != value:
                return 1 if (key > value) != sort.descending else -1
        return 0

    def fill(self, match: Match, document: Any) -> Any:
        """Makes an empty raw Document what the query answers for a match; returns it."""
        match.stored.fill(document)
        if self.select is not None:
            fields.project(document, self.select)
        return document


def _required(tree: Filter | None) -> Sequence[FieldTest]:
    """Tests that every result passes."""
    if tree is None:
        return ()
    if isinstance(tree, FieldTest):
        return (tree,)
    if isinstance(tree, Composite) and (not tree.any_of or len(tree.parts) == 1):
        return [test for part in tree.parts for test in _required(part)]
    return ()


def _scope(message: Any, parent: str) -> Scope:
    check_size(parent)
    selectors = message.from_
    if len(selectors) > 1:
        raise invalid("StructuredQuery.from cannot have more than one collection selector.")
    if not selectors:
        return Scope(parent, "", deep=False)
    selector = selectors[0]
    if selector.collection_id:
        check_collection_id(selector.collection_id)
    return Scope(parent, selector.collection_id, selector.all_descendants)


def _orders(message: Any) -> list[Sort]:
    sorts: list[Sort] = []
    for each in message.order_by:
        path = fields.parse(each.field.field_path)
        if each.direction not in (0, _ASCENDING, _DESCENDING):
            raise invalid("Unrecognized ordering.")
        if sorts and sorts[-1].path == NAME:
            raise _after_key()
        if any(sort.path == path for sort in sorts):
            raise invalid(
                f"order by clause cannot contain duplicate fields {each.field.field_path}"
            )
        sorts.append(Sort(path, each.direction == _DESCENDING))
    return sorts


def _after_key() -> Exception:
    return invalid("order by clause cannot contain more fields after the key")


def _cursor(message: Any, name: str, sorts: list[Sort], database: str) -> Cursor | None:
    if not message.HasField(name):
        return None
    cursor = getattr(message, name)
    if len(cursor.values) > len(sorts):
        raise invalid("Cursor has too many values.")
    for value, sort in zip(cursor.values, sorts, strict=False):
        check_value(value)
        if sort.path == NAME:
            if value.WhichOneof("value_type") != "reference_value":
                raise invalid("Cursor __key__ value is not a document reference.")
            check_key(value, database)
    return Cursor(tuple(order(value) for value in cursor.values), cursor.before)
