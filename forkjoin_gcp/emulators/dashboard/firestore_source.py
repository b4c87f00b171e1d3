"""Segments and dead letters in a Firestore emulator, ours or Google's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import grpc
from google.cloud.firestore_v1 import types
from google.cloud.firestore_v1.services.firestore import FirestoreClient
from google.cloud.firestore_v1.services.firestore.transports import FirestoreGrpcTransport

from forkjoin_gcp.gcp.firestore_documents import (
    DEAD_LETTERS,
    SEGMENTS,
    count_of,
    read_dead_letter,
)

from .view import DeadLetterRow, ItemsView, SegmentRow

_TIMEOUT = 2.0
_QUERY: Any = types.RunQueryRequest.pb()
_AGGREGATION: Any = types.RunAggregationQueryRequest.pb()
# Never the payloads: they can be more than a message holds.
_SEGMENT_FIELDS = ("count", "enqueued_at")
_LETTER_FIELDS = ("reason", "error", "attempts", "dead_at")


class FirestoreSource:
    """Reads the default database of one project of the emulator at `address`."""

    def __init__(self, address: str, project: str) -> None:
        self._channel = grpc.insecure_channel(address)
        transport = FirestoreGrpcTransport(channel=self._channel)
        self._client = FirestoreClient(transport=transport)
        database = f"projects/{project}/databases/(default)"
        self._parent = f"{database}/documents"
        self._metadata = [
            ("google-cloud-resource-prefix", database),
            ("authorization", "Bearer owner"),
        ]

    def close(self) -> None:
        """Ends the connection."""
        self._channel.close()

    def read(self, rows: int) -> ItemsView:
        """`rows` of each at most. Raises GoogleAPICallError, as the client does."""
        segments_total, items_total = self._totals(SEGMENTS, "count")
        dead_total, _ = self._totals(DEAD_LETTERS, "attempts")
        return ItemsView(
            segments=[_segment(found) for found in self._some(SEGMENTS, _SEGMENT_FIELDS, rows)],
            dead_letters=[
                _letter(found) for found in self._some(DEAD_LETTERS, _LETTER_FIELDS, rows)
            ],
            segments_total=segments_total,
            items_total=items_total,
            dead_total=dead_total,
        )

    def _some(self, collection: str, fields: Sequence[str], limit: int) -> list[Any]:
        request = _QUERY(parent=self._parent)
        query = request.structured_query
        _from(query, collection)
        for name in fields:
            query.select.fields.add(field_path=name)
        query.limit.value = limit
        answers = self._client.run_query(
            types.RunQueryRequest.wrap(request), timeout=_TIMEOUT, metadata=self._metadata
        )
        found = [types.RunQueryResponse.pb(answer) for answer in answers]
        return [answer.document for answer in found if answer.HasField("document")]

    def _totals(self, collection: str, summed: str) -> tuple[int, int]:
        """How many documents, and the sum of one of their fields."""
        request = _AGGREGATION(parent=self._parent)
        query = request.structured_aggregation_query
        _from(query.structured_query, collection)
        query.aggregations.add(alias="number").count.SetInParent()
        query.aggregations.add(alias="sum").sum.field.field_path = summed
        answers = self._client.run_aggregation_query(
            types.RunAggregationQueryRequest.wrap(request),
            timeout=_TIMEOUT,
            metadata=self._metadata,
        )
        number = total = 0
        for answer in answers:
            found = types.RunAggregationQueryResponse.pb(answer).result.aggregate_fields
            number += found["number"].integer_value
            total += found["sum"].integer_value
        return number, total


def _from(query: Any, collection: str) -> None:
    query.from_.add(collection_id=collection, all_descendants=True)


def _segment(document: Any) -> SegmentRow:
    # …/forkjoin/{queue}.{version}/batches/{batch key}/fj_segments/{first position}
    *_, queue, _, batch, _, first = document.name.split("/")
    enqueued_at = document.fields["enqueued_at"].timestamp_value
    return SegmentRow(
        queue=queue,
        batch=batch,
        first=first,
        items=count_of(document),
        enqueued_at=enqueued_at.ToMicroseconds() / 1e6,
        store="Firestore",
    )


def _letter(document: Any) -> DeadLetterRow:
    letter = read_dead_letter(document)
    return DeadLetterRow(
        queue=document.name.split("/")[-3],
        item=letter.id,
        reason=letter.reason,
        error=letter.error,
        attempts=letter.attempts,
        dead_at=letter.dead_at,
    )
