"""`python -m forkjoin_gcp.emulators`: start, stop and look at the local services from a shell.

Standard output carries only what a shell is to evaluate, or the table asked for; all else goes
to standard error.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

try:
    import click
    from rich.console import Console
    from rich.table import Table
except ImportError as error:
    sys.exit(f"error: {error}. Install it with `pip install 'forkjoin-gcp[local]'`.")

from . import cloud_tasks_service, firestore, record, valkey
from .errors import LocalServiceError
from .local import DEFAULT_LOCATION, DEFAULT_PROJECT, LocalServices
from .record import Record, ServiceRecord

_HEALTH = {
    "valkey": valkey.answers,
    "firestore": firestore.answers,
    "cloud-tasks": cloud_tasks_service.answers,
}
_PACKAGE = "forkjoin_gcp.emulators"
_CONFIRMATION = b"go on\n"
_DETACHED_LOG = "start.log"
_CHECK_INTERVAL = 0.05

_directory = click.option(
    "--dir",
    "directory",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where logs and state are kept. Default: a directory of yours below the system's "
    "temporary one.",
)


class _ErrorsSaid(click.Group):
    """A group whose commands say a LocalServiceError instead of showing a traceback."""

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except LocalServiceError as error:
            raise click.ClickException(str(error)) from error


@click.group(cls=_ErrorsSaid)
def main() -> None:
    """Valkey, Firestore and Cloud Tasks on this machine."""


@main.command()
@_directory
@click.option("--detach", is_flag=True, help="Return when all are ready; they keep running.")
@click.option("--confirmed", is_flag=True, hidden=True)
@click.option("--project", default=DEFAULT_PROJECT, show_default=True, help="Project id.")
@click.option("--location", default=DEFAULT_LOCATION, show_default=True, help="Location of queues.")
def start(
    directory: Path | None, detach: bool, confirmed: bool, project: str, location: str
) -> None:
    """Start all three and print `export NAME=value` lines.

    Runs until Ctrl-C, unless detached. With --detach, services that run already in the
    directory are taken as they are.
    """
    home = (directory or record.default_directory()).absolute()
    record.prepare(home)
    if detach:
        _print_exports(_start_detached(home, project, location))
    else:
        _run(home, project, location, confirmed)


@main.command()
@_directory
def stop(directory: Path | None) -> None:
    """Stop the services that `start` runs in the directory."""
    home = (directory or record.default_directory()).absolute()
    stopped = record.stop(home)
    click.echo("Stopped." if stopped else f"Nothing runs in {home}.", err=True)


@main.command()
@_directory
def status(directory: Path | None) -> None:
    """Show the services, their ports and whether they answer. Fails unless all do."""
    present = _present(directory)
    table = Table()
    for heading in ("service", "address", "process", "health"):
        table.add_column(heading)
    healthy = True
    for service in present.services:
        answers = _HEALTH[service.name](service.health_address)
        healthy = healthy and answers
        table.add_row(
            service.name,
            service.address,
            "not ours" if service.process is None else str(service.process),
            "[green]ok[/]" if answers else "[red]no answer[/]",
        )
    Console().print(table)
    if not healthy:
        sys.exit(1)


@main.command()
@_directory
def env(directory: Path | None) -> None:
    """Print the `export NAME=value` lines of the services that run."""
    _print_exports(_present(directory))


def _present(directory: Path | None) -> Record:
    home = (directory or record.default_directory()).absolute()
    present = record.read(home)
    if present is None:
        raise LocalServiceError(f"Nothing runs in {home}.")
    return present


def _print_exports(present: Record) -> None:
    for name, value in present.environment.items():
        click.echo(f"export {name}={shlex.quote(value)}")


class _Ended(BaseException):
    """A signal asked for the end. No Exception, so that nothing takes it for a failure."""


def _run(home: Path, project: str, location: str, confirmed: bool) -> None:
    """Runs the services in this process until a signal or until one of them ends by itself.

    If it is to be `confirmed`, it also ends unless its starter, once told that all is ready, says
    so on standard input: a starter that was killed meanwhile leaves nothing running.
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
            LocalServices.start(home, project=project, location=location) as local,
        ):
            present = _record_of(local)
            record.write(home, present)
            _print_exports(present)
            if confirmed and os.read(0, len(_CONFIRMATION)) != _CONFIRMATION:
                return
            click.echo("Ready. Ctrl-C stops all.", err=True)
            _wait_for_a_death(local)
    except _Ended:
        click.echo("Stopped.", err=True)


def _wait_for_a_death(local: LocalServices) -> None:
    while True:
        for child in local.processes:
            if not child.running:
                raise child.failure("ended by itself, so all are stopped")
        # Returns early at a signal: _Ended is raised out of it.
        time.sleep(0.5)


def _record_of(local: LocalServices) -> Record:
    environment = local.environment()
    processes = {child.name: child.pid for child in local.processes}
    valkey_address = environment["FORKJOIN_MEMORYSTORE"].removeprefix("redis://")
    firestore_address = environment[firestore.HOST_VARIABLE]
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
            )
        ],
    )


def _start_detached(home: Path, project: str, location: str) -> Record:
    present = record.read(home)
    if present is not None:
        return present
    command = [sys.executable, "-m", _PACKAGE, "start", "--confirmed", "--dir", str(home)]
    command += ["--project", project, "--location", location]
    with (home / _DETACHED_LOG).open("w+b") as log:
        # Its own session and no terminal: it is to outlive this shell. Its output must not be
        # ours, or `$(start --detach)` would wait for its end.
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True
        )
        assert process.stdin is not None
        try:
            present = _await_record(home, process)
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
    return present


def _await_record(home: Path, process: subprocess.Popen[bytes]) -> Record | None:
    """The record of the process once it is ready; None if it ended instead."""
    while process.poll() is None:
        present = record.read(home)
        if present is not None and present.pid == process.pid:
            return present
        time.sleep(_CHECK_INTERVAL)
    return None


if __name__ == "__main__":
    main(prog_name="forkjoin_gcp.emulators")
