"""The lines of a text file of URLs: each is to come to exactly one result."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the input, counted from 1. ``defect`` says why it is not posted; "" if it is."""

    number: int
    text: str
    defect: str = ""


def read_lines(path: Path) -> list[Line]:
    """The lines of a file. Raises OSError.

    Only line feeds part lines, and one at the very end parts nothing. What is not UTF-8 is
    replaced: such a line is refused later, not the whole file.
    """
    text = path.read_bytes().decode("utf-8-sig", errors="replace")
    rows = text.removesuffix("\n").split("\n") if text else []
    return [_line(number, row.strip()) for number, row in enumerate(rows, 1)]


def local_lines(origin: str, count: int) -> list[Line]:
    """``count`` different pages of the local origin at host:port."""
    return [Line(n, f"http://{origin}/page/{n}") for n in range(1, count + 1)]


def _line(number: int, text: str) -> Line:
    if not text:
        return Line(number, text, "a blank line")
    if text.startswith("#"):
        return Line(number, text, "a comment")
    if not text.lower().startswith(("http://", "https://")):
        return Line(number, text, "not an http or https URL")
    return Line(number, text)
