"""The arithmetic behind the figures of `make bench`."""

from __future__ import annotations

import json
import sys

import pytest

from benchmarks import local_services, usage
from benchmarks.figures import Sample, Target, median, percentile, ratio
from benchmarks.joining import depth_of
from benchmarks.local_cloud_tasks import CloudTasksFigures, Created
from benchmarks.local_firestore import FirestoreFigures, Written
from benchmarks.local_services import LocalPlan, LocalResults, Ups, local_markdown, local_targets
from benchmarks.report import BEGIN, END, insert
from benchmarks.setting import ITEM_BYTES, make_items
from forkjoin_gcp.emulators.processes import ChildProcess
from forkjoin_gcp.names import Batch, Lane
from forkjoin_gcp.tasks import ChunkTask, RootTask


@pytest.mark.parametrize(
    ("share", "expected"), [(0.0, 1), (0.5, 2), (0.51, 3), (0.75, 3), (0.99, 4), (1.0, 4)]
)
def test_a_percentile_is_the_smallest_value_that_enough_do_not_exceed(share, expected):
    assert percentile([4, 1, 3, 2], share) == expected


def test_one_value_is_every_percentile():
    assert percentile([7.0], 0.99) == 7.0


def test_no_values_have_no_percentile():
    with pytest.raises(ValueError, match="no values"):
        percentile([], 0.5)


def test_a_sample_is_per_second_and_per_item():
    sample = Sample(200, 4.0, 0.01, 1.0, 2.0, {"firestore.batch_write": 50})
    assert sample.rate == 50
    assert sample.cpu_us == pytest.approx(50)
    assert sample.per_item("firestore.batch_write") == 0.25
    assert sample.per_item("never.called") == 0


def test_rounds_are_compared_by_their_medians():
    assert ratio([10, 400, 20], [2, 1, 1000]) == 10
    samples = [Sample(items, 1.0, 1.0, 0.0, 0.0) for items in (5, 1, 100)]
    assert median(samples, lambda sample: sample.rate) == 5


@pytest.mark.parametrize(
    ("value", "at_least", "met"),
    [(8, True, True), (7.99, True, False), (8, False, True), (8.01, False, False)],
)
def test_a_target_is_met_at_its_limit(value, at_least, met):
    assert Target("", value, 8, at_least).met is met


def test_items_are_of_the_size_that_is_claimed_and_all_different():
    items = make_items(50)
    texts = {json.dumps(item, separators=(",", ":")) for item in items}
    assert len(texts) == 50
    assert {len(text) for text in texts} == {ITEM_BYTES}


def test_how_many_tasks_led_to_a_task_is_read_off_its_id():
    batch = Batch(Lane("some-feeds", "v1"), 1_700_000_000_000)
    assert depth_of(RootTask(batch).task_id) == 0
    assert depth_of(ChunkTask(batch, 9_900, 10_000).task_id) == 1
    assert depth_of(ChunkTask(batch, 9_900, 10_000, 2).task_id) == 3
    assert depth_of("fjq-large-old-v1-29000000-2654435761-99") == 99


def test_a_page_keeps_everything_outside_its_marks():
    page = f"above\n{BEGIN}old figures\n{END}below\n"
    assert insert("new", page) == f"above\n{BEGIN}\nnew\n{END}below\n"
    assert insert("new", insert("newer", page)) == insert("new", page)


def test_a_page_has_room_for_both_kinds_of_figures():
    page = f"{BEGIN}{END}between\n{local_services.BEGIN}old\n{local_services.END}"
    both = insert("more", insert("new", page), local_services.BEGIN, local_services.END)
    assert both == (
        f"{BEGIN}\nnew\n{END}between\n{local_services.BEGIN}\nmore\n{local_services.END}"
    )


def test_what_the_local_services_are_held_to_is_told():
    slow = Written(documents=100, seconds=0.01, cpu_seconds=0.02)
    fast = Written(documents=100, seconds=0.005, cpu_seconds=0.001)
    results = LocalResults(
        LocalPlan(held=10),
        FirestoreFigures([2.0, 0.5, 0.6], [0.3], [slow, fast, slow], [slow], 500, 399.0),
        CloudTasksFigures(
            0.5, [Created(100, 1.0, 0.1)], [Created(1, 1.0, 1.0)], 1, 500.0, 300.0, 9
        ),
        Ups([2.0], [1.5]),
        seconds=1.0,
        load_before=0.1,
    )
    verdicts = [(each.value, each.met) for each in local_targets(results)]
    assert verdicts == [
        (0.6, True),
        (10_000, False),
        (399, True),
        (1_000, False),
        (1, False),
        (500, True),
        (9, False),
        (2, True),
    ]
    text = local_markdown(results)
    assert text.count("MISSED") == 4
    assert "| writing a document of 1 KB by `BatchWrite`, µs | 200 |" in text


def test_what_a_child_uses_is_that_of_its_group(tmp_path):
    work = "import time; block = bytearray(50_000_000); end = time.process_time() + 0.2\n"
    work += "while time.process_time() < end: pass\nprint(flush=True); time.sleep(60)"
    child = ChildProcess("works", [sys.executable, "-c", work], tmp_path / "log", piped=True)
    child.read_line(30.0)
    assert 0.15 < usage.cpu_seconds(child) < 5
    assert 50 < usage.resident_mb(child) < 200
    before = usage.cpu_of_ended()
    child.stop()
    assert usage.cpu_seconds(child) == 0
    assert usage.cpu_of_ended() >= before


def test_a_page_without_marks_is_refused():
    with pytest.raises(ValueError, match="begin"):
        insert("new", "above")
