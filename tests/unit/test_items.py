from __future__ import annotations

import dataclasses
from datetime import UTC, datetime
from typing import Annotated, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, TypeAdapter
from typing_extensions import TypedDict  # pydantic asks for it before Python 3.12

from forkjoin_gcp.config import MAX_PAYLOAD_BYTES
from forkjoin_gcp.errors import ConfigurationError, InvalidPayload, PayloadTooLarge
from forkjoin_gcp.items import (
    MAX_SEGMENT_BYTES,
    FreshItems,
    PayloadCodec,
    Segment,
    StoredItem,
    build_segments,
    move_segment,
    survives_json,
)
from forkjoin_gcp.names import Batch, Lane, chunk_bounds

BATCH = Batch(Lane("feeds", "v1"), 1_700_000_000_000)


class Feed(BaseModel):
    url: str
    at: datetime | None = None
    user: int = Field(0, alias="userId")


@dataclasses.dataclass
class Point:
    x: int
    y: float


class Options(TypedDict, total=False):
    deep: bool


@pytest.mark.parametrize(
    ("kind", "payload"),
    [
        (Feed, Feed(url="http://a/ü", at=datetime(2026, 1, 2, tzinfo=UTC), userId=3)),
        (Point, Point(1, 2.5)),
        (Options, {"deep": True}),
        (dict[str, Any], {"a": [1, None, {"b": "\u2028"}], "c": 1e300}),
        (str, "text"),
        (list[int], [1, 2, 3]),
        (int | None, None),
    ],
)
def test_payloads_come_back(kind: Any, payload: Any) -> None:
    codec: PayloadCodec[Any] = PayloadCodec(kind)
    assert codec.decode(codec.encode(payload)) == payload


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(st.dictionaries(st.text(), JSON, max_size=5))
def test_any_plain_dict_comes_back_or_is_refused_at_once(payload: dict[str, Any]) -> None:
    codec: PayloadCodec[Any] = PayloadCodec(dict[str, Any])
    assert codec.decode(codec.encode(payload)) == payload


@pytest.mark.parametrize(
    ("kind", "payload", "where"),
    [
        (Feed, {"link": "x"}, "url"),
        (Feed, Feed.model_construct(url=3), "url|str"),
        (Feed, Point(1, 2), "Feed"),
        (Point, {"x": "one", "y": 1}, "x"),
        (dict[str, Any], {"a": object()}, "object"),
        (dict[str, Any], {1: 2}, "key"),
        (dict[str, Any], [1], "dict"),
        (dict[str, Any], {"a": "\ud800"}, "surrogates"),
    ],
)
def test_what_does_not_validate_is_refused(kind: Any, payload: Any, where: str) -> None:
    with pytest.raises(InvalidPayload, match=where):
        PayloadCodec(kind).encode(payload)


def test_refusals_do_not_show_the_payload() -> None:
    with pytest.raises(InvalidPayload) as caught:
        PayloadCodec(Feed).encode({"url": ["secret-text"]})  # type: ignore[arg-type]
    assert "secret-text" not in str(caught.value)


class Bounded(TypedDict):
    name: Annotated[str, Field(max_length=3)]


class Shouting(TypedDict):
    name: Annotated[str, PlainSerializer(str.upper)]


class Wide(TypedDict):
    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]
    name: str


class Nested(TypedDict):
    ids: list[int]
    of: dict[str, bool | None]
    options: Options


@pytest.mark.parametrize("kind", [str, int, list[str], dict[str, int], Options, Nested])
def test_plain_types_are_known_to_come_back(kind: Any) -> None:
    assert survives_json(TypeAdapter(kind).core_schema)


@pytest.mark.parametrize(
    "kind",
    [Feed, Point, Bounded, Shouting, Wide, float, bytes, dict[int, str], dict[str, Any], list, Any],
)
def test_all_others_are_read_back_before_they_are_accepted(kind: Any) -> None:
    assert not survives_json(TypeAdapter(kind).core_schema)


ODD = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(max_size=9)
    | st.just("\ud800"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)  # fmt: skip


@pytest.mark.parametrize("kind", [str, int, list[str], dict[str, int | None], Options, Nested])
@given(payload=ODD)
def test_what_a_plain_type_accepts_comes_back(kind: Any, payload: Any) -> None:
    codec: PayloadCodec[Any] = PayloadCodec(kind)
    adapter: TypeAdapter[Any] = TypeAdapter(kind)
    try:
        encoded = codec.encode(payload)
    except InvalidPayload:
        return
    assert encoded == adapter.dump_json(adapter.validate_python(payload)).decode()
    codec.decode(encoded)


@pytest.mark.parametrize("kind", [Options, Feed])
def test_many_are_encoded_as_each_is_alone(kind: Any) -> None:
    codec: PayloadCodec[Any] = PayloadCodec(kind)
    given = [Feed(url=f"http://a/{n}") if kind is Feed else {"deep": n < 2} for n in range(5)]
    assert codec.encode_all(iter(given)) == [codec.encode(each) for each in given]


