"""The demo's own arithmetic: lines in, lines out, figures and pictures."""

from __future__ import annotations

import io
import json
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from examples.demo import history, outcome, svg, timeline
from examples.demo.clients import Posted
from examples.demo.figures import Counted, Figures, figures, joined_counters, quantile
from examples.demo.history import Batch
from examples.demo.joins import Join
from examples.demo.lines import Line, read_lines
from examples.demo.origin import BYTES_MAX, BYTES_MIN, content
from examples.demo.outcome import Handled, Tail
from examples.demo.progress import RunProgress
from examples.demo.report import headings, table
from examples.demo.wording import count

BEGAN = 1_700_000_000.0


def record(line: int, **changes: Any) -> dict[str, Any]:
    return {
        "id": f"0a-0-1-{line - 1}",
        "line": line,
        "status": 200,
        "bytes": 1,
        "sha256": "ab",
        "error": None,
        "attempt": 1,
        "enqueued_at": BEGAN,
        "handled_at": BEGAN + 1,
        "fetch_seconds": 0.25,
        **changes,
    }


def join(first: int = 0, began: float = 0.5, ended: float = 1.0, **changes: Any) -> Join:
    fields: dict[str, Any] = {
        "batch": "0a-0-1",
        "root": first == 0,
        "first": first,
        "generation": 0,
        "began": BEGAN + began,
        "ended": BEGAN + ended,
        "done": True,
        "process": 1,
        "counters": {},
    }
    return Join(**{**fields, **changes})


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("", []),
        ("\n", [""]),
        ("http://a", ["http://a"]),
        ("http://a\n", ["http://a"]),
        ("http://a\n\n", ["http://a", ""]),
        ("\ufeffhttp://a\r\n https://b \r\n", ["http://a", "https://b"]),
        ("http://a/\u2028b\x0cc\n", ["http://a/\u2028b\x0cc"]),
    ],
)
def test_lines_are_what_an_editor_shows(tmp_path: Path, text: str, lines: list[str]) -> None:
    (tmp_path / "urls.txt").write_bytes(text.encode())
    found = read_lines(tmp_path / "urls.txt")
    assert [line.text for line in found] == lines
    assert [line.number for line in found] == list(range(1, len(lines) + 1))


def test_lines_that_are_not_posted_say_why(tmp_path: Path) -> None:
    (tmp_path / "urls.txt").write_bytes(b"http://a\n\n#b\nc\nHTTPS://d\n\xff\xfe\n")
    defects = [line.defect for line in read_lines(tmp_path / "urls.txt")]
    no_url = "not an http or https URL"
    assert defects == ["", "a blank line", "a comment", no_url, "", no_url]


def test_a_tail_never_gives_half_a_line(tmp_path: Path) -> None:
    path = tmp_path / "grows"
    path.touch()
    tail = Tail(path)
    seen = []
    with path.open("a") as file:
        for piece in ('{"n": 1}\n{"n"', ": 2}", "\n", '{"n": 3}\n'):
            file.write(piece)
            file.flush()
            seen.append([row["n"] for row in tail.read()])
    tail.close()
    assert seen == [[1], [], [2], [3]]


def test_one_result_a_line_whatever_became_of_it(tmp_path: Path) -> None:
    lines = [Line(n, f"http://{n}") for n in (1, 2, 3, 4)] + [Line(5, "", "a blank line")]
    posted = Posted(ids={1: "0a-0-1-0", 2: "0a-0-1-1", 3: "0a-0-1-2"}, refused={4: "HTTP 400"})
    handled = Handled()
    handled.add([record(2), record(1), record(1, handled_at=BEGAN + 9)])
    handled.add([record(2, id="0b-0-2-0")])
    merged = outcome.merge(lines, posted, handled)
    assert [row["line"] for row in merged] == [1, 2, 3, 4, 5]
    assert [row["error"] for row in merged] == [
        None,
        None,
        outcome.NOT_HANDLED,
        "HTTP 400",
        "a blank line",
    ]
    assert merged[0]["handled_at"] == BEGAN + 1
    assert (handled.delivered_again, handled.posted_again) == (1, 1)
    outcome.write(merged, tmp_path / "results.jsonl")
    assert outcome.count_exact(tmp_path / "results.jsonl", lines) == 5
    with (tmp_path / "results.jsonl").open("a") as file:
        file.write(json.dumps(merged[0]) + "\n")
    assert outcome.count_exact(tmp_path / "results.jsonl", lines) == 4
    assert list(tmp_path.iterdir()) == [tmp_path / "results.jsonl"]


def test_items_belong_to_the_batch_that_their_id_names() -> None:
    records = [record(1), record(2), record(3, id="0b-0-2-0", enqueued_at=BEGAN + 2)]
    joins = [join(100), join(), join(batch="0b-0-2", began=3, ended=4)]
    first, second = history.batches(records, joins)
    assert (first.key, first.items, first.writes) == ("0a-0-1", 2, [(BEGAN, 2)])
    assert first.root == joins[1]
    assert (second.began, second.ended) == (BEGAN + 2, BEGAN + 4)


def test_joins_side_by_side_have_rows_of_their_own() -> None:
    joins = [join(0, 0, 2), join(100, 1, 3), join(200, 2, 4), join(300, 3, 5)]
    rows = [[one.first for one in row] for row in history.pack(joins)]
    assert rows == [[0, 200], [100, 300]]


