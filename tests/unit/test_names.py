from __future__ import annotations

import itertools
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forkjoin_gcp.errors import ConfigurationError
from forkjoin_gcp.names import (
    CLOCK_BLOCK,
    CLOCK_LANE,
    MAX_INDEX,
    MAX_POSITIONS,
    Batch,
    Chunk,
    Lane,
    chunk_bounds,
    clock_index,
    knuth_hash,
    plan_by_length,
    plan_by_listing,
    plan_by_packing,
    segment_id,
    split_at_chunks,
)
from forkjoin_gcp.tasks import ChunkTask, RootTask, parse_task

LANE = Lane("feeds", "v1", 0)
CLOCK = Lane("feeds", "v1", CLOCK_LANE)
INDEXES = st.integers(1, MAX_INDEX - 1)
lanes = st.builds(Lane, st.just("feeds"), st.just("v1"), st.integers(0, 99))
batches = st.builds(Batch, lanes, INDEXES)
spans = st.tuples(st.integers(0, 1000), st.integers(1, 1000)).map(
    lambda pair: (pair[0] * pair[1], (pair[0] + 1) * pair[1])
)


def test_knuth_hash_is_the_one_of_the_glossary() -> None:
    assert knuth_hash(1) == 2654435761
    assert knuth_hash(2**32) == 0
    assert knuth_hash(1_700_000_000_000) == 1_700_000_000_000 * 2654435761 % 2**32


def test_neighbouring_indexes_are_spread_over_the_key_space() -> None:
    prefixes = {Batch(LANE, 1_700_000_000_000 + n).key[0] for n in range(64)}
    assert len(prefixes) == 16


def test_where_everything_is() -> None:
    batch = Batch(Lane("feeds", "v2", 3), 1_700_000_000_000)
    assert batch.key == f"{knuth_hash(1_700_000_000_000):08x}-3-1700000000000"
    assert batch.path == f"forkjoin/feeds.v2/batches/{batch.key}"
    assert batch.lane.key == "fj:{feeds/v2/3}"
    assert batch.memory_key.startswith("fj:{feeds/v2/3}:")
    assert batch.item_id(7) == f"{batch.key}-7"
    assert segment_id(700) == "00000700"


@given(batches)
def test_batch_keys_are_read_back(batch: Batch) -> None:
    assert Batch.parse("feeds", "v1", batch.key) == batch


@pytest.mark.parametrize(
    "key",
    [
        "",
        "0-0-1",
        "00000000-0-1",
        "9e3779b1-0-01",
        "9e3779b1-0-1/../x",
        "9e3779b1-1000-1",
        "9e3779b1-0-1\n",
        "9E3779B1-0-1",
        "９e3779b1-0-1",
        f"{knuth_hash(MAX_INDEX):08x}-0-{MAX_INDEX}",
    ],
)
def test_other_keys_are_refused(key: str) -> None:
    with pytest.raises(ConfigurationError, match="batch key"):
        Batch.parse("feeds", "v1", key)


@pytest.mark.parametrize("name", ["", "Feeds", "1feeds", "feeds-", "fe_eds", "f" * 64, "a/b", None])
def test_bad_queue_names(name: str) -> None:
    with pytest.raises(ConfigurationError, match="queue name"):
        Lane(name, "v1")


@pytest.mark.parametrize("version", ["", "V1", "-v1", "v.1", "v" * 32])
def test_bad_versions(version: str) -> None:
    with pytest.raises(ConfigurationError, match="version"):
        Lane("feeds", version)


@pytest.mark.parametrize("number", [-1, 1000])
def test_bad_lanes(number: int) -> None:
    with pytest.raises(ConfigurationError, match="lane"):
        Lane("feeds", "v1", number)


@given(st.integers(0, 10_000), st.integers(0, 5_000), st.integers(1, 300))
def test_splitting_keeps_all_positions_and_crosses_no_boundary(
    start: int, count: int, batch_size: int
) -> None:
    pieces = split_at_chunks(start, count, batch_size)
    positions = [at + n for at, size in pieces for n in range(size)]
    assert positions == list(range(start, start + count))
    for at, size in pieces:
        assert chunk_bounds(at, batch_size) == chunk_bounds(at + size - 1, batch_size)


