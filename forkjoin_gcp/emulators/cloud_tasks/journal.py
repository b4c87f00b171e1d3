"""Who is told of every change of the state, so that it can outlive the process."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .queues import Queue, Task


class Journal:
    """Keeps nothing: what the emulator holds ends with it. `sqlite_journal` has one that keeps.

    A change is told after it was made in memory and before anybody is answered.
    """

    def queue_changed(self, queue: Queue) -> None:
        """It was made, or its settings, its state or its purge time changed."""

    def queue_deleted(self, name: str, taken_until: float) -> None:
        """It is gone with its tasks and tombstones; its name is free at `taken_until`."""

    def task_added(self, task: Task) -> None:
        """It is new."""

    def task_changed(self, task: Task) -> None:
        """It was dispatched, or scheduled for its next attempt."""

    def task_buried(self, task: Task, buried_at: float) -> None:
        """It ran or was deleted; its name stays taken."""

    def name_freed(self, queue_name: str, task_id: str) -> None:
        """The tombstone of that name is gone."""

    def operation_ended(self, name: str, operation: bytes) -> None:
        """A long-running operation (a serialized message) has its result."""

    def operation_deleted(self, name: str) -> None:
        """Nobody can ask for it any more."""
