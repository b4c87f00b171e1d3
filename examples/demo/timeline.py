"""A picture of the batches for the terminal, after the diagram of 2010:

    |---------|---------|---> time
     ^ ^ ^ ^  ^ ^ ^ ^ ^
     1 1 1 1  R 2 2 2 R
              u       u
              n       n
              1       2

Every number is a write of items to that batch, every R the run of its root task.
"""

from __future__ import annotations

from collections.abc import Sequence

from rich.style import Style
from rich.text import Text

from .history import Batch
from .wording import count

COLORS = ("cyan", "magenta", "yellow", "green", "blue", "red")
STEPS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600)
ROWS_MAX = 24
LABEL = 10
ARROW = "---> time"
"""Ends the axis. A whole arrow: the axis' own last column may be a tick."""


def draw(batches: Sequence[Batch], width: int) -> Text:
    """The picture, at most ``width`` columns wide. Empty without batches."""
    if not batches:
        return Text("")
    beside = max(len(_note(batch)) for batch in batches)  # of the axis, at its right
    axis = Axis(batches, max(20, width - LABEL - beside))
    picture = Text(no_wrap=True, overflow="crop")
    picture.append(" " * LABEL + axis.labels() + "\n", "dim")
    picture.append(" " * LABEL + axis.rule() + "\n", "dim")
    for row in _diagram(batches, axis):
        picture.append(" " * LABEL)
        picture.append_text(row.text())
        picture.append("\n")
    picture.append("\n")
    for number, batch in enumerate(batches[:ROWS_MAX], 1):
        _bars(picture, number, batch, axis)
    if len(batches) > ROWS_MAX:
        picture.append(f"{'':{LABEL}}… and {len(batches) - ROWS_MAX} more\n", "dim")
    picture.append(
        f"{'':{LABEL}}1 2 3 items written to that batch   R root task runs   ━ requests\n", "dim"
    )
    return picture


class Axis:
    """Seconds since the first batch began, laid out over columns."""

    def __init__(self, batches: Sequence[Batch], columns: int) -> None:
        self.began = min(batch.began for batch in batches)
        self.seconds = max(max(batch.ended for batch in batches) - self.began, 0.1)
        self.columns = columns
        self.step = tick_step(self.seconds, columns // 10)

    def column(self, at: float) -> int:
        """The column of a Unix time."""
        share = (at - self.began) / self.seconds
        return min(self.columns - 1, max(0, int(share * self.columns)))

    def _ticks(self) -> list[tuple[int, str]]:
        times = [n * self.step for n in range(int(self.seconds / self.step) + 1)]
        return [(self.column(self.began + at), f"{at:g} s") for at in times]

    def labels(self) -> str:
        cells = [" "] * self.columns
        for at, label in self._ticks():
            if at + len(label) <= self.columns:
                cells[at : at + len(label)] = label
        return "".join(cells).rstrip()

    def rule(self) -> str:
        cells = ["-"] * self.columns
        for at, _ in self._ticks():
            cells[at] = "|"
        return "".join(cells) + ARROW


def tick_step(seconds: float, ticks_max: int) -> float:
    """The finest of STEPS that takes no more than so many ticks."""
    fitting = (step for step in STEPS if seconds / step <= max(1, ticks_max))
    return next(fitting, seconds)


class _Row:
    """Cells of one character, with a style each."""

    def __init__(self, columns: int) -> None:
        self._cells = [(" ", "")] * columns

    def put(self, at: int, text: str, style: str) -> None:
        for offset, character in enumerate(text):
            if at + offset < len(self._cells):
                self._cells[at + offset] = (character, style)

    def text(self) -> Text:
        row = Text()
        for character, style in self._cells:
            row.append(character, Style.parse(style))
        row.rstrip()
        return row


def _diagram(batches: Sequence[Batch], axis: Axis) -> list[_Row]:
    """The rows of 2010: arrows, numbers and R, and "un" with the number under each R."""
    depth = 4 + max(len(str(len(batches))) - 1, 0)
    rows = [_Row(axis.columns) for _ in range(1 + depth)]
    arrows, marks, *below = rows
    for number, batch in enumerate(batches, 1):
        style = COLORS[(number - 1) % len(COLORS)]
        for at, _ in batch.writes:
            arrows.put(axis.column(at), "^", "dim")
            marks.put(axis.column(at), str(number % 10), style)
    for number, batch in enumerate(batches, 1):
        if batch.root is not None:
            at = axis.column(batch.root.began)
            arrows.put(at, "^", "bold")
            marks.put(at, "R", "bold")
            for row, character in zip(below, f"un{number}", strict=False):
                row.put(at, character, "bold")
    return rows


def _bars(picture: Text, number: int, batch: Batch, axis: Axis) -> None:
    """One row: where the batch's items were written, its R, and while requests were at work."""
    style = COLORS[(number - 1) % len(COLORS)]
    row = _Row(axis.columns + len(_note(batch)))
    if batch.writes and batch.root:
        begin, end = axis.column(batch.writes[0][0]), axis.column(batch.root.began)
        row.put(begin, "·" * (end - begin), "dim")
    for at, _ in batch.writes:
        row.put(axis.column(at), str(number % 10), style)
    for join in batch.joins:
        begin, end = axis.column(join.began), axis.column(join.ended)
        row.put(begin, "━" * (end - begin + 1), style)
    if batch.root is not None:
        row.put(axis.column(batch.root.began), "R", "bold")
    row.put(axis.column(batch.ended) + 1, _note(batch), "dim")
    picture.append(f"{f'batch {number}':{LABEL}}", style)
    picture.append_text(row.text())
    picture.append("\n")


def _note(batch: Batch) -> str:
    return f" {count(batch.items, 'item')}, {count(len(batch.joins), 'request')}"
