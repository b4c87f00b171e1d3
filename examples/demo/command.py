"""The command: start everything, run, report; and go quietly when told to."""

from __future__ import annotations

import contextlib
import fcntl
import sys
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import click
from rich.console import Console

from forkjoin_gcp.emulators import LocalServiceError

from . import figures, history, interrupts, outcome, report, svg, timeline
from .lines import Line, local_lines, read_lines
from .progress import RunProgress
from .run import Run, run
from .stack import Logs, Stack, brief, running

WIDTH_MAX = 140
PLAIN_WIDTH = 100


@click.command()
@click.option(
    "--input",
    "source",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A text file of URLs, one a line; without it, pages of a local web site.",
)
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("demo-output"),
    show_default=True,
    help="The directory for results.jsonl, demo.svg and logs/.",
)
@click.option(
    "--count",
    type=click.IntRange(1, 1_000_000),
    default=2_000,
    show_default=True,
    help="How many pages of the local web site.",
)
def command(source: Path | None, output: Path, count: int) -> None:
    """Fetch thousands of URLs through the whole of forkjoin_gcp, on this machine.

    Starts Valkey, Firestore and Cloud Tasks locally, the join function under functions-framework
    and the example service under gunicorn, and posts one URL a request from many clients.
    """
    console = Console(width=None if sys.stdout.isatty() else PLAIN_WIDTH, highlight=False)
    try:
        interrupts.accept()
        complete = _demo(console, source, output.absolute(), count)
        interrupts.ignore()
    except KeyboardInterrupt:
        interrupts.ignore()
        console.print("Interrupted: every process of the demo is stopped.")
        sys.exit(interrupts.STATUS)
    except LocalServiceError as error:
        raise click.ClickException(brief(error)) from None
    except (aiohttp.ClientError, OSError) as error:
        raise click.ClickException(f"{type(error).__name__}: {error}") from None
    sys.exit(0 if complete else 1)


def _demo(console: Console, source: Path | None, output: Path, count: int) -> bool:
    """The whole of it; whether every line has its result."""
    given = read_lines(source) if source is not None else None
    logs = Logs(output / "logs")
    with _alone_in(output):
        logs.clear()
        console.print("Starting Valkey, Firestore, Cloud Tasks, join function, service, origin …")
        with running(logs) as stack:
            lines = local_lines(stack.origin, count) if given is None else given
            done = _run(console, stack, lines)
        return _report(console, lines, done, output)


def _run(console: Console, stack: Stack, lines: list[Line]) -> Run:
    to_post = [line for line in lines if not line.defect]
    console.print(f"Posting {len(to_post):,} URLs, one a request, to http://{stack.service}/urls")
    with RunProgress(console, len(to_post)) as progress:
        return interrupts.run(lambda: run(stack, to_post, progress))


def _report(console: Console, lines: list[Line], done: Run, output: Path) -> bool:
    merged = outcome.merge(lines, done.posted, done.handled)
    results, picture = output / "results.jsonl", output / "demo.svg"
    outcome.write(merged, results)
    batches = history.batches(done.handled.by_line.values(), done.joins)
    shown = figures.figures(
        merged,
        outcome.count_exact(results, lines),
        done.posted,
        done.handled,
        batches,
        done.joins,
        done.counted,
    )
    title, subtitle = report.headings(shown)
    picture.write_text(svg.draw(batches, title, subtitle), "utf-8")
    console.print()
    console.print(timeline.draw(batches, min(console.width, WIDTH_MAX)))
    console.print(report.table(shown))
    for path in (results, picture, output / "logs"):
        console.print(f"  {_short(path)}")
    return shown.complete


def _short(path: Path) -> Path:
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


@contextlib.contextmanager
def _alone_in(output: Path) -> Iterator[None]:
    """Hold the output directory. Raises ClickException when another demo is using it."""
    output.mkdir(parents=True, exist_ok=True)
    with (output / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise click.ClickException(
                f"Another demo is writing to {_short(output)}: wait for it, or choose --output."
            ) from None
        yield
