"""What segments and dead letters look like in Firestore, and what becomes of spoilt ones."""

from __future__ import annotations

from typing import Any

import pytest
from google.cloud.firestore_v1 import types
from hypothesis import given
from hypothesis import strategies as st

from forkjoin_gcp.errors import InvalidPayload
from forkjoin_gcp.gcp.firestore_documents import (
    count_of,
    document_text,
    fill_dead_letter,
    fill_segment,
    nonce_of,
    position_of,
    read_dead_letter,
    read_segment,
)
from forkjoin_gcp.gcp.stored_items import clip, restore_items
from forkjoin_gcp.items import DeadLetter, PayloadCodec, Segment, StoredItem
from forkjoin_gcp.names import Batch, Lane, segment_id
from forkjoin_gcp.ports import Found

BATCH = Batch(Lane("feeds", "v1"), 1_700_000_000_000)
OTHER = Batch(Lane("feeds", "v1"), 1_600_000_000_000)
PLAIN = Segment(
    3, tuple(StoredItem(3 + n, f'"{n}"') for n in range(3)), "nonce", BATCH.key, 0, 1.5, 1e9
)
FULL = Segment(
    3, (StoredItem(4, "4", 2, 7.25), StoredItem(9, "9")), "nonce", OTHER.key, 20, 1.5, 1e9,
    (StoredItem(3, "3", 1), StoredItem(5, "5", 2)),
)  # fmt: skip


def document_of(segment: Segment) -> Any:
    document = types.Document.pb()()
    document.name = f"projects/p/databases/d/documents/x/{segment_id(segment.first)}"
    document.update_time.seconds = 5
    fill_segment(document, segment, BATCH)
    return document


def segment_in(document: Any) -> Segment:
    found = read_segment(document, BATCH)
    assert found.segment is not None, found.defect
    return found.segment


@st.composite
def segments(draw: st.DrawFn) -> Segment:
    first = draw(st.integers(0, 10**7))

    def items(due: bool) -> tuple[StoredItem, ...]:
        places = draw(st.lists(st.integers(first, first + 999), unique=True, max_size=20))
        item = st.builds(
            StoredItem,
            st.just(0),
            st.text(),
            st.integers(0, 100),
            st.floats(0, 1e10) if due else st.just(0.0),
        )
        drawn = [draw(item) for _ in places]
        return tuple(
            StoredItem(place, each.payload, each.attempts, each.due)
            for place, each in zip(sorted(places), drawn, strict=True)
        )

    return Segment(
        first=first,
        items=items(due=True),
        nonce=draw(st.text()),
        origin=draw(st.sampled_from([BATCH.key, OTHER.key])),
        shift=draw(st.integers(-first, 10**7)),
        enqueued_at=draw(st.integers(0, 10**9)) + 0.25,
        expire_at=draw(st.integers(0, 10**9)) + 0.5,
        handled=items(due=False),
    )


@given(segments())
def test_a_segment_is_read_as_it_was_written(segment: Segment) -> None:
    document = types.Document.pb().FromString(document_of(segment).SerializeToString())
    assert segment_in(document) == segment
    assert count_of(document) == len(segment.items)
    assert nonce_of(document) == segment.nonce


def test_a_plain_segment_has_the_fields_it_needs_and_no_more() -> None:
    assert sorted(document_of(PLAIN).fields) == [
        "count", "enqueued_at", "expire_at", "nonce", "payloads",
    ]  # fmt: skip
    shown = document_text(document_of(PLAIN))
    assert '"payloads": ["\\"0\\"", "\\"1\\"", "\\"2\\""]' in shown
    assert '"expire_at": "2001-09-09T01:46:40Z"' in shown


def test_what_is_not_default_is_written() -> None:
    optional = {"positions", "attempts", "due", "origin", "shift"}
    optional |= {"handled_payloads", "handled_positions", "handled_attempts"}
    assert optional < set(document_of(FULL).fields)


@pytest.mark.parametrize("missing", ["payloads", "nonce", "enqueued_at", "expire_at"])
def test_a_document_without_a_field_is_no_segment(missing: str) -> None:
    document = document_of(PLAIN)
    del document.fields[missing]
    found = read_segment(document, BATCH)
    assert found == Found(3, None, (5, 0), f"{missing} is missing", document_text(document))


@pytest.mark.parametrize("name", ["payloads", "nonce", "enqueued_at", "expire_at", "shift"])
def test_a_field_of_another_type_makes_no_segment(name: str) -> None:
    document = document_of(FULL)
    document.fields[name].boolean_value = True
    found = read_segment(document, BATCH)
    assert found.segment is None
    assert found.defect.startswith(f"{name} is boolean_value")
    assert f'"{name}": true' in found.raw


@pytest.mark.parametrize("origin", ["", "a/b", "00000000-0-5", "5"])
def test_an_origin_that_is_no_batch_makes_no_segment(origin: str) -> None:
    document = document_of(FULL)
    document.fields["origin"].string_value = origin
    assert "origin" in read_segment(document, BATCH).defect


