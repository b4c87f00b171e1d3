"""Group commit: items handed in one by one, taken off in groups, each caller told its own end.

Nothing here waits or does I/O. All methods belong to one event loop's thread.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

MAX_GROUP_ITEMS = 10_000
"""Items of one group: a hundred default chunks, about 10 MB of 1 KB payloads in flight."""

MAX_GROUP_CHARACTERS = 16_000_000
"""Payload characters of one group, unless its first item alone has more: bounds memory."""

Done = Callable[[list[str] | Exception], None]
"""Called once per submission with its items' ids, in order, or with why it was not accepted."""


class Submission:
    """What one caller handed in, and how many of its items have not met their end yet."""

    __slots__ = ("_done", "_error", "_ids", "_left", "payloads")

    def __init__(self, payloads: Sequence[str], done: Done) -> None:
        self.payloads = payloads
        self._ids = [""] * len(payloads)
        self._left = len(payloads)
        self._error: Exception | None = None
        self._done = done

    def accept(self, offset: int, ids: Sequence[str]) -> None:
        """The items from ``offset`` on are durable, under these ids."""
        self._ids[offset : offset + len(ids)] = ids
        self._end(len(ids))

    def refuse(self, count: int, error: Exception) -> None:
        """``count`` items were not accepted, and the caller is told the first reason."""
        self._error = self._error or error
        self._end(count)

    def _end(self, count: int) -> None:
        if self._left <= 0:
            return
        self._left -= count
        if self._left <= 0:
            self._done(self._error or self._ids)


@dataclass(frozen=True, slots=True)
class Slice:
    """Consecutive items of one submission."""

    submission: Submission
    offset: int
    count: int


class Group:
    """Items that are written together, in the order they were handed in."""

    def __init__(self, slices: Sequence[Slice]) -> None:
        self.slices = slices
        parts = [one.submission.payloads[one.offset : one.offset + one.count] for one in slices]
        self.payloads = parts[0] if len(parts) == 1 else list(itertools.chain.from_iterable(parts))

    def part(self, start: int, count: int) -> Iterator[Slice]:
        """The slices that make up items ``start … start + count - 1`` of the group."""
        at = 0
        for piece in self.slices:
            low, high = max(start, at), min(start + count, at + piece.count)
            if low < high:
                yield Slice(piece.submission, piece.offset + low - at, high - low)
            at += piece.count

    def accept(self, start: int, ids: Sequence[str]) -> None:
        """Items from ``start`` on are durable, under these ids."""
        at = 0
        for piece in self.part(start, len(ids)):
            piece.submission.accept(piece.offset, ids[at : at + piece.count])
            at += piece.count

    def refuse(self, start: int, count: int, error: Exception) -> None:
        """Items ``start … start + count - 1`` were not accepted."""
        for piece in self.part(start, count):
            piece.submission.refuse(piece.count, error)

    def refuse_all(self, error: Exception) -> None:
        """None of the items was accepted."""
        self.refuse(0, len(self.payloads), error)


class Pending:
    """What was handed in and is in no group yet."""

    def __init__(self, max_items: int) -> None:
        self._slices: deque[Slice] = deque()
        self._max_items = min(max_items, MAX_GROUP_ITEMS)

    def __len__(self) -> int:
        """How many slices wait: as good as how many callers."""
        return len(self._slices)

    def add(self, submission: Submission) -> None:
        self._slices.append(Slice(submission, 0, len(submission.payloads)))

    def put_back(self, slices: Sequence[Slice]) -> None:
        """Return slices to the front, in order, for the next group."""
        self._slices.extendleft(reversed(slices))

    def take(self) -> Group | None:
        """The next group: everything that waits, up to the limits, or None."""
        taken: list[Slice] = []
        items = characters = 0
        while self._slices and items < self._max_items:
            piece = self._slices.popleft()
            room = self._max_items - items
            texts = piece.submission.payloads[piece.offset : piece.offset + min(piece.count, room)]
            count, size = len(texts), sum(map(len, texts))
            if characters + size > MAX_GROUP_CHARACTERS:
                count, size = self._fitting(texts, MAX_GROUP_CHARACTERS - characters, bool(items))
            items += count
            characters += size
            if count:
                taken.append(Slice(piece.submission, piece.offset, count))
            if count < piece.count:
                rest = Slice(piece.submission, piece.offset + count, piece.count - count)
                self._slices.appendleft(rest)
                break
        return Group(taken) if taken else None

    def _fitting(self, texts: Sequence[str], room: int, may_be_none: bool) -> tuple[int, int]:
        """How many of ``texts``, from the first, fit into ``room`` characters, and what they have.

        The first is taken whatever it has, unless there ``may_be_none``.
        """
        size = 0
        for count, text in enumerate(texts):
            if size + len(text) > room and (count or may_be_none):
                return count, size
            size += len(text)
        return len(texts), size
