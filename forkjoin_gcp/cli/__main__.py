"""`python -m forkjoin_gcp.cli`: the `forkjoin` command, also where it is not installed."""

from . import main

main(prog_name="forkjoin")