def test_a_shift_below_the_first_position_makes_no_segment() -> None:
    document = document_of(FULL)
    document.fields["shift"].integer_value = -4
    assert "shift" in read_segment(document, BATCH).defect


def test_positions_of_another_number_make_no_segment() -> None:
    document = document_of(FULL)
    document.fields["positions"].array_value.values.add().integer_value = 10
    assert read_segment(document, BATCH).segment is None


@pytest.mark.parametrize(
    ("kind", "value", "shown"),
    [
        ("integer_value", 17, "17"),
        ("bytes_value", b'"1"', '"IjEi"'),
        ("boolean_value", False, "false"),
        ("null_value", 0, "null"),
        ("double_value", 0.5, "0.5"),
    ],
)
def test_a_payload_that_is_no_text_costs_its_own_item_alone(
    kind: str, value: object, shown: str
) -> None:
    document = document_of(PLAIN)
    entry = document.fields["payloads"].array_value.values[1]
    entry.ClearField("string_value")
    setattr(entry, kind, value)
    first, second, third = segment_in(document).items
    assert (first, third) == (PLAIN.items[0], PLAIN.items[2])
    assert second.position == 4
    assert shown in second.payload
    with pytest.raises(InvalidPayload):
        PayloadCodec(object).decode(second.payload)


@pytest.mark.parametrize("wrong", [2, 9, -1, 4])
def test_a_position_that_cannot_be_costs_its_own_item_alone(wrong: int) -> None:
    document = document_of(FULL)
    document.fields["positions"].array_value.values[1].integer_value = wrong
    items = segment_in(document).items
    assert items[0] == FULL.items[0]
    assert len({item.position for item in items}) == 2
    if wrong == 9:
        assert items[1] == FULL.items[1]
    else:
        assert f"position {wrong} of 9" in items[1].payload


def test_wrong_attempts_and_times_count_as_none() -> None:
    found = restore_items(
        "payloads", list("abcde"), None, [1, "x", -3, True, 2.0], [5, float("nan"), 1e300], 0
    )
    assert [item.attempts for item in found] == [1, 0, 0, 0, 2]
    assert [item.due for item in found] == [5.0, 0.0, 0.0, 0.0, 0.0]


def test_nested_and_odd_values_are_shown() -> None:
    document = types.Document.pb()()
    document.fields["map"].map_value.fields["a"].array_value.values.add().integer_value = 1
    document.fields["bytes"].bytes_value = b"\x00\xff"
    document.fields["where"].geo_point_value.latitude = 1.5
    document.fields["ref"].reference_value = "projects/p"
    document.fields["empty"].SetInParent()
    shown = document_text(document)
    assert shown == (
        '{"bytes": "AP8=", "empty": null, "map": {"a": [1]}, "ref": "projects/p", '
        '"where": {"latitude": 1.5}}'
    )


@pytest.mark.parametrize("name", ["x/1", "x/0000000a", "x/000000001", "x/٠٠٠٠٠٠٠٠"])
def test_an_id_that_is_no_position_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="no position"):
        position_of(name)


@given(st.text(), st.text(), st.integers(0, 100))
def test_a_dead_letter_is_read_as_it_was_written(payload: str, error: str, attempts: int) -> None:
    letter = DeadLetter("an-id", payload, "rejected", error, attempts, 1.5, 2.5)
    document = types.Document.pb()(name="x/an-id")
    fill_dead_letter(document, letter, 1)
    assert read_dead_letter(document) == letter


def test_a_dead_letter_is_cut_to_what_a_document_holds() -> None:
    letter = DeadLetter("an-id", "x" * 2_000_000, "rejected", "\ud800" + "é" * 9_000, 1, 1.5, 2.5)
    for letters in (1, 1000):
        document = types.Document.pb()(name="x/an-id")
        fill_dead_letter(document, letter, letters)
        assert document.ByteSize() < 1_000_000
        assert "(cut: 2,000,000 bytes)" in read_dead_letter(document).payload
        assert len(read_dead_letter(document).error.encode()) <= 1_000_000 // letters
        assert read_dead_letter(document).error.startswith("?é")


def test_a_spoilt_dead_letter_is_shown_as_far_as_it_is_readable() -> None:
    document = types.Document.pb()(name="x/an-id")
    document.fields["attempts"].string_value = "three"
    letter = read_dead_letter(document)
    assert letter == DeadLetter("an-id", '{"attempts": "three"}', "", "", 0, 0.0, 0.0)


@given(st.text(), st.integers(60, 200))
def test_clipping_keeps_to_its_size(text: str, size: int) -> None:
    clipped = clip(text, size)
    assert len(clipped.encode()) <= size
    if len(text.encode("utf-8", "replace")) <= size:
        assert clipped == text
