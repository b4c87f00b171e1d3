"""Field paths, and what they lead to in the fields of a raw Document."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from .refusals import invalid

FieldPath = tuple[str, ...]
NAME: FieldPath = ("__name__",)
"""The document itself."""

_SEGMENT = re.compile(r"([a-zA-Z_][a-zA-Z_0-9]*)|`((?:[^`\\]|\\.)+)`", re.DOTALL)
_RESERVED = re.compile(r"__.+__", re.DOTALL)


@lru_cache(maxsize=4_096)
def parse(text: str) -> FieldPath:
    """The segments of a field path. Raises Refusal."""
    if not text:
        raise invalid("Invalid empty property path string.")
    segments, at = [], 0
    while True:
        found = _SEGMENT.match(text, at)
        if found is None:
            raise _malformed(text)
        quoted = found[2]
        segments.append(found[1] if quoted is None else re.sub(r"\\(.)", r"\1", quoted))
        at = found.end()
        if at == len(text):
            break
        if text[at] != ".":
            raise _malformed(text)
        at += 1
    path = tuple(segments)
    if path != NAME:
        for segment in path:
            if _RESERVED.fullmatch(segment):
                raise invalid(f"Invalid reserved name in field path {segment}")
    return path


def _malformed(text: str) -> Exception:
    return invalid(
        f'Invalid property path "{text}". Unquoted property paths must match regex '
        r"([a-zA-Z_][a-zA-Z_0-9]*), and quoted property paths must match regex "
        r"(`(?:[^`\\]|(?:\\.))+`)"
    )


def find(fields: Any, path: FieldPath) -> Any:
    """The raw Value at `path`, or None."""
    value = None
    for segment in path:
        if value is not None:
            if value.WhichOneof("value_type") != "map_value":
                return None
            fields = value.map_value.fields
        if segment not in fields:
            return None
        value = fields[segment]
    return value


def put(fields: Any, path: FieldPath, value: Any) -> None:
    """Sets `path` to a copy of `value`; what is in the way and no map gives place to one."""
    for segment in path[:-1]:
        step = fields[segment]
        if step.WhichOneof("value_type") != "map_value":
            step.Clear()
            step.map_value.SetInParent()
        fields = step.map_value.fields
    fields[path[-1]].CopyFrom(value)


def remove(fields: Any, path: FieldPath) -> None:
    """Takes `path` away if it is there; maps that become empty stay."""
    if len(path) > 1:
        parent = find(fields, path[:-1])
        if parent is None or parent.WhichOneof("value_type") != "map_value":
            return
        fields = parent.map_value.fields
    fields.pop(path[-1], None)


def project(document: Any, paths: Iterable[FieldPath]) -> None:
    """Leaves in a raw Document what is at `paths` and nothing else."""
    kept = type(document)()
    for path in paths:
        value = find(document.fields, path)
        if value is not None:
            put(kept.fields, path, value)
    document.ClearField("fields")
    document.MergeFrom(kept)