def test_counters_of_processes_are_added_and_those_of_one_are_not() -> None:
    joins = [
        join(process=1, counters={"a": 5, "b": 1}),
        join(process=1, counters={"a": 3}),
        join(process=2, counters={"a": 2}),
    ]
    assert joined_counters(joins) == {"a": 7, "b": 1}


@pytest.mark.parametrize(
    ("values", "share", "wanted"),
    [([], 0.5, 0), ([7.0], 0.99, 7), ([1.0, 2, 3], 0.5, 2), (range(101), 0.99, 99)],
)
def test_quantiles(values: list[float], share: float, wanted: float) -> None:
    assert quantile(values, share) == pytest.approx(wanted)


def work_out(handled: Handled, origin: dict[str, Any]) -> Figures:
    posted = Posted(ids={1: "0a-0-1-0", 2: "0a-0-1-1"}, asked_at={1: BEGAN - 1, 2: BEGAN})
    lines = [Line(1, "http://1"), Line(2, "http://2")]
    joins = [join()]
    counted = Counted(
        service={"firestore.batch_write": 1, "firestore.documents_written": 2, "groups": 1},
        join={"firestore.run_query": 1, "firestore.documents_read": 2},
        cloud_tasks={"creates": 1, "duplicates": 1, "dispatches": 2},
        valkey={"evalsha": 3, "hset": 9, "blpop": 1, "info": 1},
        origin=origin,
    )
    records = list(handled.by_line.values())
    batches = history.batches(records, joins)
    merged = outcome.merge(lines, posted, handled)
    return figures(merged, 2, posted, handled, batches, joins, counted)


def test_figures_count_calls_once_and_documents_apart() -> None:
    handled = Handled()
    handled.add([record(1), record(2, handled_at=BEGAN + 3)])
    found = work_out(handled, {"served": 2, "seconds": 0.3, "waiting_max": 2})
    assert (found.firestore_calls, found.memorystore, found.cloud_tasks) == (2, 4, 2)
    assert (found.wall_seconds, found.one_at_a_time_seconds) == (4, 0.3)
    assert found.complete
    elsewhere = work_out(handled, {"served": 0, "seconds": 0.0, "waiting_max": 0})
    assert elsewhere.one_at_a_time_seconds == 0.5


def test_a_lost_item_is_not_reported_as_success() -> None:
    handled = Handled()
    handled.add([record(1)])
    found = work_out(handled, {"served": 1, "seconds": 0.3, "waiting_max": 1})
    assert not found.complete
    out = io.StringIO()
    Console(file=out, width=120).print(table(found))
    assert "NOT each exactly once" in out.getvalue()
    assert found.lost == 1


def test_the_picture_is_that_of_2010() -> None:
    one = Batch("0a-0-1", [(BEGAN, 3), (BEGAN + 0.2, 4)], [join(0, 0.5, 0.8), join(100, 0.6, 0.9)])
    two = Batch("0b-0-2", [(BEGAN + 0.55, 1)], [join(0, 1.0, 1.2, batch="0b-0-2")])
    shown = timeline.draw([one, two], 80).plain.splitlines()
    assert max(len(row) for row in shown) <= 80
    assert shown[1].strip().startswith("|---")
    assert shown[1].endswith("--> time")
    assert shown[2].split() == ["^"] * 5
    assert shown[3].split() == ["1", "1", "R", "2", "R"]
    assert [row.split() for row in shown[4:7]] == [["u", "u"], ["n", "n"], ["1", "2"]]
    assert shown[8].startswith("batch 1   1")
    assert "7 items, 2 requests" in shown[8]
    assert "1 item, 1 request" in shown[9]


def test_the_arrow_is_whole_where_the_axis_ends_with_a_tick() -> None:
    batch = Batch("0a-0-1", [(BEGAN, 1)], [join(0, 0.5, 1.0)])
    shown = timeline.draw([batch], 80).plain.splitlines()
    assert shown[1].endswith("|---> time")


@pytest.mark.parametrize("width", [1, 20, 60, 200])
def test_pictures_of_odd_runs(width: int) -> None:
    unjoined = Batch("0a-0-1", [(BEGAN, 3)])
    unwritten = Batch("0b-0-2", [], [join(100, root=False)])
    crowd = [Batch(f"0c-0-{n}", [(BEGAN + n, 1)], [join(0, n + 1, n + 2)]) for n in range(130)]
    for batches in ([], [unjoined], [unwritten], crowd):
        assert len(timeline.draw(batches, width).plain.splitlines()) < 45
        ET.fromstring(svg.draw(batches, "<title> & more", 'a "subtitle"'))
    assert headings(work_out(Handled(), {"served": 0, "seconds": 0.0, "waiting_max": 0}))


def test_progress_without_a_terminal_is_plain_lines() -> None:
    out = io.StringIO()
    with RunProgress(Console(file=out, width=100), 10) as progress:
        progress.update(0, 0, 0, "")
        progress.update(5, 1, 2, "1 task")
        progress.update(9, 1, 9, "1 task")
    lines = out.getvalue().splitlines()
    assert len(lines) == 2
    assert "posted 10, handled 9 of 9; 1 task" in lines[1]


def test_the_origin_serves_known_pages() -> None:
    pages = [content(n) for n in range(200)]
    assert pages == [content(n) for n in range(200)]
    assert len(set(pages)) == 200
    assert all(BYTES_MIN <= len(page) <= BYTES_MAX for page in pages)


def test_nouns() -> None:
    assert count(1, "batch") == "1 batch"
    assert count(2_000, "batch") == "2,000 batches"
    assert count(0, "item") == "0 items"
