"""What the page shows: rows of plain values. Times are seconds since the epoch."""

from __future__ import annotations

from dataclasses import dataclass, field

ROWS_SHOWN = (50, 500, 5_000)
"""Of each table, at most: the first unless one who looks asks for more. The totals count all."""


@dataclass(frozen=True, slots=True)
class QueueRow:
    """A Cloud Tasks queue. The counts of what is over are since the emulator's start."""

    name: str
    state: str
    waiting: int
    running: int
    tombstones: int
    completed: int
    retried: int
    exhausted: int


@dataclass(frozen=True, slots=True)
class TaskRow:
    """A task, or what is left of one: its name. `state` is waiting, running or tombstone; `moment`
    is when it is due, or since when it is gone. Of a tombstone no attempts are known."""

    queue: str
    name: str
    state: str
    moment: float
    attempts: int | None


@dataclass(frozen=True, slots=True)
class DispatchRow:
    """A finished attempt at a task. `status` is None where the target gave no answer."""

    queue: str
    name: str
    status: int | None
    error: str
    retry_count: int
    started: float
    seconds: float


@dataclass(frozen=True, slots=True)
class TasksView:
    """What Cloud Tasks holds."""

    queues: list[QueueRow] = field(default_factory=list)
    tasks: list[TaskRow] = field(default_factory=list)
    dispatches: list[DispatchRow] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class IndexRow:
    """An open work index of a lane."""

    lane: str
    index: int
    writers: int
    length: int
    batch_size: int
    scheduled: bool
    sealed: bool


@dataclass(frozen=True, slots=True)
class SegmentRow:
    """A segment that is stored. `store` is where: Firestore or Valkey."""

    queue: str
    batch: str
    first: str
    items: int
    enqueued_at: float
    store: str


@dataclass(frozen=True, slots=True)
class DeadLetterRow:
    """An item that was given up."""

    queue: str
    item: str
    reason: str
    error: str
    attempts: int
    dead_at: float


@dataclass(frozen=True, slots=True)
class ItemsView:
    """Segments and dead letters of one store; the totals count what is not among the rows, too."""

    segments: list[SegmentRow] = field(default_factory=list)
    dead_letters: list[DeadLetterRow] = field(default_factory=list)
    segments_total: int = 0
    items_total: int = 0
    dead_total: int = 0


@dataclass(frozen=True, slots=True)
class ValkeyView:
    """What Valkey holds: every lane's state, and the items of queues that are in memory only."""

    lanes: int = 0
    indexes: list[IndexRow] = field(default_factory=list)
    items: ItemsView = field(default_factory=ItemsView)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything, as of one moment. `problems` says by service why something is missing."""

    taken_at: float
    rows: int
    tasks: TasksView
    valkey: ValkeyView
    firestore: ItemsView
    problems: dict[str, str]

    @property
    def segments(self) -> list[SegmentRow]:
        """Those of both stores, oldest first."""
        every = self.firestore.segments + self.valkey.items.segments
        return sorted(every, key=lambda row: row.enqueued_at)[: self.rows]

    @property
    def dead_letters(self) -> list[DeadLetterRow]:
        """Those of both stores, newest first."""
        every = self.firestore.dead_letters + self.valkey.items.dead_letters
        return sorted(every, key=lambda row: -row.dead_at)[: self.rows]

    @property
    def totals(self) -> dict[str, int]:
        """What the head of the page counts."""
        stores = (self.firestore, self.valkey.items)
        return {
            "tasks waiting": sum(queue.waiting for queue in self.tasks.queues),
            "running": sum(queue.running for queue in self.tasks.queues),
            "tombstones": sum(queue.tombstones for queue in self.tasks.queues),
            "open indexes": len(self.valkey.indexes),
            "writers": sum(row.writers for row in self.valkey.indexes),
            "segments": sum(store.segments_total for store in stores),
            "items in them": sum(store.items_total for store in stores),
            "dead letters": sum(store.dead_total for store in stores),
        }
