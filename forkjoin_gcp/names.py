"""Where everything of a batch is: pure arithmetic from a work index to keys, paths and chunks.

No I/O and no clock. A work index is used once, ever, so every name made from it is unique, and the
hashed prefix spreads neighbouring indexes evenly over Firestore's key space and Cloud Tasks' ids.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from forkjoin_gcp.errors import ConfigurationError

KNUTH_FACTOR = 2654435761
"""Knuth's multiplicative hash: a prime near 2**32 times the golden ratio (TAOCP vol. 3, 6.4)."""

MAX_POSITIONS = 10**8
"""Positions of one batch: segment ids are eight digits, so that keys sort as numbers do."""

MAX_INDEX = 9 * 10**15
"""Work indexes are below this: Lua counts exactly up to 2**53. In microseconds, the year 2255."""

CLOCK_LANE = 999
"""The number of the lane that is counted by the clock: QueueConfig has at most 100 others."""

CLOCK_BLOCK = 1_000
"""Positions that each segment of a clock batch owns, from a random multiple of this on: as many as
the largest segment of the largest batch_size has items."""

_QUEUE = re.compile(r"[a-z](?:[a-z0-9-]{0,61}[a-z0-9])?")
_VERSION = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,29}[a-z0-9])?")
_BATCH_KEY = re.compile(r"([0-9a-f]{8})-(0|[1-9][0-9]{0,2})-(0|[1-9][0-9]{0,15})")


def knuth_hash(number: int) -> int:
    """Spread consecutive integers over 0 … 2**32 - 1."""
    return number * KNUTH_FACTOR % 2**32


def check_queue_name(name: object) -> str:
    """Return ``name`` if it can name a queue; raise ConfigurationError if not."""
    if not isinstance(name, str) or not _QUEUE.fullmatch(name):
        raise ConfigurationError(
            f"queue name {name!r}: use 1 to 63 lower-case letters, digits and hyphens, "
            "starting with a letter and not ending in a hyphen"
        )
    return name


def check_version(version: object) -> str:
    """Return ``version`` if it can name a deployment; raise ConfigurationError if not."""
    if not isinstance(version, str) or not _VERSION.fullmatch(version):
        raise ConfigurationError(
            f"version {version!r}: use 1 to 31 lower-case letters, digits and hyphens, "
            "not starting or ending with a hyphen"
        )
    return version


@dataclass(frozen=True, slots=True)
class Lane:
    """An independently counted stream of batches: a queue, a version of it, and a number from 0."""

    queue: str
    version: str
    number: int = 0

    def __post_init__(self) -> None:
        check_queue_name(self.queue)
        check_version(self.version)
        if not 0 <= self.number < 1000:
            raise ConfigurationError(f"lane {self.number!r}: lanes are numbered from 0 to 999")

    @property
    def key(self) -> str:
        """The lane's hash in Memorystore. The braces are a cluster hash tag."""
        return f"fj:{{{self.queue}/{self.version}/{self.number}}}"

    @property
    def quarantine_key(self) -> str:
        """Says in Memorystore which suspect chunk of the lane runs."""
        return f"{self.key}:quarantine"

    @property
    def is_clock(self) -> bool:
        """Whether its batches are numbered by the clock, without Memorystore."""
        return self.number == CLOCK_LANE

    @property
    def root_path(self) -> str:
        """The document above all batches and dead letters of the queue, without the database."""
        return f"forkjoin/{self.queue}.{self.version}"


