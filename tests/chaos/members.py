"""A process under chaos: killed, stopped and started anew, on the same port and the same data."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Protocol

import psutil

from forkjoin_gcp.emulators.processes import ChildProcess


class Started(Protocol):
    """What a start gives: a process that can be awaited."""

    @property
    def process(self) -> ChildProcess: ...

    def wait_ready(self) -> None: ...


class Member:
    """One of the processes; ``start`` starts it, without waiting. Safe from many threads."""

    def __init__(
        self,
        name: str,
        start: Callable[[], Started],
        running: Started | None = None,
        *,
        when_ready: Callable[[], None] | None = None,
    ) -> None:
        self.name = name
        self._start = start
        self._running = running
        self._when_ready = when_ready
        self._ended = False
        self._lock = threading.Lock()

    def start(self) -> None:
        """Start it, unless all has ended, and return when it is ready."""
        with self._lock:
            if self._ended:
                return
            started = self._running = self._start()
        try:
            started.wait_ready()
            if self._when_ready is not None:
                self._when_ready()
        except Exception:
            if not self._ended:  # else it was ended on its way
                raise

    def kill(self) -> None:
        """As ``kill -9``: no goodbye of any kind."""
        if self._running is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._running.process.pid, signal.SIGKILL)
            self._running.process.stop()

    def stop(self) -> None:
        """As Ctrl-Z: it is there, and does nothing."""
        if self._running is not None:
            # Never the guardian, which ends the rest should this process be killed itself.
            with contextlib.suppress(psutil.NoSuchProcess):
                guardian = psutil.Process(self._running.process.pid)
                # Parents come first, so that a stopped one starts no more children.
                for each in guardian.children(recursive=True):
                    with contextlib.suppress(psutil.NoSuchProcess):
                        each.suspend()

    def go_on(self) -> None:
        if self._running is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._running.process.pid, signal.SIGCONT)

    @property
    def died(self) -> bool:
        """Whether it has ended without having been told to."""
        return self._running is not None and not self._running.process.running

    def end(self) -> None:
        """For good."""
        self._ended = True
        with self._lock:
            self.go_on()
            if self._running is not None:
                self._running.process.stop()


class Answering:
    """A child process that is ready when ``probe`` says so."""

    def __init__(self, process: ChildProcess, probe: Callable[[], bool], seconds: float) -> None:
        self.process = process
        self._probe = probe
        self._until = time.monotonic() + seconds

    def wait_ready(self) -> None:
        self.process.wait_ready(self._probe, max(0.0, self._until - time.monotonic()))
