"""What the protocol needs from outside, one small Protocol for each service.

writer, reader, worker and sweeper see only these. Each method's docstring is a promise that the
contract suites in forkjoin_gcp.testing check on every implementation.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from forkjoin_gcp.items import DeadLetter, Segment
from forkjoin_gcp.names import Batch, Chunk, Lane

Counters = Counter[str]
"""How often each thing was done, under ``service.call`` (``firestore.batch_write``,
``memorystore.round_trip``, ``cloud_tasks.create_task``…) or the name of an event. Calls are what
the cloud charges for."""


@dataclass(frozen=True, slots=True)
class Reservation:
    """A writer's hold on a work index, and the positions it was given.

    ``scheduled``: the batch's root task is known to exist. ``full``: this reservation brought the
    batch to ``max_batch_items``, and whoever comes next gets another index.
    """

    index: int
    start: int
    batch_size: int
    scheduled: bool
    full: bool


class Release(Enum):
    """What giving a hold back found."""

    OPEN = "open"
    SEALED = "sealed"
    LATE = "late"
    """The reader has gone past, or the state was lost: the segments must move to a new index."""


@dataclass(frozen=True, slots=True)
class Extent:
    """What a batch was found to hold when it was fenced."""

    length: int
    batch_size: int


@dataclass(frozen=True, slots=True)
class Lease:
    """A chunk's lease, granted.

    ``vanished`` runs of the chunk were begun before and came to no end: their process died, or
    hung until their lease ran out. ``split``: the position at which the chunk was split.
    """

    vanished: int = 0
    split: int | None = None


@dataclass(frozen=True, slots=True)
class Busy:
    """Somebody else's lease, which runs out in so many seconds unless it is renewed."""

    seconds: float


class WorkIndex(Protocol):
    """Counts writers, hands out positions, leases chunks. Every method is one atomic step of one
    lane.

    All raise IndexUnavailable where there is no answer: whether the step was taken is then unknown.
    None is ever repeated by the implementation.
    """

    async def reserve(self, lane: Lane, count: int) -> Reservation:
        """Hold the current index for a writer of ``count`` items. Indexes never go back."""

    async def release(self, lane: Lane, index: int, *, scheduled: bool) -> Release:
        """Give a hold back; ``scheduled`` notes that the root task exists."""

    async def release_and_reserve(
        self, lane: Lane, index: int, count: int, *, scheduled: bool
    ) -> tuple[Release, Reservation]:
        """``release``, then ``reserve``, in one round trip."""

    async def seal(self, lane: Lane, index: int) -> int | None:
        """Close the index to new writers; how many are outstanding, or None where it is unknown."""

    async def wait_drained(self, lane: Lane, index: int, seconds: float) -> None:
        """Return when a sealed index's last writer releases, after ``seconds``, or sooner."""

    async def fence(self, lane: Lane, index: int) -> Extent | None:
        """Forget the index: every later release of it is LATE. What it held, or None: unknown."""

    async def lease(self, chunk: Chunk, token: str, seconds: float) -> Lease | Busy:
        """Hold a chunk for ``seconds`` by the server's clock, unless another token does.

        Counts a start of the chunk, which ``unlease`` takes back; not of a suspect, for which
        ``renew`` does. A suspect takes its lane's quarantine as well, or is Busy.
        """

    async def renew(
        self, chunk: Chunk, token: str, seconds: float, *, starts: int | None = None
    ) -> bool:
        """Hold it for ``seconds`` from now on, and note how many ``starts`` are counted.

        False, and nothing done, where the token does not hold it (or its quarantine) any more.
        """

    async def unlease(
        self, chunk: Chunk, token: str, *, vanished: int = 0, split: int | None = None
    ) -> None:
        """Give it back if the token still holds it, and with it the quarantine.

        What the next lease will say is given; where that is nothing, the chunk is forgotten.
        """

    async def ping(self, lane: Lane) -> None:
        """Return where the lane's state can be changed. Changes nothing of it."""

    async def close(self) -> None:
        """Drop all connections."""


@dataclass(frozen=True, slots=True)
class Found:
    """A stored segment, and the revision that a change of it must still meet.

    ``segment`` is None, and ``defect`` says why, where the stored document is not a segment.
    ``raw`` is then its text.
    """

    first: int
    segment: Segment | None
    revision: object
    defect: str = ""
    raw: str = ""


@dataclass(frozen=True, slots=True)
class Listed:
    """A stored segment's first position and how many of its items are still to be handled."""

    first: int
    count: int


@dataclass(frozen=True, slots=True)
class Change:
    """What becomes of one segment, in one atomic step, if it is still as ``found``.

    It is replaced by ``left``, or deleted where that is None, and ``dead`` are put down beside it.
    """

    found: Found
    left: Segment | None
    dead: tuple[DeadLetter, ...] = ()


END = "g"
"""Comes after every batch key: these begin with a hexadecimal digit."""


