"""One Write of a request: checked on its own, then applied to what is stored. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from google.cloud.firestore_v1 import types

from .documents import Database, Stored, micros
from .fields import NAME, FieldPath, find, parse, put, remove
from .paths import check_document_id, check_size, split_document
from .refusals import document_exists, invalid, nothing_to_update, other_version
from .transforms import Transform, apply_transforms, parse_transforms
from .values import check_fields

MAX_DOCUMENT_BYTES = 1 << 20

_Document: Any = types.Document.pb()


class PlannedWrite:
    """A Write that is acceptable in itself; whether it can be made depends on what is stored.

    `exists` and `version` (µs) are its precondition, None where it sets none. `body` is the whole
    document where that is known without looking.
    """

    __slots__ = ("body", "document", "exists", "kind", "mask", "path", "transforms", "version")

    def __init__(self, kind: str, path: str, document: Any) -> None:
        self.kind = kind
        self.path = path
        self.document = document
        self.body: bytes | None = None
        self.mask: Sequence[FieldPath] | None = None
        self.transforms: Sequence[Transform] = ()
        self.exists: bool | None = None
        self.version: int | None = None

    @property
    def deletes(self) -> bool:
        return self.kind == "delete"


def plan(write: Any, database: Database) -> PlannedWrite:
    """Raises Refusal for a raw Write that no database would take."""
    kind = write.WhichOneof("operation")
    if kind == "update":
        planned = _plan_update(write, database)
    elif kind == "delete":
        planned = PlannedWrite(kind, path_in(write.delete, database), None)
        if write.HasField("update_mask"):
            raise invalid("a delete must not specify a document mask.")
        if write.update_transforms:
            raise invalid("a delete must not specify a update transform.")
    elif kind == "transform":
        planned = _plan_transform(write, database)
    else:
        raise invalid("empty write operation")
    if write.HasField("current_document"):
        condition = write.current_document
        if condition.HasField("exists"):
            planned.exists = condition.exists
        elif condition.HasField("update_time"):
            planned.version = micros(condition.update_time)
            if planned.version < 0:
                raise invalid("Only timestamps past epoch are supported.")
    return planned


def path_in(name: str, database: Database) -> str:
    """The path of a full name in this database. Raises Refusal."""
    if name.startswith(database.prefix):
        path = name[len(database.prefix) :]
        parent, _, document = path.rpartition("/")
        if parent in database.collections:  # so its name was checked before
            check_document_id(document)
            return path
    found, path = split_document(name)
    if found != database.name:
        raise invalid(
            f"The request was for database '{database.name}' but was attempting to access "
            f"database '{found}'"
        )
    return path


def _plan_update(write: Any, database: Database) -> PlannedWrite:
    document = write.update
    planned = PlannedWrite("update", check_size(path_in(document.name, database)), document)
    check_fields(document.fields)
    document.ClearField("create_time")
    document.ClearField("update_time")
    if write.update_transforms:
        planned.transforms = parse_transforms(write.update_transforms)
    if write.HasField("update_mask"):
        planned.mask = [parse(text) for text in write.update_mask.field_paths]
    elif not planned.transforms:
        planned.body = _serialize(document)
    return planned


def _plan_transform(write: Any, database: Database) -> PlannedWrite:
    name = write.transform.document
    planned = PlannedWrite("transform", check_size(path_in(name, database)), _Document(name=name))
    if write.HasField("update_mask"):
        raise invalid("a transform must not specify a document mask.")
    if not write.transform.field_transforms:
        raise invalid("The list of FieldTransform must not be empty.")
    planned.transforms = parse_transforms(write.transform.field_transforms)
    planned.mask = ()
    return planned


def check_precondition(write: PlannedWrite, present: Stored | None, name: str) -> None:
    """Raises Refusal if what is stored is not what the write asks for."""
    if write.exists is not None:
        if write.exists and present is None:
            raise nothing_to_update(name)
        if not write.exists and present is not None:
            raise document_exists(name)
    elif write.version is not None:
        stored = 0 if present is None else present.updated
        if stored != write.version:
            raise other_version(stored, write.version)


def outcome(write: PlannedWrite, present: Stored | None, now: int) -> tuple[Stored | None, Any]:
    """What is stored after a write, at `now` µs, and the results of its transforms.

    A write that changes nothing leaves the very version that is there. Raises Refusal if the
    document grows too large.
    """
    if write.deletes:
        return None, ()
    body = write.body
    results: Sequence[Any] = ()
    if body is None:
        document = write.document
        if write.mask is not None:
            document = _masked(write, present)
        results = apply_transforms(document.fields, write.transforms, now)
        body = _serialize(document)
    if present is None:
        return Stored(write.path, body, now, now), results
    if present.body == body:
        return present, results
    return Stored(write.path, body, present.created, now), results


def _masked(write: PlannedWrite, present: Stored | None) -> Any:
    assert write.mask is not None
    document = _Document(name=write.document.name)
    if present is not None:
        document.MergeFromString(present.body)
    for path in write.mask:
        if path == NAME:
            continue
        value = find(write.document.fields, path)
        if value is None:
            remove(document.fields, path)
        else:
            put(document.fields, path, value)
    return document


def _serialize(document: Any) -> bytes:
    # Deterministic, so that equal documents are equal bytes.
    body: bytes = document.SerializeToString(deterministic=True)
    if len(body) > MAX_DOCUMENT_BYTES - 1_024:
        size = document_size(document)
        if size > MAX_DOCUMENT_BYTES:
            raise invalid(
                f"Document '{document.name}' cannot be written because its size ({size:,} bytes) "
                f"exceeds the maximum allowed size of {MAX_DOCUMENT_BYTES:,} bytes."
            )
    return body


def document_size(document: Any) -> int:
    """In bytes, by the rules of https://firebase.google.com/docs/firestore/storage-size."""
    path = document.name.split("/", 5)[5].split("/")
    size = 16 + 32 + sum(len(each.encode()) + 1 for each in path)
    return size + _fields_size(document.fields)


def _fields_size(fields: Any) -> int:
    return sum(len(name.encode()) + 1 + _value_size(fields[name]) for name in fields)


def _value_size(value: Any) -> int:
    kind = value.WhichOneof("value_type")
    if kind == "string_value":
        return len(value.string_value.encode()) + 1
    if kind == "bytes_value":
        return len(value.bytes_value)
    if kind == "reference_value":
        path = value.reference_value.split("/", 5)[5].split("/")
        return 16 + sum(len(each.encode()) + 1 for each in path)
    if kind == "array_value":
        return sum(_value_size(each) for each in value.array_value.values)
    if kind == "map_value":
        return _fields_size(value.map_value.fields)
    return {"null_value": 1, "boolean_value": 1, "geo_point_value": 16}.get(kind, 8)
