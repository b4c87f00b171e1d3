"""Runs the local services and their dashboard in this process, or in one that outlives it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import click

from forkjoin_gcp.emulators import record
from forkjoin_gcp.emulators.dashboard import Dashboard
from forkjoin_gcp.emulators.errors import LocalServiceError
from forkjoin_gcp.emulators.firestore import HOST_VARIABLE
from forkjoin_gcp.emulators.local import FirestoreChoice, LocalServices
from forkjoin_gcp.emulators.record import Record, ServiceRecord

_CONFIRMATION = b"go on\n"
_DETACHED_LOG = "up.log"
_CHECK_INTERVAL = 0.05
_WATCH_INTERVAL = 0.5


@dataclass(frozen=True, slots=True)
class Settings:
    """What is to run. `port` is the dashboard's, the services' follow; 0 takes free ones."""

    project: str
    location: str
    firestore: FirestoreChoice | None
    data: Path | None
    port: int

    def options(self) -> list[str]:
        """The command-line options that say the same."""
        options = ["--project", self.project, "--location", self.location]
        if self.firestore is not None:
            options.append(f"--{self.firestore}")
        if self.data is not None:
            options += ["--data", str(self.data.absolute())]
        if self.port:
            options += ["--port", str(self.port)]
        return options


def firestore_choice(text: str | None) -> FirestoreChoice | None:
    """The choice that an option stands for."""
    if text == "google":
        return "google"
    return "embedded" if text == "embedded" else None


class _Ended(BaseException):
    """A signal asked for the end. No Exception, so that nothing takes it for a failure."""


def run(
    home: Path, settings: Settings, announce: Callable[[Record], None], *, confirmed: bool
) -> None:
    """Runs the services in this process until a signal or until one of them ends by itself.

    If it is to be `confirmed`, it also ends unless its starter, once told that all is ready, says
    so on standard input: a starter that was killed meanwhile leaves nothing running.

    Raises LocalServiceError.
    """
    signals = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

    def end(number: int, _frame: FrameType | None) -> None:
        for other in signals:  # once is enough: a second one would only disturb the ending
            signal.signal(other, signal.SIG_IGN)
        raise _Ended(number)

    for number in signals:
        signal.signal(number, end)
    try:
        with (
            record.running_here(home),
            LocalServices.start(
                home,
                project=settings.project,
                location=settings.location,
                firestore=settings.firestore,
                data=settings.data,
                port=settings.port + 1 if settings.port else 0,
            ) as local,
            Dashboard(
                local.environment(), local.cloud_tasks_admin, port=settings.port
            ) as dashboard,
        ):
            present = _record_of(local, dashboard)
            record.write(home, present)
            if confirmed and os.read(0, len(_CONFIRMATION)) != _CONFIRMATION:
                return
            if not confirmed:
                announce(present)
            _wait_for_a_death(local)
    except _Ended:
        click.echo("Stopped.", err=True)


def _wait_for_a_death(local: LocalServices) -> None:
    while True:
        for child in local.processes:
            if not child.running:
                raise child.failure("ended by itself, so all are stopped")
        # Returns early at a signal: _Ended is raised out of it.
        time.sleep(_WATCH_INTERVAL)


def _record_of(local: LocalServices, dashboard: Dashboard) -> Record:
    environment = local.environment()
    processes: dict[str, int] = {child.name: child.pid for child in local.processes}
    processes["dashboard"] = os.getpid()
    valkey_address = environment["FORKJOIN_MEMORYSTORE"].removeprefix("redis://")
    firestore_address = environment[HOST_VARIABLE]
    api_address = environment["CLOUD_TASKS_EMULATOR_HOST"]
    admin_address = local.cloud_tasks_admin.removeprefix("http://")
    return Record(
        pid=os.getpid(),
        environment=environment,
        services=[
            ServiceRecord(name, address, health_address, processes.get(name))
            for name, address, health_address in (
                ("valkey", valkey_address, valkey_address),
                ("firestore", firestore_address, firestore_address),
                ("cloud-tasks", api_address, admin_address),
                ("dashboard", dashboard.address, dashboard.address),
            )
        ],
    )


def start_detached(home: Path, settings: Settings, announce: Callable[[Record], None]) -> None:
    """Starts a process that runs the services, and returns when they are ready and announced;
    those that run in the directory already are taken as they are. Raises LocalServiceError."""
    present = record.read(home)
    if present is not None:
        announce(present)
        return
    command = [sys.executable, "-m", "forkjoin_gcp.cli", "local", "up", "--confirmed"]
    command += ["--dir", str(home), *settings.options()]
    with (home / _DETACHED_LOG).open("w+b") as log:
        # Its own session and no terminal: it is to outlive this shell. Its output must not be
        # ours, or `$(up --detach)` would wait for its end.
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True
        )
        assert process.stdin is not None
        try:
            present = _await_record(home, process)
            if present is not None:
                announce(present)
            with contextlib.suppress(BrokenPipeError), process.stdin:
                process.stdin.write(_CONFIRMATION)
        except BaseException:
            # Interrupted: what was begun is taken back.
            process.terminate()
            process.wait()
            raise
        finally:
            log.seek(0)
            said = log.read().decode(errors="replace").strip().removeprefix("Error: ")
    if present is None:
        raise LocalServiceError(said)
    # It is meant to outlive this process: no warning that it does.
    process.returncode = 0


def _await_record(home: Path, process: subprocess.Popen[bytes]) -> Record | None:
    """The record of the process once it is ready; None if it ended instead."""
    while process.poll() is None:
        present = record.read(home)
        if present is not None and present.pid == process.pid:
            return present
        time.sleep(_CHECK_INTERVAL)
    return None
