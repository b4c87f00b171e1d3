"""Resource names: taken apart, checked as Firestore checks them, and put in its order."""

from __future__ import annotations

import re
from functools import lru_cache

from .refusals import invalid

MAX_ID_BYTES = 1_500
MAX_SEGMENTS = 200

_RESERVED = re.compile(r"__.+__", re.DOTALL)
_NUMERIC_ID = re.compile(r"__id(0|-?[1-9][0-9]{0,18})__")
_ROOT = "/documents"


class _Reader:
    """Reads a name from the left; its refusals say what is missing, and where."""

    def __init__(self, name: str, what: str) -> None:
        self.name = name
        self._what = what
        self._at = 0

    @property
    def done(self) -> bool:
        return self._at >= len(self.name)

    def slash(self) -> None:
        if not self.name.startswith("/", self._at):
            raise self._wrong(f'lacks "/" at index {self._at}.')
        self._at += 1

    def word(self, word: str) -> None:
        if self._next() != word:
            raise self._wrong(f'lacks "{word}" at index {self._at}.')
        self._at += len(word)

    def segment(self, kind: str) -> str:
        if self.done and self._at:
            raise self._wrong('has invalid trailing "/".')
        segment = self._next()
        if not segment:
            raise self._wrong(f"lacks a {kind} at index {self._at}.")
        if segment in (".", ".."):
            raise self._wrong(f'contains a {kind} "{segment}" at index {self._at}.')
        self._at += len(segment)
        return segment

    def end(self) -> None:
        if not self.done:
            raise self._wrong(f"has extra characters at index {self._at}.")

    def _next(self) -> str:
        end = self.name.find("/", self._at)
        return self.name[self._at : end if end >= 0 else len(self.name)]

    def _wrong(self, how: str) -> Exception:
        return invalid(f'{self._what} "{self.name}" {how}')


def _read_database(reader: _Reader) -> str:
    reader.word("projects")
    reader.slash()
    project = reader.segment("project id")
    reader.slash()
    reader.word("databases")
    reader.slash()
    return f"projects/{project}/databases/{reader.segment('database id')}"


@lru_cache(maxsize=256)
def check_database(name: str) -> str:
    """The name of a database, if it is one. Raises Refusal."""
    reader = _Reader(name, "Database name")
    database = _read_database(reader)
    reader.end()
    return database


def split_parent(name: str) -> tuple[str, str]:
    """Database and path of a document; the path is empty for a database's root. Raises Refusal."""
    reader = _Reader(name, "Document parent name")
    database = _read_database(reader)
    if name == database + _ROOT:
        return database, ""
    return _read_path(reader, database)


def split_document(name: str, what: str = "Document name") -> tuple[str, str]:
    """Database and path of a document. Raises Refusal."""
    reader = _Reader(name, what)
    return _read_path(reader, _read_database(reader))


def _read_path(reader: _Reader, database: str) -> tuple[str, str]:
    reader.slash()
    reader.word("documents")
    reader.slash()
    while True:
        check_collection_id(reader.segment("collection id"))
        reader.slash()
        check_document_id(reader.segment("resource id"))
        if reader.done:
            break
        reader.slash()
    return database, reader.name[len(database) + len(_ROOT) + 1 :]


def check_collection_id(collection: str) -> str:
    """Raises Refusal for what is no id of a collection."""
    if not collection:
        raise invalid("collectionId is the empty string.")
    return _check_id("Collection", collection, numeric=False)


def check_document_id(document: str) -> str:
    """Raises Refusal for what is no id of a document."""
    # The common case, on every write.
    if "/" not in document and document[:1] not in ("", ".", "_"):
        return document
    return _check_id("Resource", document, numeric=True)


def _check_id(what: str, text: str, *, numeric: bool) -> str:
    if "/" in text:
        raise invalid(f'{what} id "{text}" is invalid because it contains "/".')
    if not text or text in (".", ".."):
        raise invalid(f'{what} id "{text}" is invalid.')
    if _RESERVED.fullmatch(text) and not (numeric and _numeric(text) is not None):
        raise invalid(f'{what} id "{text}" is invalid because it is reserved.')
    return text


def check_size(path: str) -> str:
    """A path, if a document may be written there (any may be read alone, and deleted).

    Raises Refusal.
    """
    # By far the most are too short for anything to be too long.
    if len(path) > MAX_ID_BYTES // 4:
        segments = path.split("/")
        if len(segments) > MAX_SEGMENTS:
            raise invalid("Key path is too long. Cannot exceed 100 elements.")
        if max(len(segment.encode()) for segment in segments) > MAX_ID_BYTES:
            raise invalid(f"The key path element name is longer than {MAX_ID_BYTES} bytes.")
    return path


def _numeric(document: str) -> int | None:
    found = _NUMERIC_ID.fullmatch(document)
    if found is None:
        return None
    number = int(found[1])
    return number if -(1 << 63) <= number < 1 << 63 else None


def id_order(document: str) -> str:
    """What sorts as the ids of documents do: numeric ones first, then texts by their bytes.

    (The order of Python's strings, by code point, is that of their UTF-8 bytes.)
    """
    if document.startswith("__id"):
        number = _numeric(document)
        if number is not None:
            return f"\0{number + (1 << 63):020}"
    return document


def path_order(path: str) -> tuple[str, ...]:
    """What sorts as the documents of a database do."""
    segments = path.split("/")
    if "__id" in path:
        segments[1::2] = map(id_order, segments[1::2])
    return tuple(segments)
