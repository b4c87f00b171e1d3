"""What the commands that work on declared queues share: finding them, and saying what is wrong."""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from forkjoin_gcp.errors import ForkJoinError

if TYPE_CHECKING:
    from forkjoin_gcp.queue import ForkJoinQueue

FAILED, UNFINISHED = 1, 3
"""Exit codes: something could not be done; a bound was met before the end."""

queue_option = click.option(
    "--queue",
    "places",
    metavar="MODULE:ATTRIBUTE",
    multiple=True,
    help="Where a queue is declared, as feeds:feeds for `feeds` in feeds.py here; may be "
    "given more than once. Default: FORKJOIN_QUEUE.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
dry_run_option = click.option("--dry-run", is_flag=True, help="Say what would be done; do nothing.")


def says_errors(command: Callable[..., Any]) -> Callable[..., Any]:
    """A command that says what this package raises instead of showing a traceback."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except ForkJoinError as error:
            raise click.ClickException(str(error)) from error

    return run


@contextmanager
def declared(places: tuple[str, ...]) -> Iterator[list[ForkJoinQueue[Any]]]:
    """The queues of the option, or of the variable, from modules here or installed; closed after.

    Raises ConfigurationError.
    """
    import os

    from forkjoin_gcp.errors import ConfigurationError
    from forkjoin_gcp.loading import load_queues
    from forkjoin_gcp.queue import ForkJoinQueue

    sys.path.insert(0, os.getcwd())
    queues = load_queues(",".join(places) or os.environ.get("FORKJOIN_QUEUE", ""))
    for queue in queues:
        if not isinstance(queue, ForkJoinQueue):
            raise ConfigurationError(f"{type(queue).__name__} object: not a ForkJoinQueue")
    if len({queue.name for queue in queues}) < len(queues):
        raise ConfigurationError("two of these queues have one name")
    try:
        yield queues
    finally:
        for queue in queues:
            queue.close()


def age(at: float) -> str:
    """How long ago a Unix time was, for a person to read."""
    seconds = max(0, int(time.time() - at))
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"
