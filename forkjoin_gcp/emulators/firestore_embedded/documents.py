"""The documents of one database, in key order. Pure: no I/O, no clock."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from heapq import merge
from itertools import islice
from typing import Any, NamedTuple

from .paths import id_order, path_order
from .refusals import invalid

_BUCKET = 512


class Stored:
    """One version of a document: never changed, only replaced.

    `body` is a serialized Document with name and fields; the times are in µs since the epoch.
    """

    __slots__ = ("body", "created", "path", "updated")

    def __init__(self, path: str, body: bytes, created: int, updated: int) -> None:
        self.path = path
        self.body = body
        self.created = created
        self.updated = updated

    def is_same(self, other: Stored) -> bool:
        """Whether both are one document with one content."""
        return self.created == other.created and self.body == other.body

    def fill(self, document: Any) -> Any:
        """Makes an empty raw Document this one; returns it."""
        document.MergeFromString(self.body)
        set_time(document.create_time, self.created)
        set_time(document.update_time, self.updated)
        return document


def set_time(timestamp: Any, micros: int) -> None:
    """Sets a raw Timestamp."""
    timestamp.seconds, rest = divmod(micros, 1_000_000)
    timestamp.nanos = rest * 1_000


def micros(timestamp: Any) -> int:
    """A raw Timestamp in µs. Raises Refusal for one that is more precise."""
    if timestamp.nanos % 1_000:
        raise invalid("timestamp cannot have more than microseconds precision")
    return int(timestamp.seconds * 1_000_000 + timestamp.nanos // 1_000)


class SortedKeys:
    """Texts in order, in buckets: adding to 100,000 moves a few hundred."""

    __slots__ = ("_buckets", "_lasts")

    def __init__(self) -> None:
        self._buckets: list[list[str]] = []
        self._lasts: list[str] = []

    def add(self, key: str) -> None:
        """Of a key that is not there yet."""
        if not self._buckets:
            self._buckets.append([key])
            self._lasts.append(key)
            return
        at = min(bisect_left(self._lasts, key), len(self._lasts) - 1)
        bucket = self._buckets[at]
        insort(bucket, key)
        if len(bucket) > 2 * _BUCKET:
            # An ascending load leaves full buckets behind.
            cut = len(bucket) - 1 if bucket[-1] == key and at == len(self._lasts) - 1 else _BUCKET
            self._buckets.insert(at + 1, bucket[cut:])
            del bucket[cut:]
            self._lasts.insert(at + 1, self._buckets[at + 1][-1])
        self._lasts[at] = bucket[-1]

    def remove(self, key: str) -> None:
        """Of a key that is there."""
        at = bisect_left(self._lasts, key)
        bucket = self._buckets[at]
        del bucket[bisect_left(bucket, key)]
        if bucket:
            self._lasts[at] = bucket[-1]
        else:
            del self._buckets[at]
            del self._lasts[at]

    def since(self, key: str) -> Iterator[str]:
        """Those that are `key` or come after it. Not to be changed meanwhile."""
        at = bisect_left(self._lasts, key)
        if at < len(self._buckets):
            bucket = self._buckets[at]
            yield from bucket[bisect_left(bucket, key) :]
            for bucket in self._buckets[at + 1 :]:
                yield from bucket


class Collection:
    """The documents directly in one collection, by id."""

    __slots__ = ("documents", "keys", "order", "path")

    def __init__(self, path: str) -> None:
        self.path = path
        self.order = path_order(path)
        self.documents: dict[str, Stored] = {}
        self.keys = SortedKeys()

    def scan(self, since: tuple[str, ...]) -> Iterator[Stored]:
        """Those at or after a place in the database's key order, in this order."""
        depth = len(self.order)
        if since[:depth] < self.order:
            first = ""
        elif since[:depth] > self.order:
            return
        else:
            first = since[depth] if len(since) > depth else ""
            if len(since) > depth + 1:
                # A place below a document comes after it; this is the next text there is.
                first += "\0"
        documents = self.documents
        for key in self.keys.since(first):
            yield documents[key]


class Scope(NamedTuple):
    """Where a query looks: below `parent`, a document's path or empty for the root.

    `collection` empty: every collection. `deep`: at any depth, not only right below the parent.
    """

    parent: str
    collection: str
    deep: bool

    def holds(self, collection_path: str) -> bool:
        """Whether the documents of a collection are within."""
        parent, _, collection = collection_path.rpartition("/")
        if self.collection and collection != self.collection:
            return False
        if not self.deep:
            return parent == self.parent
        return not self.parent or collection_path.startswith(self.parent + "/")


class Database:
    """All documents of one database."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.prefix = f"{name}/documents/"
        self.collections: dict[str, Collection] = {}
        self._groups: dict[str, dict[str, Collection]] = {}
        self._ordered: dict[str, tuple[list[Collection], bool]] = {}

    def get(self, path: str) -> Stored | None:
        """The document at a path."""
        parent, _, document = path.rpartition("/")
        collection = self.collections.get(parent)
        return None if collection is None else collection.documents.get(id_order(document))

    def put(self, stored: Stored) -> None:
        """Adds a document, or replaces the one at its path."""
        parent, _, document = stored.path.rpartition("/")
        collection = self.collections.get(parent)
        if collection is None:
            collection = self._add_collection(parent)
        key = id_order(document)
        if key not in collection.documents:
            collection.keys.add(key)
        collection.documents[key] = stored

    def remove(self, path: str) -> None:
        """Takes away the document at a path, which is there."""
        parent, _, document = path.rpartition("/")
        collection = self.collections[parent]
        key = id_order(document)
        del collection.documents[key]
        collection.keys.remove(key)
        if not collection.documents:
            del self.collections[parent]
            group = parent.rpartition("/")[2]
            del self._groups[group][parent]
            self._ordered.pop(group, None)
            self._ordered.pop("", None)

    def _add_collection(self, path: str) -> Collection:
        collection = self.collections[path] = Collection(path)
        group = path.rpartition("/")[2]
        self._groups.setdefault(group, {})[path] = collection
        self._ordered.pop(group, None)
        self._ordered.pop("", None)
        return collection

    def _group(self, collection_id: str) -> tuple[list[Collection], bool]:
        """The collections of one id, or all, in order; and whether all are equally deep."""
        ordered = self._ordered.get(collection_id)
        if ordered is None:
            group = self._groups.get(collection_id, {}) if collection_id else self.collections
            found = sorted(group.values(), key=lambda collection: collection.order)
            ordered = found, len({len(collection.order) for collection in found}) < 2
            self._ordered[collection_id] = ordered
        return ordered

    def scan(self, scope: Scope, since: tuple[str, ...] = ()) -> Iterator[Stored]:
        """The documents within `scope` at or after a place, in key order."""
        if scope.collection and not scope.deep:
            path = f"{scope.parent}/{scope.collection}" if scope.parent else scope.collection
            collection = self.collections.get(path)
            if collection is not None:
                yield from collection.scan(since)
            return
        group, equally_deep = self._group(scope.collection)
        if equally_deep:
            # None is nested in another, so they do not interleave.
            depth = len(group[0].order) if group else 0
            first = bisect_left(group, since[:depth], key=lambda collection: collection.order)
            for collection in islice(group, first, None):
                if scope.holds(collection.path):
                    yield from collection.scan(since)
            return
        found = [each for each in group if scope.holds(each.path)]
        yield from merge(
            *(each.scan(since) for each in found), key=lambda stored: path_order(stored.path)
        )
