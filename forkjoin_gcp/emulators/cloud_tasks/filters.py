"""The filters of ListQueues: comparisons of a queue's fields, joined by AND, OR, NOT and ().

The API documents "any Queue field", the operators <=, <, >=, >, !=, = and :, and the syntax of
Cloud Logging's filters: texts compare without regard to case, `:` asks whether a text contains
the value (or, without a value's kind of its own, whether it equals it), AND may be left out and
binds less tightly than OR.
"""

from __future__ import annotations

import datetime
import operator
import re
from collections.abc import Callable
from typing import Any

from . import refusals
from .queue_messages import QueueMessage

Predicate = Callable[[Any], bool]
"""Whether a Queue message is to be listed."""

_TOKEN = re.compile(
    r"""\s*(?:(?P<quoted>"(?:[^"\\]|\\.)*")|(?P<operator><=|>=|!=|<|>|=|:)|(?P<paren>[()])"""
    r"""|(?P<word>(?:[^\s<>=!:()"]|(?<=\d):)+))"""
)
_COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "<=": operator.le,
    "<": operator.lt,
    ">=": operator.ge,
    ">": operator.gt,
    "!=": operator.ne,
    "=": operator.eq,
    ":": operator.eq,
}
_MOST_TERMS = 200


def predicate(text: str) -> Predicate:
    """What the filter asks for; an empty one asks for nothing. Raises Refusal INVALID_ARGUMENT."""
    if not text.strip():
        return lambda _: True
    return _Parser(text).parse()


class _Parser:
    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens: list[tuple[str, str]] = []
        position, end = 0, len(text.rstrip())
        while position < end:
            match = _TOKEN.match(text, position)
            if match is None:
                raise self._invalid(f"at {text[position : position + 20]!r}")
            kind = str(match.lastgroup)
            self._tokens.append((kind, match.group(kind)))
            position = match.end()
        if len(self._tokens) > 4 * _MOST_TERMS:
            raise self._invalid("too long")
        self._tokens.reverse()

    def parse(self) -> Predicate:
        found = self._all()
        if self._tokens:
            raise self._invalid(f"unexpected {self._tokens[-1][1]!r}")
        return found

    def _all(self) -> Predicate:
        parts = [self._any()]
        while self._tokens and self._tokens[-1] != ("paren", ")"):
            self._accept("AND")  # may be left out
            parts.append(self._any())
        return lambda queue: all(part(queue) for part in parts)

    def _any(self) -> Predicate:
        parts = [self._one()]
        while self._accept("OR"):
            parts.append(self._one())
        return lambda queue: any(part(queue) for part in parts)

    def _one(self) -> Predicate:
        if self._accept("NOT"):
            negated = self._one()
            return lambda queue: not negated(queue)
        kind, text = self._next()
        if (kind, text) == ("paren", "("):
            inner = self._all()
            if self._next() != ("paren", ")"):
                raise self._invalid("a parenthesis is not closed")
            return inner
        if kind != "word":
            raise self._invalid(f"unexpected {text!r}")
        sign_kind, sign = self._next()
        value_kind, value = self._next()
        if sign_kind != "operator" or value_kind not in {"word", "quoted"}:
            raise self._invalid(f"{text} must be compared with a value")
        if value_kind == "quoted":
            value = re.sub(r"\\(.)", r"\1", value[1:-1])
        return self._comparison(text, sign, value)

    def _comparison(self, path: str, sign: str, value: str) -> Predicate:
        fields = [_snake(field) for field in path.split(".")]
        descriptor: Any = QueueMessage.DESCRIPTOR
        field: Any = None
        for name in fields:
            field = descriptor.fields_by_name.get(name) if descriptor is not None else None
            if field is None or field.is_repeated:
                raise self._invalid(f"a queue has no field {path} to compare")
            descriptor = field.message_type
        wanted = self._wanted(field, path, value)
        compare = _COMPARISONS[sign]
        if sign == ":" and isinstance(wanted, str) and field.enum_type is None:
            return lambda queue: wanted in _shown(queue, fields, field)
        return lambda queue: compare(_shown(queue, fields, field), wanted)

    def _wanted(self, field: Any, path: str, value: str) -> str | float:
        kind = field.message_type.full_name if field.message_type is not None else ""
        try:
            if kind == "google.protobuf.Duration":
                return float(value.removesuffix("s"))
            if kind == "google.protobuf.Timestamp":
                return datetime.datetime.fromisoformat(value).timestamp()
            if kind:
                raise self._invalid(f"{path} is no field to compare")
            if field.enum_type is not None:
                if value.upper() not in field.enum_type.values_by_name:
                    raise self._invalid(f"{path} is never {value!r}")
                return value.upper()
            return value.lower() if field.type == field.TYPE_STRING else float(value)
        except ValueError:
            raise self._invalid(f"{path} cannot be compared with {value!r}") from None

    def _accept(self, word: str) -> bool:
        if self._tokens and self._tokens[-1] == ("word", word):
            self._tokens.pop()
            return True
        return False

    def _next(self) -> tuple[str, str]:
        if not self._tokens:
            raise self._invalid("it ends too early")
        return self._tokens.pop()

    def _invalid(self, why: str) -> refusals.Refusal:
        return refusals.invalid(f"Invalid filter {self._text[:200]!r}: {why}.")


def _shown(message: Any, fields: list[str], field: Any) -> Any:
    """The field's value in the form that `_wanted` has."""
    for name in fields:
        message = getattr(message, name)
    if field.enum_type is not None:
        return field.enum_type.values_by_number[message].name
    if field.message_type is not None:
        return message.seconds + message.nanos / 1e9
    return message.lower() if isinstance(message, str) else float(message)


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z])([A-Z])", lambda match: "_" + match.group(1).lower(), name)
