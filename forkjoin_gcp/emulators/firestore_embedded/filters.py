"""Filters of a query: checked, then compiled to a test of one document."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from google.cloud.firestore_v1 import types

from .fields import NAME, FieldPath, find, parse
from .refusals import invalid
from .values import ARRAY, NAN, NULL, Order, check_value, order

MAX_DISJUNCTIONS = 30
MAX_NOT_IN = 10

_FieldOperator = types.StructuredQuery.FieldFilter.Operator
_UnaryOperator = types.StructuredQuery.UnaryFilter.Operator
_AND, _OR = 1, 2

INEQUALITIES = frozenset(
    {
        "LESS_THAN",
        "LESS_THAN_OR_EQUAL",
        "GREATER_THAN",
        "GREATER_THAN_OR_EQUAL",
        "NOT_EQUAL",
        "NOT_IN",
        "IS_NOT_NAN",
        "IS_NOT_NULL",
    }
)
_NEGATIONS = frozenset({"NOT_EQUAL", "NOT_IN", "IS_NOT_NAN", "IS_NOT_NULL"})
_LISTS = frozenset({"IN", "NOT_IN", "ARRAY_CONTAINS_ANY"})
_CONTAINS = frozenset({"ARRAY_CONTAINS", "ARRAY_CONTAINS_ANY"})

Row = tuple[Order, Any]
"""A document to be tested: the order of its name, and its raw fields."""
Test = Callable[[Row], bool]


class FieldTest(NamedTuple):
    """A filter on one field. `operands` are in order; one, or those of a list."""

    path: FieldPath
    operator: str
    operands: tuple[Order, ...]


class Composite(NamedTuple):
    """Filters of which all, or any, must hold."""

    any_of: bool
    parts: tuple[Filter, ...]


Filter = FieldTest | Composite


def parse_filter(message: Any, database: str) -> Filter:
    """A raw Filter of a query in `database`. Raises Refusal."""
    tree = _parse(message, database)
    tests = list(walk(tree))
    negations = sum(test.operator in _NEGATIONS for test in tests)
    if negations > 1:
        raise invalid(
            "Only a single 'NOT_EQUAL', 'NOT_IN', 'IS_NOT_NAN', or 'IS_NOT_NULL' filter allowed "
            "per query."
        )
    operators = {test.operator for test in tests}
    if "NOT_IN" in operators and (
        operators & {"IN", "ARRAY_CONTAINS_ANY"} or _has_alternatives(tree)
    ):
        raise invalid(
            "'NOT_IN' cannot be used in the same query with 'IN', 'ARRAY_CONTAINS_ANY' or 'OR'."
        )
    if _disjunctions(tree) > MAX_DISJUNCTIONS:
        raise invalid(f"The query has more than {MAX_DISJUNCTIONS} disjunctions.")
    if _contains(tree) > 1:
        raise invalid("A maximum of 1 'ARRAY_CONTAINS' filter is allowed per disjunction.")
    return tree


def walk(tree: Filter) -> Sequence[FieldTest]:
    """The tests on fields, from left to right."""
    if isinstance(tree, FieldTest):
        return [tree]
    return [test for part in tree.parts for test in walk(part)]


def walk_all(tree: Filter | None) -> Sequence[FieldTest]:
    """As `walk`, of a filter there need not be."""
    return () if tree is None else walk(tree)


def _has_alternatives(tree: Filter) -> bool:
    if isinstance(tree, FieldTest):
        return False
    return tree.any_of or any(map(_has_alternatives, tree.parts))


def possible(tree: Filter) -> Filter | None:
    """Without what no document passes, as a comparison with null; None if nothing is left."""
    if isinstance(tree, FieldTest):
        return None if _compile_test(tree) is _never else tree
    parts = [possible(part) for part in tree.parts]
    left = tuple(part for part in parts if part is not None)
    if len(left) < len(parts) and not (tree.any_of and left):
        return None
    return Composite(tree.any_of, left)


def _disjunctions(tree: Filter) -> int:
    if isinstance(tree, FieldTest):
        return len(tree.operands) if tree.operator in ("IN", "ARRAY_CONTAINS_ANY") else 1
    counts = [_disjunctions(part) for part in tree.parts]
    if tree.any_of:
        return sum(counts)
    product = 1
    for count in counts:
        product *= count
    return product


def _contains(tree: Filter) -> int:
    """Array tests in the disjunction that has most."""
    if isinstance(tree, FieldTest):
        return int(tree.operator in _CONTAINS)
    counts = [_contains(part) for part in tree.parts]
    return max(counts, default=0) if tree.any_of else sum(counts)


def _parse(message: Any, database: str) -> Filter:
    kind = message.WhichOneof("filter_type")
    if kind == "composite_filter":
        return _parse_composite(message.composite_filter, database)
    if kind == "field_filter":
        return _parse_field(message.field_filter, database)
    if kind == "unary_filter":
        return _parse_unary(message.unary_filter)
    raise invalid("Unknown Filter type.")


def _parse_composite(message: Any, database: str) -> Filter:
    if message.op not in (_AND, _OR):
        raise invalid("Unsupported CompositeFilter operator.")
    any_of = message.op == _OR
    if any_of and not message.filters:
        raise invalid("Composite filter must have at least one sub-filter.")
    return Composite(any_of, tuple(_parse(each, database) for each in message.filters))


def _parse_unary(message: Any) -> Filter:
    if message.WhichOneof("operand_type") is None:
        raise invalid("Unknown UnaryFilter operand.")
    path = parse(message.field.field_path)
    try:
        operator = _UnaryOperator(message.op).name
    except ValueError:
        operator = ""
    if operator not in ("IS_NAN", "IS_NULL", "IS_NOT_NAN", "IS_NOT_NULL"):
        raise invalid("Unknown UnaryFilter operator.")
    if path == NAME:
        raise _no_key()
    return FieldTest(path, operator, ())


def _parse_field(message: Any, database: str) -> Filter:
    path = parse(message.field.field_path)
    try:
        operator = _FieldOperator(message.op).name
    except ValueError:
        operator = "OPERATOR_UNSPECIFIED"
    if operator == "OPERATOR_UNSPECIFIED":
        raise invalid("Unknown FieldFilter operator.")
    values = _list(operator, message.value) if operator in _LISTS else [message.value]
    for value in values:
        check_value(value)
    if path == NAME:
        if operator in _CONTAINS:
            raise invalid("the name __key__ is reserved")
        for value in values:
            check_key(value, database)
    return FieldTest(path, operator, tuple(order(value) for value in values))


def _list(operator: str, value: Any) -> list[Any]:
    if value.WhichOneof("value_type") != "array_value":
        raise invalid(f"'{operator}' requires an ArrayValue.")
    values = list(value.array_value.values)
    if not values:
        raise invalid(f"'{operator}' requires an non-empty ArrayValue.")
    most = MAX_NOT_IN if operator == "NOT_IN" else MAX_DISJUNCTIONS
    if len(values) > most:
        raise invalid(f"'{operator}' supports up to {most} comparison values.")
    return values


def _no_key() -> Exception:
    return invalid("__key__ filter value must be a Key")


def check_key(value: Any, database: str) -> None:
    """Raises Refusal for a raw Value that is no document of the database."""
    if value.WhichOneof("value_type") != "reference_value":
        raise _no_key()
    if not value.reference_value.startswith(database + "/"):
        found = "/".join(value.reference_value.split("/", 4)[:4])
        raise invalid(
            f"The request was for database '{database}' but was attempting to access database "
            f"'{found}'"
        )


def compile_filter(tree: Filter) -> Test:
    """The filter as a function."""
    if isinstance(tree, Composite):
        tests = [compile_filter(part) for part in tree.parts]
        if tree.any_of:
            return lambda row: any(test(row) for test in tests)
        return lambda row: all(test(row) for test in tests)
    path, compare = tree.path, _compile_test(tree)
    if path == NAME:
        return lambda row: compare(row[0])

    def holds(row: Row) -> bool:
        value = find(row[1], path)
        return value is not None and compare(order(value))

    return holds


def _compile_test(test: FieldTest) -> Callable[[Order], bool]:
    operator, operands = test.operator, test.operands
    if operator in _UNARY:
        return _UNARY[operator]
    if operator in _RANGES:
        operand, compare = operands[0], _RANGES[operator]
        if operand[0] in (NULL, NAN):
            return _never
        # A value of another type is neither more nor less.
        return lambda value: value[0] == operand[0] and compare(value, operand)
    equal = frozenset(each for each in operands if each[0] not in (NULL, NAN))
    if operator in ("EQUAL", "IN", *_CONTAINS) and not equal:
        return _never
    if operator in ("EQUAL", "IN"):
        return lambda value: value in equal
    if operator in _CONTAINS:
        return lambda value: value[0] == ARRAY and not equal.isdisjoint(value[1])
    if all(each[0] == NULL for each in operands):
        return _never
    if any(each[0] == NULL for each in operands):
        return lambda _: False  # not `_never`: Google takes it for an inequality still
    return lambda value: value[0] != NULL and value not in equal


def _never(_: Order) -> bool:
    return False


_UNARY: dict[str, Callable[[Order], bool]] = {
    "IS_NAN": lambda value: value[0] == NAN,
    "IS_NULL": lambda value: value[0] == NULL,
    "IS_NOT_NAN": lambda value: value[0] not in (NAN, NULL),
    "IS_NOT_NULL": lambda value: value[0] != NULL,
}
_RANGES: dict[str, Callable[[Order, Order], bool]] = {
    "LESS_THAN": lambda value, operand: value < operand,
    "LESS_THAN_OR_EQUAL": lambda value, operand: value <= operand,
    "GREATER_THAN": lambda value, operand: value > operand,
    "GREATER_THAN_OR_EQUAL": lambda value, operand: value >= operand,
}
