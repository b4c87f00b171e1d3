"""`forkjoin local`: the services of the cloud on this machine, from a shell.

Standard output carries only what a shell is to evaluate, or what was asked for; all else goes to
standard error.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from forkjoin_gcp.emulators import cloud_tasks_service, firestore, record, valkey
from forkjoin_gcp.emulators.errors import LocalServiceError
from forkjoin_gcp.emulators.local import DEFAULT_LOCATION, DEFAULT_PROJECT, PORTS
from forkjoin_gcp.emulators.processes import http_answers
from forkjoin_gcp.emulators.record import Record, ServiceRecord

from . import logs, running

_MAX_PORT = 65_535 - PORTS


def _dashboard_answers(address: str) -> bool:
    return http_answers(address, "/health")


_HEALTH = {
    "valkey": valkey.answers,
    "firestore": firestore.answers,
    "cloud-tasks": cloud_tasks_service.answers,
    "dashboard": _dashboard_answers,
}

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
def local() -> None:
    """Valkey, Firestore and Cloud Tasks on this machine, and a dashboard of them."""


@local.command()
@_directory
@click.option("--detach", is_flag=True, help="Return when all are ready; they keep running.")
@click.option(
    "--google", "firestore_choice", flag_value="google", help="Google's Firestore emulator (Java)."
)
@click.option(
    "--embedded", "firestore_choice", flag_value="embedded", help="The Firestore of this package."
)
@click.option(
    "--data",
    type=click.Path(path_type=Path, file_okay=False),
    help="Keep everything in this directory, so that a restart loses nothing.",
)
@click.option(
    "--port",
    type=click.IntRange(1, _MAX_PORT),
    help="First of five fixed ports: the dashboard, Valkey, Firestore, Cloud Tasks and its HTTP "
    "side. Default: free ones.",
)
@click.option("--project", default=DEFAULT_PROJECT, show_default=True, help="Project id.")
@click.option("--location", default=DEFAULT_LOCATION, show_default=True, help="Location of queues.")
@click.option("--confirmed", is_flag=True, hidden=True)
def up(
    directory: Path | None,
    detach: bool,
    firestore_choice: str | None,
    data: Path | None,
    port: int | None,
    project: str,
    location: str,
    confirmed: bool,
) -> None:
    """Start all three and a dashboard, and print `export` lines.

    Runs until Ctrl-C, unless detached. With --detach, services that run already in the
    directory are taken as they are. Without --google or --embedded, a Firestore that
    FIRESTORE_EMULATOR_HOST names is used, else FORKJOIN_FIRESTORE chooses, else it is the
    embedded one.
    """
    home = _home(directory)
    record.prepare(home)
    settings = running.Settings(
        project, location, running.firestore_choice(firestore_choice), data, port or 0
    )
    if detach:
        running.start_detached(home, settings, _announce)
    else:
        running.run(home, settings, _announce_foreground, confirmed=confirmed)


@local.command()
@_directory
def down(directory: Path | None) -> None:
    """Stop everything that `up` runs in the directory."""
    home = _home(directory)
    stopped = record.stop(home)
    click.echo("Stopped." if stopped else f"Nothing runs in {home}.", err=True)


@local.command()
@_directory
def status(directory: Path | None) -> None:
    """Show the services, their ports and whether they answer. Fails unless all do."""
    if not _print_status(_present(_home(directory))):
        sys.exit(1)


@local.command()
@_directory
def env(directory: Path | None) -> None:
    """Print the `export NAME=value` lines of the services that run."""
    _print_exports(_present(_home(directory)))


@local.command("logs")
@_directory
@click.option("--follow", "-f", is_flag=True, help="Go on until Ctrl-C.")
@click.option(
    "--lines",
    "-n",
    type=click.IntRange(0),
    default=20,
    show_default=True,
    help="How many lines of each to begin with.",
)
@click.argument("service", required=False)
def show_logs(directory: Path | None, follow: bool, lines: int, service: str | None) -> None:
    """Show the end of the logs, of all or of one SERVICE."""
    home = _home(directory)
    record.check_owner(home)
    logs.show(home, service, lines, follow=follow)


@local.command()
@_directory
def reset(directory: Path | None) -> None:
    """Empty all three without a restart: documents, keys and tasks."""
    present = _present(_home(directory))
    addresses = {service.name: service for service in present.services}
    project = present.environment["FORKJOIN_PROJECT"]
    # The tasks first, or one of them might write to what is empty already.
    done = {
        "cloud-tasks": cloud_tasks_service.empty(
            addresses["cloud-tasks"].address, addresses["cloud-tasks"].health_address
        ),
        "firestore": firestore.empty(addresses["firestore"].address, project),
        "valkey": valkey.empty(addresses["valkey"].address),
    }
    failed = [name for name, emptied in done.items() if not emptied]
    if failed:
        raise LocalServiceError(f"{', '.join(failed)} could not be emptied; see `status`.")
    click.echo("Emptied.", err=True)


def _home(directory: Path | None) -> Path:
    return (directory or record.default_directory()).absolute()


def _present(home: Path) -> Record:
    present = record.read(home)
    if present is None:
        raise LocalServiceError(f"Nothing runs in {home}. `forkjoin local up` starts it.")
    return present


def _announce(present: Record) -> None:
    _print_exports(present)
    _print_status(present, to_stderr=True)


def _announce_foreground(present: Record) -> None:
    _announce(present)
    click.echo("Ready. Ctrl-C stops all.", err=True)


def _print_exports(present: Record) -> None:
    for name, value in present.environment.items():
        click.echo(f"export {name}={shlex.quote(value)}")


def _print_status(present: Record, *, to_stderr: bool = False) -> bool:
    """Prints the table; whether all answer."""
    table = Table()
    for heading in ("service", "address", "process", "health"):
        table.add_column(heading, no_wrap=True)
    healthy = True
    for service in present.services:
        answers = _HEALTH[service.name](service.health_address)
        healthy = healthy and answers
        table.add_row(
            service.name,
            _shown(service),
            "not ours" if service.process is None else str(service.process),
            "[green]ok[/]" if answers else "[red]no answer[/]",
        )
    Console(stderr=to_stderr).print(table)
    return healthy


def _shown(service: ServiceRecord) -> str:
    return f"http://{service.address}/" if service.name == "dashboard" else service.address
