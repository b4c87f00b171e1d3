"""What comes from outside, made up by Hypothesis: requests, tasks, and what is found in a store.

Of a request nothing but an answer may come, of a task's body a task or a ConfigurationError. From
what a store holds a segment is read, or a defect that can be told; and whatever was read can be
handled, settled and dead-lettered, so that nothing spoilt keeps its neighbours waiting for ever.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from google.cloud.firestore_v1 import types
from hypothesis import example, given
from hypothesis import strategies as st

from forkjoin_gcp.config import Services
from forkjoin_gcp.endpoint.core import JoinEndpoint, JoinRequest
from forkjoin_gcp.errors import ConfigurationError
from forkjoin_gcp.gcp import memorystore_store
from forkjoin_gcp.gcp.firestore_documents import (
    count_of,
    fill_dead_letter,
    fill_segment,
    nonce_of,
    read_dead_letter,
    read_segment,
)
from forkjoin_gcp.gcp.memorystore_scan import read_dead_letter as read_stored_letter
from forkjoin_gcp.items import DeadLetter, Segment, StoredItem
from forkjoin_gcp.joining.worker import FARTHEST_DUE
from forkjoin_gcp.names import MAX_POSITIONS, Batch, Lane, check_queue_name, check_version
from forkjoin_gcp.ports import Change, Found
from forkjoin_gcp.tasks import ChunkTask, RootTask, Task, parse_task
from forkjoin_gcp.testing.virtual_time import run_virtual
from tests.unit.rig import Rig

BATCH = Batch(Lane("feeds", "v1"), 1_700_000_000_000)
OTHER = Batch(Lane("feeds", "v1"), 1_600_000_000_000)

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)

# Tasks and requests

GOOD = {
    "kind": st.sampled_from(["root", "chunk"]),
    "queue": st.sampled_from(["feeds", "other"]),
    "version": st.sampled_from(["v1", "v2"]),
    "batch": st.sampled_from([BATCH.key, OTHER.key, Batch(Lane("feeds", "v1", 999), 7).key]),
    "full": st.booleans(),
    "sweep": st.integers(1, 10**9),
    "after_ms": st.integers(1, 10**9),
    "batch_size": st.integers(1, 1_100),
    "first": st.integers(0, 1_000),
    "stop": st.integers(1, MAX_POSITIONS),
    "generation": st.integers(0, 10),
    "due": st.floats(0, 1e10),
}


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    """Of a task, or of what is nearly one."""
    fields = {name: draw(good) for name, good in GOOD.items() if draw(st.integers(0, 3))}
    for name in draw(st.lists(st.sampled_from([*GOOD, "more"]), max_size=2)):
        fields[name] = draw(json_values)
    text = json.dumps(fields).encode()
    if draw(st.integers(0, 9)):
        return text
    cut = draw(st.integers(0, len(text)))
    return text[:cut] + draw(st.binary(max_size=9)) + text[cut:]


def check_task(task: Task) -> None:
    """Its name is one that Cloud Tasks takes, it reaches its own queue alone, and comes back."""
    batch = task.batch
    check_queue_name(batch.lane.queue)
    check_version(batch.lane.version)
    assert batch.path.split("/")[:2] == ["forkjoin", f"{batch.lane.queue}.{batch.lane.version}"]
    assert batch.path.count("/") == 3
    assert batch.memory_key.startswith(batch.lane.key)
    assert task.task_id.replace("-", "").replace("_", "").isalnum()
    assert len(task.task_id) < 500
    assert parse_task(task.body()) == task
    if isinstance(task, ChunkTask):
        assert 0 <= task.first < task.stop <= MAX_POSITIONS
        assert 1 <= task.shard(7) <= 7
        assert len(task.next(task.due).task_id) < 500


@given(bodies() | json_values.map(lambda value: json.dumps(value).encode()) | st.binary())
@example(b'{"kind":"chunk"' + b"}" * 9)
@example(RootTask(BATCH, sweep=1_700_000_000).body())
@example(ChunkTask(BATCH, 0, 100, 10**15 - 1).body())
def test_a_body_is_a_task_or_says_why_not(body: bytes) -> None:
    try:
        task = parse_task(body)
    except ConfigurationError:
        return
    check_task(task)


class Queue:
    """Takes tasks, and nothing else."""

    services = Services(allow_unauthenticated=True)

    def __init__(self, name: str) -> None:
        self.name = name
        self.tasks: list[Task] = []

    def join(self, task: Task, *, retry_count: int) -> None:
        assert 0 <= retry_count < 10**9
        check_task(task)
        assert task.batch.lane.queue == self.name
        self.tasks.append(task)


HEADERS = ("Content-Type", "content-length", "X-CloudTasks-TaskRetryCount", "Authorization")
headers = st.dictionaries(
    st.sampled_from(HEADERS) | st.text(max_size=9),
    st.sampled_from(["application/json", "Application/JSON; charset=x", "5", "-1", "9" * 99])
    | st.text(max_size=20),
    max_size=5,
)


@given(st.sampled_from(["POST", "GET", "post", ""]) | st.text(max_size=5), headers, bodies())
def test_a_request_gets_an_answer_and_reaches_its_own_queue_alone(
    method: str, given_headers: dict[str, str], body: bytes
) -> None:
    feeds, other = Queue("feeds"), Queue("other")
    answer = JoinEndpoint(feeds, other).answer(JoinRequest(method, given_headers, body))
    assert answer.status in (200, 400, 404, 405, 413, 415)
    assert isinstance(json.loads(answer.body), dict)
    assert len(answer.body) < 1_000
    assert (answer.status == 200) == (len(feeds.tasks) + len(other.tasks) == 1)


# What a store holds

integers_64 = st.integers(-(2**63), 2**63 - 1)
FIELDS = (
    *("payloads", "positions", "attempts", "due", "count", "nonce", "enqueued_at", "expire_at"),
    *("origin", "shift", "handled_payloads", "handled_positions", "handled_attempts"),
)


def _scalar(draw: st.DrawFn, value: Any) -> None:
    kind = draw(st.sampled_from(["null", "bool", "int", "float", "text", "bytes", "time", "geo"]))
    if kind == "null":
        value.null_value = 0
    elif kind == "bool":
        value.boolean_value = draw(st.booleans())
    elif kind == "int":
        value.integer_value = draw(st.integers(-2, 12) | integers_64)
    elif kind == "float":
        value.double_value = draw(st.floats())
    elif kind == "text":
        value.string_value = draw(st.sampled_from([BATCH.key, OTHER.key, "{}"]) | st.text())
    elif kind == "bytes":
        value.bytes_value = draw(st.binary())
    elif kind == "time":
        # As far as Firestore's times go: years 1 to 9999, to the microsecond.
        value.timestamp_value.seconds = draw(st.integers(-62_135_596_800, 253_402_300_799))
        value.timestamp_value.nanos = draw(st.integers(0, 999_999)) * 1_000
    else:
        value.geo_point_value.latitude = draw(st.floats(-90, 90))


def _value(draw: st.DrawFn, value: Any, depth: int = 2) -> None:
    kind = draw(st.integers(0, 5)) if depth else 0
    if kind == 5:
        value.map_value.SetInParent()
        for name in draw(st.lists(st.text(max_size=3), max_size=2)):
            _value(draw, value.map_value.fields[name], depth - 1)
    elif kind >= 3:
        value.array_value.SetInParent()
        for _ in range(draw(st.integers(0, 4))):
            _value(draw, value.array_value.values.add(), depth - 1)
    else:
        _scalar(draw, value)


@st.composite
def documents(draw: st.DrawFn) -> Any:
    """A document under a segment's name: a good one with some fields replaced by anything."""
    document = types.Document.pb()()
    document.name = f"projects/p/databases/d/documents/x/{draw(st.integers(0, 99_999_999)):08d}"
    if draw(st.integers(0, 5)):
        first = int(document.name[-8:])
        fill_segment(document, draw(segments(first)), BATCH)
    for name in draw(st.lists(st.sampled_from(FIELDS) | st.text(max_size=5), max_size=3)):
        document.fields[name].Clear()
        _value(draw, document.fields[name])
    return document


