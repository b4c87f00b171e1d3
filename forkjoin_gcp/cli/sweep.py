"""`forkjoin sweep`: schedule again what nobody is working on, once, from a shell."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from forkjoin_gcp.cli.queues import (
    FAILED,
    UNFINISHED,
    age,
    declared,
    dry_run_option,
    json_option,
    queue_option,
    says_errors,
)

if TYPE_CHECKING:
    from forkjoin_gcp.sweeper import SweepReport

SHOWN = 20
"""Batches shown of each queue; `--json` prints all."""


@click.command()
@queue_option
@dry_run_option
@click.option(
    "--partitions", type=int, default=8, show_default=True, help="Ranges of keys read at once."
)
@click.option(
    "--max-documents",
    type=int,
    help="Stop after so many segments of a queue, and say where to resume. Default: 100,000.",
)
@click.option("--seconds", type=float, help="Stop after so long, likewise.")
@click.option("--resume", default="", metavar="TEXT", help="Go on where an earlier sweep stopped.")
@json_option
@says_errors
def sweep(
    places: tuple[str, ...],
    dry_run: bool,
    partitions: int,
    max_documents: int | None,
    seconds: float | None,
    resume: str,
    as_json: bool,
) -> None:
    """Schedule the root task of each batch that nobody is working on.

    That is a batch with items that could have been handled `sweep_after` seconds ago: a task of it
    was lost. Reads every stored segment's key, of all versions of the queues. May be run at any
    time, several at once.

    Exit code: 0, all was seen; 1, something could not be read or scheduled; 3, it stopped at a
    bound.
    """
    options: dict[str, Any] = {"dry_run": dry_run, "partitions": partitions, "resume": resume}
    options |= {"begin": 0, "seconds": seconds}
    if max_documents is not None:
        options["max_documents"] = max_documents
    with declared(places) as queues:
        known = [queue.name for queue in queues]
        reports = [queue.sweep(**options, known=known) for queue in queues]
    left = ",".join(report.resume for report in reports if report.resume)
    if as_json:
        click.echo(json.dumps({"queues": [one.as_json() for one in reports], "resume": left}))
    else:
        for report in reports:
            _show(report)
        if left:
            click.echo(f"Not all was seen. To go on: --resume {left}")
    if any(report.failed for report in reports):
        sys.exit(FAILED)
    sys.exit(UNFINISHED if left else 0)


def _show(report: SweepReport) -> None:
    console = Console()
    if report.stale:
        table = Table()
        for heading in ("batch", "version", "items", "untouched for", "root task"):
            table.add_column(heading, no_wrap=heading != "root task")
        for stale in sorted(report.stale, key=lambda one: one.untouched_since)[:SHOWN]:
            done = {True: "created", False: "is there already", None: stale.error or "not created"}
            table.add_row(
                stale.batch.key,
                stale.batch.lane.version,
                f"{stale.items:,}",
                age(stale.untouched_since),
                Text(done[stale.scheduled]),
            )
        console.print(table)
        if len(report.stale) > SHOWN:
            click.echo(f"… and {len(report.stale) - SHOWN:,} more; --json prints all")
    click.echo(
        f"{report.queue}: {report.documents:,} segments read, {report.items:,} items in them, "
        f"{len(report.stale):,} stale batches, {report.scheduled:,} root tasks created"
        + (" (dry run)" if report.dry_run else "")
    )
    for queue, version in report.unknown:
        click.echo(f"{queue}.{version} has segments too: a queue not named here, not touched")
    for error in report.errors:
        click.echo(f"{report.queue}: {error}", err=True)