@pytest.mark.parametrize("kind", [Nested, Options, Feed])
def test_the_first_bad_one_of_many_is_named(kind: Any) -> None:
    codec: PayloadCodec[Any] = PayloadCodec(kind)
    good: Any = {Feed: Feed(url=""), Options: {}, Nested: {"ids": [], "of": {}, "options": {}}}
    with pytest.raises(InvalidPayload, match="item 2: payload is not a valid"):
        codec.encode_all([good[kind], good[kind], 3, 4])


def test_an_integer_too_long_to_be_read_is_refused() -> None:
    with pytest.raises(InvalidPayload):
        PayloadCodec(int).encode(10**4999)


def test_one_of_many_that_is_too_large_is_named() -> None:
    codec: PayloadCodec[str] = PayloadCodec(str)
    with pytest.raises(PayloadTooLarge, match="item 1: payload is 900,001 bytes"):
        codec.encode_all(["x", "x" * 899_999])


def test_a_model_that_was_spoilt_after_it_was_checked_is_refused() -> None:
    spoilt = Feed(url="http://a")
    spoilt.url = 17  # type: ignore[assignment]
    with pytest.raises(InvalidPayload, match="url: Input should be a valid string"):
        PayloadCodec(Feed).encode(spoilt)
    with pytest.raises(InvalidPayload, match="url: Field required"):
        PayloadCodec(Feed).encode(Feed.model_construct())


def test_too_large_names_size_and_limit() -> None:
    codec = PayloadCodec(str)
    assert codec.encode("x" * (MAX_PAYLOAD_BYTES - 2))
    with pytest.raises(PayloadTooLarge, match=r"900,001 bytes.*900,000"):
        codec.encode("x" * (MAX_PAYLOAD_BYTES - 1))
    with pytest.raises(PayloadTooLarge):
        codec.encode("ü" * (MAX_PAYLOAD_BYTES // 2))


def test_a_type_that_pydantic_does_not_know_is_refused() -> None:
    class Opaque:
        pass

    with pytest.raises(ConfigurationError, match="Opaque"):
        PayloadCodec(Opaque)


def built(start: int, payloads: list[str], batch_size: int) -> list[Segment]:
    return build_segments(
        BATCH, start, batch_size, payloads, nonce="n", enqueued_at=1.0, expire_at=2.0
    )


@given(st.integers(0, 500), st.integers(1, 300), st.integers(1, 120))
def test_segments_hold_every_item_within_chunks(start: int, count: int, batch_size: int) -> None:
    segments = built(start, [str(n) for n in range(count)], batch_size)
    items = [item for segment in segments for item in segment.items]
    assert [item.position for item in items] == list(range(start, start + count))
    assert [item.payload for item in items] == [str(n) for n in range(count)]
    for segment in segments:
        assert segment.first == segment.items[0].position
        assert len({chunk_bounds(i.position, batch_size) for i in segment.items}) == 1
        assert [segment.item_id(i) for i in segment.items] == [
            BATCH.item_id(i.position) for i in segment.items
        ]


@given(st.lists(st.sampled_from(["x", "ü" * 50_000, "y" * 300_000]), min_size=1, max_size=8))
def test_segments_stay_below_a_documents_size(payloads: list[str]) -> None:
    segments = built(0, payloads, 100)
    assert [i.payload for s in segments for i in s.items] == payloads
    for segment in segments:
        size = sum(len(item.payload.encode()) for item in segment.items)
        assert size <= MAX_SEGMENT_BYTES or len(segment.items) == 1


@given(st.integers(0, 200), st.integers(1, 60), st.integers(0, 300), st.integers(1, 70))
def test_moving_keeps_ids_and_payloads(start: int, count: int, goal: int, batch_size: int) -> None:
    (source,) = built(start - start % 60, [str(n) for n in range(count)], 60)
    moved = move_segment(source, goal, batch_size)
    again = [piece for one in moved for piece in move_segment(one, one.first + 1000, 60)]
    for pieces, at in ((moved, goal), (again, goal + 1000)):
        items = [(piece, item) for piece in pieces for item in piece.items]
        assert [p.item_id(i) for p, i in items] == [source.item_id(i) for i in source.items]
        assert [i.payload for _, i in items] == [i.payload for i in source.items]
        assert [i.position for _, i in items] == list(range(at, at + count))
    for piece in moved:
        assert len({chunk_bounds(i.position, batch_size) for i in piece.items}) == 1


def test_fresh_items_are_a_sequence_of_items() -> None:
    fresh = FreshItems(7, ["a", "b", "c"])
    plain = (StoredItem(7, "a"), StoredItem(8, "b"), StoredItem(9, "c"))
    assert len(fresh) == 3
    assert tuple(fresh) == plain
    assert fresh == plain
    assert plain == fresh
    assert fresh == FreshItems(7, ["a", "b", "c"])
    assert fresh != FreshItems(8, ["a", "b", "c"])
    assert fresh != FreshItems(7, ["a", "b"])
    assert fresh != "abc"
    assert (fresh[0], fresh[-1], fresh[1:]) == (plain[0], plain[2], plain[1:])
    with pytest.raises(IndexError):
        fresh[3]