@st.composite
def segments(draw: st.DrawFn, first: int) -> Segment:
    count = draw(st.integers(0, 4))
    consecutive = draw(st.booleans())
    items = tuple(
        StoredItem(
            first + n * (1 if consecutive else 2),
            draw(st.sampled_from(["{}", '{"n":1}', "1", ""]) | st.text(max_size=5)),
            draw(st.integers(0, 3)),
            draw(st.sampled_from([0.0, 1.5])),
        )
        for n in range(count)
    )
    origin = draw(st.sampled_from([BATCH.key, OTHER.key]))
    return Segment(first, items, "nonce", origin, draw(st.integers(-first, 9)), 1.5, 1e9)


def check_found(found: Found) -> None:
    """It can be told what it is, or what is wrong with it."""
    if found.segment is None:
        assert found.defect
        assert isinstance(found.raw, str)
        return
    segment = found.segment
    places = [item.position for item in segment.items]
    assert len(set(places)) == len(places)
    assert all(place >= segment.first for place in places)
    assert all(item.attempts >= 0 for item in segment.items)
    assert Batch.parse("feeds", "v1", segment.origin).key == segment.origin
    for item in (*segment.items, *segment.handled):
        assert segment.item_id(item).replace("-", "").isalnum()
    assert datetime.fromtimestamp(segment.enqueued_at, UTC)


