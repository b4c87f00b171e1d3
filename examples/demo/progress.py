"""Live progress: bars in a terminal, a line twice a second anywhere else."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

PLAIN_INTERVAL = 0.5


class RunProgress:
    """Shows how many of ``total`` lines are posted, and how many of their items handled."""

    def __init__(self, console: Console, total: int) -> None:
        self._console = console
        self._total = total
        self._began = time.monotonic()
        self._shown_at = float("-inf")
        self._shown = ""
        self._bars: Progress | None = None
        if console.is_terminal:
            self._bars = Progress(
                TextColumn("{task.description:8}"),
                BarColumn(bar_width=36),
                MofNCompleteColumn(),
                TextColumn("[dim]{task.fields[note]}"),
                TimeElapsedColumn(),
                console=console,
            )
            self._posted = self._bars.add_task("posted", total=total, note="")
            self._handled = self._bars.add_task("handled", total=total, note="")

    def update(self, accepted: int, refused: int, handled: int, note: str) -> None:
        """What was posted was ``accepted`` or ``refused``; what is refused is never handled."""
        due = self._total - refused
        if self._bars is not None:
            self._bars.update(self._posted, completed=accepted + refused)
            self._bars.update(self._handled, completed=handled, total=due, note=note)
            return
        now = time.monotonic()
        line = f"posted {accepted + refused:,}, handled {handled:,} of {due:,}; {note}"
        if (now - self._shown_at >= PLAIN_INTERVAL or handled == due) and line != self._shown:
            self._console.print(f"{now - self._began:6.1f} s  {line}")
            self._shown, self._shown_at = line, now

    def __enter__(self) -> RunProgress:
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bars is not None:
            self._bars.stop()
