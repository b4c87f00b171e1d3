"""`forkjoin doctor`: what is wrong with a deployment, seen from where it is run."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.text import Text

from forkjoin_gcp.cli.queues import FAILED, json_option, queue_option
from forkjoin_gcp.errors import ConfigurationError

if TYPE_CHECKING:
    from forkjoin_gcp.gcp.doctor import Finding, Subject

COLOURS = {"ok": "green", "warning": "yellow", "fault": "red", "skipped": "dim"}


@click.command()
@queue_option
@click.option("--local", is_flag=True, help="Check local services, and expect nothing of Google's.")
@click.option(
    "--dir",
    "directory",
    type=click.Path(path_type=Path, file_okay=False),
    help="With --local: where `forkjoin local up` keeps its state, whose environment is taken "
    "where none is set.",
)
@json_option
def doctor(places: tuple[str, ...], local: bool, directory: Path | None, as_json: bool) -> None:
    """Check environment, permissions, task queues, database, Valkey and the join URL.

    Run it where the queue is used: as a Cloud Run job with the service's account and network, or
    on your machine with --local. Nothing is changed.

    Exit code: 0, no fault; 1, there is one.
    """
    environ = _environment(local=local, directory=directory)
    findings = _findings(places, environ, local=local)
    faults = [finding for finding in findings if finding.status.value == "fault"]
    if as_json:
        click.echo(json.dumps({"faults": len(faults), "findings": list(map(_as_json, findings))}))
    else:
        _show(findings)
    if faults:
        sys.exit(FAILED)


def _environment(*, local: bool, directory: Path | None) -> dict[str, str]:
    """This process's, after that of running local services if they are asked for."""
    environ = dict(os.environ)
    if not local:
        return environ
    from forkjoin_gcp.emulators import record
    from forkjoin_gcp.emulators.errors import LocalServiceError

    try:
        present = record.read((directory or record.default_directory()).absolute())
    except LocalServiceError as error:
        raise click.ClickException(str(error)) from error
    return (present.environment if present else {}) | environ


def _findings(places: tuple[str, ...], environ: Mapping[str, str], *, local: bool) -> list[Finding]:
    from forkjoin_gcp.config import Services
    from forkjoin_gcp.gcp.doctor import Finding, Status, Subject, examine

    try:
        services = Services.from_env(environ)
    except ConfigurationError as error:
        fix = "Correct it; nothing else was looked at"
        return [Finding("environment", Status.FAULT, str(error), fix)]
    queues, found = [], []
    wanted = ",".join(places) or environ.get("FORKJOIN_QUEUE", "")
    if wanted:
        try:
            queues = _declared(wanted)
        except Exception as error:  # whatever the user's own module raises
            text = f"{wanted}: {type(error).__name__}: {error}"
            found.append(Finding("queues", Status.FAULT, text, "Correct it, or the module"))
    subject: Subject = Subject(services, environ, queues, local=local)
    return found + asyncio.run(examine(subject))


def _declared(places: str) -> list[Any]:
    """The settings of the queues declared there."""
    from forkjoin_gcp.loading import load_queues

    sys.path.insert(0, os.getcwd())
    return [queue.config for queue in load_queues(places)]


def _as_json(finding: Finding) -> dict[str, str]:
    return {
        "check": finding.check,
        "status": finding.status.value,
        "text": finding.text,
        "fix": finding.fix,
    }


def _show(findings: list[Finding]) -> None:
    console = Console(soft_wrap=True, highlight=False)
    width = max(len(finding.check) for finding in findings)
    for finding in findings:
        status = finding.status.value
        line = Text.assemble((f"{status:8}", COLOURS[status]), f"{finding.check:{width + 2}}")
        console.print(line + Text(finding.text))
        if finding.fix:
            console.print(Text(f"{'':8}{'':{width + 2}}-> {finding.fix}"))
