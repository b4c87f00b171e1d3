"""Scans of all stored segments in Firestore, in key order, over collection groups.

Firestore orders a collection group by whole paths, part by part, so that a range of batch keys is
a range of paths. ``__name__`` ascending is the one order that needs no index of ours.
"""

from __future__ import annotations

import logging
import re
from collections.abc import AsyncIterator
from typing import Any

from google.cloud.firestore_v1 import types

from forkjoin_gcp.errors import ConfigurationError
from forkjoin_gcp.gcp.firestore_client import FirestoreCalls
from forkjoin_gcp.gcp.firestore_documents import (
    DEAD_LETTERS,
    SEGMENTS,
    count_of,
    due_of,
    position_of,
    updated_at,
)
from forkjoin_gcp.names import MAX_POSITIONS, Batch, Lane, segment_id
from forkjoin_gcp.ports import KeyRange, Scanned

logger = logging.getLogger(__name__)

_RunQueryRequest: Any = types.RunQueryRequest.pb()
_ASCENDING = int(types.StructuredQuery.Direction.ASCENDING)

ROOT = "forkjoin"

# What comes between names: "!" before every character of one, "~" after.
_BEFORE, _AFTER = "!", "~"

_PLACE = re.compile(rf"/documents/{ROOT}/[^/]+/batches/([^/]+)/{SEGMENTS}/[^/]+$")


class FirestoreScan:
    """Looks for segments and dead letters wherever they are in a database."""

    def __init__(self, calls: FirestoreCalls) -> None:
        self._calls = calls

    async def versions(self) -> list[tuple[str, str]]:
        """Each queue and version that has segments: one document is read for each, and one more."""
        return await self._owners(SEGMENTS, "0", _AFTER)

    async def graves(self, queue: str) -> list[Lane]:
        """Each version of a queue that has dead letters."""
        found = await self._owners(DEAD_LETTERS, f"{queue}.", f"{queue}.{_AFTER}")
        return [Lane(queue, version) for _, version in found]

    async def scan(self, wanted: KeyRange, page: int) -> AsyncIterator[list[Scanned]]:
        """Segments in key order, in lists of up to ``page``."""
        root = f"{ROOT}/{wanted.queue}.{wanted.version}/batches"
        place = segment_id(wanted.first) if wanted.first < MAX_POSITIONS else _AFTER
        start = f"{root}/{wanted.start}/{SEGMENTS}/{place}"
        stop = f"{root}/{wanted.stop}/{SEGMENTS}/{_BEFORE}"
        after = ""
        while True:
            request = self._query(SEGMENTS, start, stop, page, "count", "due")
            if after:
                cursor = request.structured_query.start_at
                cursor.values[0].reference_value = after
                cursor.before = False
            documents = await self._calls.query(request)
            found = [one for document in documents if (one := _scanned(document, wanted))]
            if found:
                yield found
            if len(documents) < page:
                return
            after = documents[-1].name

    async def _owners(self, collection: str, start: str, stop: str) -> list[tuple[str, str]]:
        """Go from each queue and version to the first document of the next one."""
        below = f"batches/0/{SEGMENTS}/{_BEFORE}" if collection == SEGMENTS else f"{collection}/!"
        owners: list[tuple[str, str]] = []
        while True:
            request = self._query(
                collection, f"{ROOT}/{start}/{below}", f"{ROOT}/{stop}/{below}", 1, "__name__"
            )
            documents = await self._calls.query(request)
            if not documents:
                return sorted(owners)
            owner = documents[0].name.split("/documents/", 1)[1].split("/")[1]
            queue, _, version = owner.partition(".")
            try:
                lane = Lane(queue, version)
            except ConfigurationError:
                logger.warning("not a queue's, and left alone: %s", documents[0].name)
            else:
                owners.append((lane.queue, lane.version))
            start = owner + _BEFORE

    def _query(self, collection: str, start: str, stop: str, limit: int, *fields: str) -> Any:
        request = _RunQueryRequest(parent=self._calls.name("").rstrip("/"))
        query = request.structured_query
        query.from_.add(collection_id=collection, all_descendants=True)
        query.order_by.add(direction=_ASCENDING).field.field_path = "__name__"
        query.start_at.values.add(reference_value=self._calls.name(start))
        query.start_at.before = True
        query.end_at.values.add(reference_value=self._calls.name(stop))
        query.end_at.before = True
        query.limit.value = limit
        for name in fields:
            query.select.fields.add(field_path=name)
        return request


def _scanned(document: Any, wanted: KeyRange) -> Scanned | None:
    """The segment in a document; None where nothing of this package would be."""
    match = _PLACE.search(document.name)
    try:
        batch = Batch.parse(wanted.queue, wanted.version, match[1] if match else "")
        first = position_of(document.name)
    except ValueError:  # ConfigurationError among them
        logger.warning("not a segment, and left alone: %s", document.name)
        return None
    return Scanned(batch, first, count_of(document), updated_at(document), due_of(document))