@given(st.integers(0, 1_000), st.integers(1, 300), st.integers(0, 50))
def test_both_plans_cover_every_position_once(length: int, batch_size: int, step: int) -> None:
    by_length = plan_by_length(length, batch_size)
    assert [p for first, stop in by_length for p in range(first, stop)][:length] == list(
        range(length)
    )
    firsts = range(0, length, step + 1)
    by_listing = plan_by_listing(reversed(firsts), batch_size)
    assert by_listing == sorted(by_listing)
    assert set(by_listing) <= set(by_length)
    covered = [p for first, stop in by_listing for p in range(first, stop)]
    assert len(set(covered)) == len(covered)
    assert set(firsts) <= set(covered)


@given(batches, spans, st.integers(0, 50))
def test_tasks_are_read_back(batch: Batch, span: tuple[int, int], generation: int) -> None:
    for task in (
        RootTask(batch),
        RootTask(batch, full=True),
        RootTask(batch, sweep=1_800_000_000, batch_size=1),
        RootTask(Batch(CLOCK, batch.index), after_ms=15_000, batch_size=1_000),
        ChunkTask(batch, *span, generation, 1e9),
        ChunkTask(batch, *span, generation, suspect=True),
    ):
        assert parse_task(task.body()) == task


def test_only_roots_of_clock_batches_take_after_ms() -> None:
    clock = Batch(CLOCK, 1)
    for bad in (
        RootTask(Batch(LANE, 1), after_ms=1),
        RootTask(clock, full=True, after_ms=1),
        RootTask(clock, sweep=1, after_ms=1),
    ):
        with pytest.raises(ConfigurationError, match="after_ms"):
            parse_task(bad.body())
    chunk = ChunkTask(clock, 0, 1000).body().replace(b'"first"', b'"after_ms":1,"first"')
    with pytest.raises(ConfigurationError, match="after_ms"):
        parse_task(chunk)


def test_a_batch_size_belongs_to_a_root_and_has_limits() -> None:
    chunk = ChunkTask(Batch(LANE, 1), 0, 100).body().replace(b'"first"', b'"batch_size":9,"first"')
    root = RootTask(Batch(LANE, 1), batch_size=999).body()
    for bad in (chunk, root.replace(b"999", b"1001"), root.replace(b"999", b"0")):
        with pytest.raises(ConfigurationError, match="batch_size"):
            parse_task(bad)


def test_deployments_of_another_batch_size_share_a_batchs_root() -> None:
    one, other = (RootTask(Batch(LANE, 1), batch_size=size) for size in (10, 20))
    assert one.task_id == other.task_id


@given(batches, batches, spans, spans)
def test_task_ids_are_unique_and_allowed(
    one: Batch, other: Batch, span: tuple[int, int], another: tuple[int, int]
) -> None:
    tasks = {
        RootTask(one), RootTask(one, full=True), RootTask(other), ChunkTask(one, *span),
        RootTask(one, after_ms=15_000), RootTask(one, after_ms=15_001), RootTask(one, sweep=15_000),
        ChunkTask(one, *span, 1), ChunkTask(other, *span), ChunkTask(one, *another),
        ChunkTask(one, *span, suspect=True), ChunkTask(other, *span, suspect=True),
    }  # fmt: skip
    by_first = {
        tuple(
            getattr(task, name, -1)
            for name in (
                *("batch", "first", "stop", "generation", "suspect"),
                *("full", "after_ms", "sweep"),
            )
        )
        for task in tasks
    }
    assert len({task.task_id for task in tasks}) == len(by_first)
    for task in tasks:
        assert len(task.task_id) <= 500
        assert set(task.task_id) <= set("abcdefghijklmnopqrstuvwxyz0123456789-_")


@given(batches, spans, st.booleans())
def test_a_next_generation_is_the_same_chunk(
    batch: Batch, span: tuple[int, int], suspect: bool
) -> None:
    task = ChunkTask(batch, *span, 3, 1e9, suspect)
    following = task.next(2e9)
    assert (following.generation, following.due) == (4, 2e9)
    assert following.chunk == task.chunk == Chunk(batch, *span, suspect)
    assert task.chunk.key.startswith(f"{batch.lane.key}:chunk:{batch.key}:")
    assert task.chunk.key != Chunk(batch, *span, not suspect).key


