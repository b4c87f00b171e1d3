"""How `make chaos` counts: what it calls lost, and what it does not."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tests.chaos.ledgers import HandledLedger, compare
from tests.chaos.run import Outcome


def outcome(left: int = 0, endless: int = 0, **ledgers: dict) -> Outcome:  # type: ignore[type-arg]
    accepted = {"a": 1, "b": 2, "c": 3}
    given = {
        "times": {"a": 1, "b": 2},
        "numbers": {"a": 1, "b": 2},
        "dead": {"c": "rejected"},
    } | ledgers
    verdict = compare(accepted, **given)
    return Outcome(verdict, Counter(), left, endless, 0.0, 0, 0)


def test_all_that_was_accepted_came_to_an_end() -> None:
    good = outcome()
    assert good.good
    assert (good.verdict.handled, good.verdict.dead, good.verdict.duplicates) == (2, 1, 1)
    assert "3 accepted = 2 handled + 1 dead-lettered (none) + 0 LOST" in good.lines()


@pytest.mark.parametrize(
    ("bad", "line"),
    [
        (outcome(dead={}), "lost: c"),
        (outcome(times={"a": 1}, numbers={"a": 1}), "lost: b"),
        (outcome(numbers={"a": 1, "b": 7}), "mixed up: b"),
        (outcome(left=1), "1 items left in the store"),
        (outcome(endless=1), "1 keys without TTL"),
    ],
)
def test_a_loss_is_found_and_told(bad: Outcome, line: str) -> None:
    assert not bad.good
    assert line in "\n".join(bad.lines())


def test_what_is_no_loss_is_counted_apart() -> None:
    times, numbers = {"a": 1, "b": 1, "x": 1}, {"a": 1, "b": 2, "x": 9}
    counted = outcome(times=times, numbers=numbers, dead={"c": "crashed", "a": "attempts"}).verdict
    assert counted.good
    assert (counted.both, counted.unacknowledged, counted.dead) == (1, 1, 1)


def test_a_ledger_is_read_as_it_grows_and_not_beyond_a_line(tmp_path: Path) -> None:
    ledger = HandledLedger(tmp_path)
    file = tmp_path / "1.handled"
    file.write_text("a 1\nb 2\nc")
    ledger.read()
    assert ledger.times == {"a": 1, "b": 1}
    file.write_text("a 1\nb 2\nc 3\na 1\n")
    (tmp_path / "2.handled").write_text("b 2\n")
    ledger.read()
    ledger.read()
    assert ledger.times == {"a": 2, "b": 2, "c": 1}
    assert ledger.numbers == {"a": 1, "b": 2, "c": 3}
