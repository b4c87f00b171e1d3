"""The `forkjoin` command. Needs the extra `local`; one command a module."""

from __future__ import annotations

import sys

try:
    import click
    import rich
except ImportError as error:
    sys.exit(f"error: {error}. Install it with `pip install 'forkjoin-gcp[local]'`.")

from .dead import dead
from .doctor import doctor
from .local import local
from .sweep import sweep

__all__ = ["main"]

del rich


@click.group()
@click.version_option(package_name="forkjoin-gcp", prog_name="forkjoin")
def main() -> None:
    """A fork-join queue for Google Cloud."""


main.add_command(dead)
main.add_command(doctor)
main.add_command(local)
main.add_command(sweep)
