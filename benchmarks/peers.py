"""Processes of a run: each holds one side, does what it is told, and reports.

A side has a process to itself so that its CPU time is its own. It ends when the process that
started it ends, whichever way: its pipe then closes.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Protocol, Self

from benchmarks.setting import Setting

END_SECONDS = 15.0
"""How long a process may take to close what it has open."""


class Side(Protocol):
    def close(self) -> None: ...


class PeerError(Exception):
    """What a process was told to do failed there; the text is its traceback."""


class Peer:
    """A process that holds ``make(setting)`` and calls its methods for us, one at a time."""

    def __init__(self, make: Callable[[Setting], Side], setting: Setting) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, make, setting), daemon=True)
        self._process.start()
        theirs.close()

    def call(self, method: str, *args: Any) -> Any:
        """Raises PeerError."""
        self.begin(method, *args)
        return self.end()

    def begin(self, method: str, *args: Any) -> None:
        """Start a call whose answer ``end`` waits for."""
        self._pipe.send((method, args))

    def end(self) -> Any:
        """The answer to the call begun last. Raises PeerError."""
        try:
            failed, answer = self._pipe.recv()
        except EOFError:
            raise PeerError("the process ended") from None
        if failed:
            raise PeerError(answer)
        return answer

    def close(self) -> None:
        """End the process and wait for it."""
        self._pipe.close()
        self._process.join(END_SECONDS)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if exc is not None:
            self._process.kill()
        self.close()


def _serve(pipe: Connection, make: Callable[[Setting], Side], setting: Setting) -> None:
    # A Ctrl-C reaches the whole foreground group; the parent decides what becomes of it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.update(setting.environment)
    side = make(setting)
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            method, args = pipe.recv()
            try:
                answer = False, getattr(side, method)(*args)
            except Exception:
                answer = True, traceback.format_exc()
            pipe.send(answer)
    side.close()
