"""`forkjoin dead`: what was given up, from a shell: look at it, bring it back, or delete it."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from forkjoin_gcp.cli.queues import (
    FAILED,
    age,
    declared,
    dry_run_option,
    json_option,
    queue_option,
    says_errors,
)

if TYPE_CHECKING:
    from forkjoin_gcp.dead_letters import DeadLetterReport
    from forkjoin_gcp.items import DeadLetter
    from forkjoin_gcp.queue import ForkJoinQueue

SHOWN_FAILURES = 10

_SECONDS = {"": 1, "s": 1, "min": 60, "h": 3_600, "d": 86_400}
_AGE = re.compile(r"([0-9]+(?:\.[0-9]+)?) *(s|min|h|d)?")


def _seconds(_: click.Context, __: click.Parameter, value: str | None) -> float | None:
    """A length of time as an option has it, in seconds."""
    if value is None:
        return None
    match = _AGE.fullmatch(value)
    if match is None:
        raise click.BadParameter(f"{value!r}: must be as 90s, 30min, 12h or 7d")
    return float(match[1]) * _SECONDS[match[2] or ""]


def choice_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that say which dead letters are meant."""
    for option in (
        click.option("--limit", type=click.IntRange(1), help="So many of each queue, at most."),
        click.option(
            "--newer-than",
            metavar="AGE",
            callback=_seconds,
            help="Died less than so long ago, as 12h.",
        ),
        click.option(
            "--older-than",
            metavar="AGE",
            callback=_seconds,
            help="Died more than so long ago, as 7d.",
        ),
        click.option("--reason", help="attempts, crashed, rejected or undecodable."),
        queue_option,
    ):
        command = option(command)
    return command


@click.group()
def dead() -> None:
    """Dead letters: items that will not be tried again by themselves.

    Those of all versions of the queues that --queue, or FORKJOIN_QUEUE, names.
    """


@dead.command("list")
@choice_options
@json_option
@says_errors
def list_letters(places: tuple[str, ...], limit: int | None, as_json: bool, **choice: Any) -> None:
    """Show dead letters, 100 of each queue unless --limit says otherwise."""
    with declared(places) as queues:
        found = {queue.name: queue.dead_letters(limit or 100, **choice) for queue in queues}
    if as_json:
        rows = [_as_json(name, one) for name, letters in found.items() for one in letters]
        click.echo(json.dumps({"dead_letters": rows}))
        return
    for name, letters in found.items():
        _show_table(name, letters)
        if len(letters) == (limit or 100):
            click.echo("There may be more: see --limit.")


@dead.command()
@click.argument("item_id")
@queue_option
@says_errors
def show(places: tuple[str, ...], item_id: str) -> None:
    """Print the dead letter of ITEM_ID as JSON, its payload with it."""
    with declared(places) as queues:
        found = [(q.name, one) for q in queues for one in q.dead_letters(1, ids=[item_id])]
    if not found:
        raise click.ClickException(f"no dead letter of item {item_id!r}")
    click.echo(json.dumps(_as_json(*found[0]), indent=2, ensure_ascii=False))


def acting_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """What requeue and purge take."""
    command = says_errors(json_option(dry_run_option(choice_options(command))))
    command = click.option("--all", "everything", is_flag=True, help="All there are.")(command)
    return click.argument("item_ids", nargs=-1)(command)


@dead.command()
@acting_options
def requeue(**given: Any) -> None:
    """Bring the items of ITEM_IDS, or of a choice, or --all, to a handler again.

    They keep their ids and begin with no attempts. Each goes in one atomic step.
    """
    _act("requeue", "requeued", **given)


@dead.command()
@click.option("--yes", is_flag=True, help="Do not ask.")
@acting_options
def purge(yes: bool, **given: Any) -> None:
    """Delete the dead letters of ITEM_IDS, or of a choice, or --all, for good."""
    _act("purge_dead_letters", "purged", ask=not yes, **given)


def _act(
    method: str,
    done: str,
    places: tuple[str, ...],
    item_ids: tuple[str, ...],
    everything: bool,
    dry_run: bool,
    as_json: bool,
    *,
    ask: bool = False,
    **choice: Any,
) -> None:
    if item_ids:
        choice["ids"] = list(item_ids)
    if not everything and not any(value is not None for value in choice.values()):
        raise click.UsageError("Say which: ITEM_IDS, a choice (see --help), or --all.")
    reports = {}
    with declared(places) as queues:
        # First how many: to ask, and to tell how far it has come.
        counts = {q.name: getattr(q, method)(dry_run=True, **choice) for q in queues}
        total = sum(report.found for report in counts.values())
        if dry_run or not total:
            reports = counts
        else:
            if ask:
                click.confirm(f"Delete {total:,} dead letters for good?", abort=True, err=True)
            reports = _run(queues, method, done, total, choice)
    if as_json:
        each = [{"queue": name, **report.as_json()} for name, report in reports.items()]
        click.echo(json.dumps({"queues": each}))
    else:
        for name, report in reports.items():
            _show_report(name, done, report)
    if any(report.failed for report in reports.values()):
        sys.exit(FAILED)


def _run(
    queues: list[ForkJoinQueue[Any]], method: str, done: str, total: int, choice: dict[str, Any]
) -> dict[str, DeadLetterReport]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    reports = {}
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(done, total=total)
        before = 0
        for queue in queues:

            def tell(report: DeadLetterReport, before: int = before) -> None:
                bar.update(task, completed=before + report.found)

            reports[queue.name] = getattr(queue, method)(progress=tell, **choice)
            before += reports[queue.name].found
    return reports


def _show_report(name: str, done: str, report: DeadLetterReport) -> None:
    said = f"{name}: {report.found:,} dead letters found, {report.done:,} {done}"
    if report.dry_run:
        said += " (dry run)"
    if report.gone:
        said += f", {report.gone:,} gone in the meantime"
    click.echo(said)
    for item_id, why in list(report.failed.items())[:SHOWN_FAILURES]:
        click.echo(f"{item_id}: {why}", err=True)
    if len(report.failed) > SHOWN_FAILURES:
        click.echo(f"… and {len(report.failed) - SHOWN_FAILURES:,} more failed", err=True)


def _show_table(name: str, letters: list[DeadLetter]) -> None:
    if not letters:
        click.echo(f"{name}: no dead letters")
        return
    table = Table(title=name)
    for heading in ("item", "reason", "attempts", "died", "error"):
        table.add_column(heading, overflow="fold" if heading in ("item", "error") else "ellipsis")
    for one in letters:
        error = " ".join(one.error.split())[:200]
        table.add_row(one.id, one.reason, str(one.attempts), f"{age(one.dead_at)} ago", Text(error))
    Console().print(table)


def _as_json(queue: str, letter: DeadLetter) -> dict[str, Any]:
    return {
        "queue": queue,
        "id": letter.id,
        "reason": letter.reason,
        "error": letter.error,
        "attempts": letter.attempts,
        "enqueued_at": letter.enqueued_at,
        "dead_at": letter.dead_at,
        "payload": letter.payload,
    }