@dataclass(frozen=True, slots=True)
class KeyRange:
    """Stored segments of one queue and version, of all its lanes.

    They begin at position ``first`` of the batch whose key is ``start``, or after it, and end
    before the batch key ``stop``. The first digits of a key will do as one: they are ordered as
    text. ``END`` comes after every batch key.
    """

    queue: str
    version: str
    start: str = "0"
    first: int = 0
    stop: str = END


@dataclass(frozen=True, slots=True)
class Scanned:
    """A stored segment as a scan sees it, without its payloads. Times are Unix times in seconds.

    ``count`` of its items are still to be handled. ``updated_at`` is when it was last written, by
    the store's clock. ``due`` is when the first of its items may be tried: 0 is now.
    """

    batch: Batch
    first: int
    count: int
    updated_at: float
    due: float


@dataclass(frozen=True, slots=True)
class Buried:
    """A stored dead letter, and the revision that what becomes of it must still meet."""

    letter: DeadLetter
    revision: object


class WorkStore(Protocol):
    """Keeps segments and dead letters. Every method may be repeated with the same result.

    All raise StoreUnavailable where the store gave no answer in time, after tries of its own, and
    StoreRefused for what it will never take.
    """

    async def create(self, batch: Batch, segments: Sequence[Segment]) -> list[Exception | None]:
        """Write segments that must not exist yet; for each None (durable), or why not.

        A segment that is there already with the same nonce counts as written; with another nonce
        it is a SegmentConflict. Raises nothing for a single segment's sake.
        """

    async def discard(self, batch: Batch, segments: Sequence[Segment]) -> None:
        """Take back segments just created and never released; none need be there."""

    async def move(
        self, batch: Batch, found: Found, target: Batch, pieces: Sequence[Segment]
    ) -> bool:
        """In one atomic step delete ``found`` and create ``pieces`` under ``target``.

        False, and nothing done, where ``found`` has gone or changed in the meantime.
        """

    async def split(self, batch: Batch, found: Found, pieces: Sequence[Segment]) -> bool:
        """In one atomic step replace ``found`` by the first of ``pieces`` and create the others.

        The first begins where ``found`` does. False, and nothing done, where ``found`` has gone or
        changed in the meantime.
        """

    async def listing(self, batch: Batch) -> list[Listed]:
        """Keys and counts of the batch's segments, ascending. No payload is read."""

    async def read(self, batch: Batch, first: int, stop: int) -> list[Found]:
        """The segments that begin at ``first … stop - 1`` and have items left, ascending."""

    async def settle(self, batch: Batch, changes: Sequence[Change]) -> list[bool]:
        """Apply each change on its own; False for one whose segment has gone or changed."""

    async def dead_letters(self, lane: Lane, limit: int) -> list[DeadLetter]:
        """Up to ``limit`` dead letters of the lane's queue and version, in id order."""

    async def versions(self) -> list[tuple[str, str]]:
        """Each queue and version of which segments are stored, ascending."""

    def scan(self, wanted: KeyRange, page: int) -> AsyncIterator[list[Scanned]]:
        """The segments in a range, ascending by batch key and position.

        They come in lists of ``page`` at most, each read when it is asked for: what is written
        meanwhile may be seen or not. What is stored there and is no segment's place is left out.
        """

    async def graves(self, queue: str) -> list[Lane]:
        """The lanes under which dead letters of the queue are kept, of all versions, ascending.

        Where those of all lanes of a version are kept together, lane 0 stands for them.
        """

    async def find_dead(self, grave: Lane, after: str, limit: int) -> list[Buried]:
        """Up to ``limit`` dead letters kept under ``grave`` whose ids come after, in id order."""

    async def requeue(self, grave: Lane, buried: Buried, target: Batch, segment: Segment) -> bool:
        """In one atomic step remove a dead letter and create ``segment`` under ``target``.

        ``target`` is of the lane that ``grave`` is. False, and nothing done, where the letter has
        gone or changed. Raises SegmentConflict where another's segment stands there.
        """

    async def purge(self, grave: Lane, buried: Sequence[Buried]) -> list[bool]:
        """Delete dead letters, each on its own; False for one that has gone or changed."""

    async def close(self) -> None:
        """Drop all connections."""


@dataclass(frozen=True, slots=True)
class TaskRequest:
    """A named task to create. ``at`` is a Unix time in seconds, or None for at once."""

    queue: str
    task_id: str
    body: bytes
    at: float | None
    dispatch_deadline: float


class TaskScheduler(Protocol):
    """Creates named tasks, each once."""

    async def create(self, task: TaskRequest) -> bool:
        """True where the task was created, False where one of its name exists or did lately.

        Raises SchedulerUnavailable after tries of its own, SchedulerRefused, and TaskQueueNotFound.
        """

    async def close(self) -> None:
        """Drop all connections."""


class Clock(Protocol):
    """What time it is. Durations are measured by the event loop, never by this."""

    def now(self) -> float:
        """Unix time in seconds."""


@dataclass(frozen=True, slots=True)
class Ports:
    """All that one queue needs from outside."""

    index: WorkIndex
    store: WorkStore
    scheduler: TaskScheduler
    clock: Clock

    async def close(self) -> None:
        """Drop all connections."""
        for port in (self.index, self.store, self.scheduler):
            await port.close()