@given(batches, st.integers(1, 100))
def test_shards_are_within_the_queues(batch: Batch, shards: int) -> None:
    assert 1 <= RootTask(batch).shard(shards) <= shards
    seen = {ChunkTask(batch, n * 10, n * 10 + 10).shard(shards) for n in range(shards)}
    assert seen == set(range(1, shards + 1))


@pytest.mark.parametrize("step", [1, 1_000, 2**16, 1_000_000])
def test_shards_share_batches_whose_indexes_are_round(step: int) -> None:
    batches = (Batch(LANE, 1_800_000_000_000_000 // step * step + n * step) for n in range(800))
    shares = Counter(RootTask(batch).shard(8) for batch in batches)
    assert sorted(shares) == list(range(1, 9))
    assert min(shares.values()) > 60


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "JSON"),
        (b"[]", "body"),
        (b"{}", "kind"),
        (b'{"kind":"leaf","queue":"feeds","version":"v1","batch":"9e3779b1-0-1"}', "kind"),
        (b'{"kind":"root","queue":"feeds","version":"v1","batch":"x"}', "batch key"),
        (b'{"kind":"root","queue":"Feeds","version":"v1","batch":"9e3779b1-0-1"}', "queue name"),
        (
            b'{"kind":"root","queue":"feeds","version":"v1","batch":"9e3779b1-0-1","first":0}',
            "root",
        ),
        (
            b'{"kind":"root","queue":"feeds","version":"v1","batch":"9e3779b1-0-1","suspect":false}',
            "suspect",
        ),
        (b'{"kind":"chunk","queue":"feeds","version":"v1","batch":"9e3779b1-0-1"}', "chunk"),
        (
            b'{"kind":"chunk","queue":"feeds","version":"v1","batch":"9e3779b1-0-1",'
            b'"first":5,"stop":5,"generation":0}',
            "first < stop",
        ),
        (b'{"kind":"root","queue":"feeds","version":"v1","batch":"9e3779b1-0-1","x":1}', "x"),
        (b"\xff\xfe", "JSON"),
    ],
)
def test_other_bodies_are_refused_with_a_reason(body: bytes, reason: str) -> None:
    with pytest.raises(ConfigurationError, match=reason):
        parse_task(body)


def test_clock_index_is_the_end_of_the_period() -> None:
    assert clock_index(1_800_000_000.0, 1.0) == 1_800_000_001_000
    assert clock_index(1_800_000_000.999, 1.0) == 1_800_000_001_000
    assert clock_index(1_800_000_003.0, 2.5) == 1_800_000_005_000


blocks = st.dictionaries(st.integers(0, 99_999), st.integers(1, 1000), max_size=60)


@given(blocks, st.integers(1, 1000))
def test_packing_puts_each_segment_in_one_chunk_of_batch_size_at_most(
    held: dict[int, int], batch_size: int
) -> None:
    listed = {block * CLOCK_BLOCK: count for block, count in held.items()}
    spans = plan_by_packing(listed.items(), batch_size)
    seen = []
    for first, stop in spans:
        inside = [at for at in listed if first <= at < stop]
        assert len(inside) == 1 or sum(listed[at] for at in inside) <= batch_size
        assert first == min(inside)
        assert stop == max(inside) + CLOCK_BLOCK <= MAX_POSITIONS
        seen += inside
    assert sorted(seen) == sorted(listed), "each in exactly one"
    for (_, stop), (first, _) in itertools.pairwise(spans):
        assert stop <= first


@given(blocks, st.integers(1, 1000), st.integers(0, 60))
def test_packing_again_when_the_first_chunks_have_gone_names_the_rest_as_before(
    held: dict[int, int], batch_size: int, gone: int
) -> None:
    listed = {block * CLOCK_BLOCK: count for block, count in held.items()}
    spans = plan_by_packing(listed.items(), batch_size)
    rest = {at: n for at, n in listed.items() if spans[gone:] and at >= spans[gone][0]}
    assert plan_by_packing(rest.items(), batch_size) == spans[gone:]
