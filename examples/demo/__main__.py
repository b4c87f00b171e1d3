"""`python -m examples.demo`: see command.py."""

import signal

SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}


def main() -> None:
    # A signal that comes while modules load is kept until there is someone to answer it.
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    from .command import command

    command(prog_name="python -m examples.demo")


if __name__ == "__main__":
    main()
