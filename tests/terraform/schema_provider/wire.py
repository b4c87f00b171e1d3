"""Terraform's plugin protocol, version 5, as far as a schema needs it: protobuf by hand.

A dozen fields of a protocol that does not change are less than a compiler for its .proto file.
"""

from __future__ import annotations

import json
from typing import Any

ERROR, WARNING = 1, 2

_NESTING = {"single": 1, "list": 2, "set": 3, "map": 4, "group": 5}


def integer(field: int, value: int) -> bytes:
    """A varint field; nothing where it is 0, the default."""
    return _varint(field << 3) + _varint(int(value)) if value else b""


def text(field: int, value: bytes | str) -> bytes:
    """A length-delimited field: a string, bytes or a message."""
    data = value.encode() if isinstance(value, str) else value
    return _varint(field << 3 | 2) + _varint(len(data)) + data


def diagnostic(field: int, severity: int, summary: str, detail: str) -> bytes:
    """A Diagnostic in ``field`` of a response."""
    return text(field, integer(1, severity) + text(2, summary) + text(3, detail))


def provider_schema(schema: dict[str, Any]) -> bytes:
    """GetProviderSchema.Response."""
    out = text(1, _schema(schema["provider"]))
    for field, part in ((2, "resource_schemas"), (3, "data_source_schemas")):
        for name, entry in schema[part].items():
            out += text(field, text(1, name) + text(2, _schema(entry)))
    return out


def fields(message: bytes) -> dict[int, bytes]:
    """The length-delimited fields of a message, which are all that the requests read here hold."""
    found, at = {}, 0
    while at < len(message):
        key, at = _read_varint(message, at)
        size, at = _read_varint(message, at)
        if key & 7 == 2:
            found[key >> 3] = message[at : at + size]
            at += size
    return found


def _schema(entry: dict[str, Any]) -> bytes:
    return integer(1, entry["version"]) + text(2, _block(entry["block"]))


def _block(block: dict[str, Any]) -> bytes:
    out = b""
    for name, one in sorted(block.get("attributes", {}).items()):
        flags = enumerate((one.get(flag, 0) for flag in ("required", "optional", "computed")), 4)
        out += text(
            2,
            text(1, name)
            + text(2, json.dumps(one["type"]))
            + b"".join(integer(field, flag) for field, flag in flags),
        )
    for name, one in sorted(block.get("block_types", {}).items()):
        out += text(
            3,
            text(1, name)
            + text(2, _block(one["block"]))
            + integer(3, _NESTING[one["nesting_mode"]])
            + integer(4, one.get("min_items", 0))
            + integer(5, one.get("max_items", 0)),
        )
    return out


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def _read_varint(message: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        byte = message[at]
        at += 1
        number |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return number, at