def ends_somehow(found: Found) -> None:
    """A worker that finds it ends each of its items; what it puts down can be put down."""

    async def scenario() -> None:
        rig = Rig()
        settled: list[Change] = []

        async def read(*_: object) -> list[Found]:
            return [] if settled else [found]

        async def settle(_: Batch, changes: Sequence[Change]) -> list[bool]:
            settled.extend(changes)
            return [True] * len(changes)

        rig.store.read = read  # type: ignore[method-assign]
        rig.store.settle = settle  # type: ignore[method-assign]
        now = 1e10
        chunk = ChunkTask(BATCH, found.first, found.first + 1, due=now)
        await rig.worker.run(chunk, rig.loop.time())
        for change in settled:
            if change.left is not None:
                fill_segment(types.Document.pb()(), change.left, BATCH)
                memorystore_store._write_segment(change.left, BATCH)
            for letter in change.dead:
                fill_dead_letter(types.Document.pb()(), letter, 1)
        if found.segment is None or found.segment.items:
            ended = sum(len(change.dead) for change in settled) + len(rig.handled)
            items = found.segment.items if found.segment else [StoredItem(0, "")]
            later = sum(now < item.due < now + FARTHEST_DUE for item in items)
            assert ended + later == len(items)
            assert len(rig.scheduler.created) == bool(later)

    run_virtual(scenario())


def last_moment() -> Any:
    """The last microsecond that Firestore can hold: as a float it is in the year 10000."""
    document = types.Document.pb()(name="x/00000003")
    fill_segment(document, Segment(3, (StoredItem(3, "{}"),), "n", BATCH.key, 0, 1.5, 1e9), BATCH)
    document.fields["enqueued_at"].timestamp_value.seconds = 253_402_300_799
    document.fields["enqueued_at"].timestamp_value.nanos = 999_999_000
    return document


@given(documents())
@example(last_moment())
def test_a_document_is_a_segment_or_has_a_defect(document: Any) -> None:
    found = read_segment(document, BATCH)
    check_found(found)
    assert count_of(document) >= 0
    assert isinstance(nonce_of(document), str | None)
    if found.segment is not None:  # what is left of it is put back in its place
        rewritten = types.Document.pb()(name=document.name)
        fill_segment(rewritten, found.segment, BATCH)
        again = read_segment(rewritten, BATCH).segment
        assert again is not None
        assert again.items == found.segment.items
    assert isinstance(read_dead_letter(document), DeadLetter)
    ends_somehow(found)


@st.composite
def texts(draw: st.DrawFn) -> bytes:
    """What a field of a batch's hash may hold: a good text, fields replaced, bytes spoilt."""
    first = draw(st.integers(0, 9))
    value = memorystore_store._write_segment(draw(segments(first)), BATCH)
    fields = json.loads(value)
    for name in draw(st.lists(st.sampled_from([*FIELDS, "revision"]), max_size=3)):
        fields[name] = draw(json_values | st.lists(json_values, max_size=4))
    text = json.dumps(fields).encode()
    if draw(st.integers(0, 5)):
        return text
    cut = draw(st.integers(0, len(text)))
    return text[:cut] + draw(st.binary(max_size=9)) + text[cut + draw(st.integers(0, 9)) :]


@given(texts() | st.binary(), st.integers(0, 9))
@example(b'{"revision":"0",' * 3, 0)
@example(b"[" * 100_000, 0)
@example(b'{"reason":"","error":"","payload":"","enqueued_at":0,"dead_at":0,"attempts":1e400}', 0)
@example(b'{"nonce":"n","payloads":[],"enqueued_at":1e400,"expire_at":0}', 0)
@example(b'{"nonce":"\\ud800","payloads":["\\ud800"],"enqueued_at":1,"expire_at":0}', 0)
@example(
    b'{"revision":"09db27c13a72212b","count":1,"nonce":"n","enqueued_at":1.5,"expire_at":1e9,'
    b'"payloads":["{}"],"due":[10000000001]}',
    0,
)
def test_a_text_in_memorystore_is_a_segment_or_has_a_defect(value: bytes, first: int) -> None:
    found = memorystore_store._read_segment(value, first, BATCH)
    check_found(found)
    assert isinstance(found.revision, bytes)
    if found.segment is not None:
        rewritten = memorystore_store._write_segment(found.segment, BATCH)
        again = memorystore_store._read_segment(rewritten, first, BATCH).segment
        assert again is not None
        assert len(again.items) == len(found.segment.items)
    ends_somehow(found)
    assert isinstance(read_stored_letter(b"an-id", value).letter, DeadLetter)