@dataclass(frozen=True, slots=True)
class Batch:
    """All items written under one work index of a lane."""

    lane: Lane
    index: int

    @property
    def key(self) -> str:
        """``hash-lane-index``: the hash spreads, the index makes unique."""
        return f"{knuth_hash(self.index):08x}-{self.lane.number}-{self.index}"

    @classmethod
    def parse(cls, queue: str, version: str, key: str) -> Batch:
        """The batch that ``key`` names; ConfigurationError if it is not one this package makes."""
        match = _BATCH_KEY.fullmatch(key)
        index = int(match[3]) if match else MAX_INDEX
        if match is None or index >= MAX_INDEX or int(match[1], 16) != knuth_hash(index):
            raise ConfigurationError(f"batch key {key!r}: not of the form hash-lane-index")
        return cls(Lane(queue, version, int(match[2])), index)

    @property
    def path(self) -> str:
        """The batch's document, relative to the database; its segments are below it."""
        return f"{self.lane.root_path}/batches/{self.key}"

    @property
    def memory_key(self) -> str:
        """The batch's hash in Memorystore, where a memory-only queue keeps its segments."""
        return f"{self.lane.key}:batch:{self.key}"

    def item_id(self, position: int) -> str:
        """The id of the item first written at ``position`` of this batch."""
        return item_id(self.key, position)


@dataclass(frozen=True, slots=True)
class Chunk:
    """Positions ``first … stop - 1`` of a batch: what one request handles.

    A ``suspect`` was set apart because runs of the chunk it was in vanished with their process.
    Of a lane's suspects one runs at a time, and its lease is its own.
    """

    batch: Batch
    first: int
    stop: int
    suspect: bool = False

    @property
    def key(self) -> str:
        """The hash of the chunk's lease in Memorystore."""
        end = ":suspect" if self.suspect else ""
        return f"{self.batch.lane.key}:chunk:{self.batch.key}:{self.first}-{self.stop}{end}"


def item_id(batch_key: str, position: int) -> str:
    """The id that the item first written at ``position`` of a batch keeps for ever."""
    return f"{batch_key}-{position}"


def segment_id(first: int) -> str:
    """The document id of the segment that begins at position ``first``."""
    return f"{first:08d}"


def chunk_bounds(position: int, batch_size: int) -> tuple[int, int]:
    """First position, and the one after the last, of the chunk that ``position`` is in."""
    first = position - position % batch_size
    return first, first + batch_size


def split_at_chunks(start: int, count: int, batch_size: int) -> list[tuple[int, int]]:
    """Cut positions ``start … start + count - 1`` at chunk boundaries, as (first, count) pairs."""
    pieces = []
    while count:
        size = min(count, chunk_bounds(start, batch_size)[1] - start)
        pieces.append((start, size))
        start, count = start + size, count - size
    return pieces


def plan_by_length(length: int, batch_size: int) -> list[tuple[int, int]]:
    """The chunks of a batch of which ``length`` positions were handed out, as (first, stop)."""
    return [(first, first + batch_size) for first in range(0, length, batch_size)]


def clock_index(now: float, period: float) -> int:
    """The work index of the clock batch that gathers at ``now`` (Unix s): its period's end, in ms.

    ``period`` is in seconds; all who use the same have the same periods.
    """
    period_ms = round(period * 1000)
    return (int(now * 1000) // period_ms + 1) * period_ms


def plan_by_packing(listed: Iterable[tuple[int, int]], batch_size: int) -> list[tuple[int, int]]:
    """Chunks of a clock batch, as (first, stop): segments, given as (first, count), in key order,
    as many as ``batch_size`` items allow, and at least one.

    A chunk ends where its last segment's block does, so its span depends on its own segments alone:
    planned again when others have gone, the chunk has the same name.
    """
    spans: list[tuple[int, int]] = []
    room = 0
    for first, count in sorted(listed):
        stop = first - first % CLOCK_BLOCK + CLOCK_BLOCK
        if spans and count <= room:
            spans[-1] = spans[-1][0], stop
        else:
            spans.append((first, stop))
            room = batch_size
        room -= count
    return spans


def plan_by_listing(firsts: Iterable[int], batch_size: int) -> list[tuple[int, int]]:
    """The chunks that hold the segments beginning at ``firsts``, as (first, stop), ascending."""
    return sorted({chunk_bounds(first, batch_size) for first in firsts})
