"""What a million items cost: the arithmetic, and that docs/operations.md says the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.cold_start import ColdStart
from benchmarks.cold_start import table as cold_start_table
from benchmarks.costs import ALONE, IN_2010, PRICES, TASK_AN_ITEM, Charged, charged, table

PAGE = (Path(__file__).parents[2] / "docs" / "operations.md").read_text("utf-8")
CALLS = {
    "firestore.documents_written": 80,
    "firestore.documents_read": 90,
    "firestore.documents_deleted": 70,
    "cloud_tasks.create_task": 30,
    "roots": 5,
    "chunks": 10,
}


def test_calls_become_what_is_charged() -> None:
    each = charged(CALLS, 1_000)
    assert each == Charged(writes=0.08, reads=0.09, deletes=0.07, operations=0.04, requests=0.01), (
        "30 creates, and 10 deliveries"
    )
    assert each.dollars() == pytest.approx(0.072 + 0.027 + 0.007 + 0.016 + 0.004)


def test_the_kinds_compared_cost_what_their_protocols_ask_for() -> None:
    assert TASK_AN_ITEM.dollars() == pytest.approx(2 * 0.4 + 0.4)
    assert ALONE.dollars() == pytest.approx(TASK_AN_ITEM.dollars() + 1.3)
    assert IN_2010.dollars() == pytest.approx(1.3 + 1.01 * 0.4 + 0.01 * 0.4)


def test_the_page_has_the_prices_and_what_follows_from_them() -> None:
    rows = table(charged(CALLS, 1_000)).splitlines()
    measured = next(row for row in rows if "(measured)" in row)
    for row in rows:
        if row != measured:
            assert row in PAGE.splitlines(), "run `python -m benchmarks.costs`"
    (stated,) = [row for row in PAGE.splitlines() if row.startswith(measured.partition(" | ")[0])]
    *counts, dollars = map(float, stated.strip("|").split("|")[1:])
    each = Charged(**dict(zip(PRICES, counts, strict=True)))
    assert each.dollars() == pytest.approx(dollars, abs=0.006)


def test_a_starts_figures_are_medians_and_ranges() -> None:
    starts = [ColdStart(n, n / 10, n, n, n) for n in (3.0, 1.0, 2.0)]
    lines = cold_start_table(starts).splitlines()
    assert "| the same, CPU | 0.20 s | 0.10 – 0.30 s |" in lines
    stated = [line for line in PAGE.splitlines() if line.startswith("| import of")]
    assert stated[0].partition(" | ")[0] == lines[2].partition(" | ")[0]
