"""`python -m tests.chaos`: kill and stop everything in turn while items flow, and count.

Ends with 0 if all that was accepted was handled or dead-lettered, 1 if not, 2 if something did not
start, 130 after Ctrl-C; and leaves no process behind.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import time
from pathlib import Path
from types import FrameType

from forkjoin_gcp.emulators import LocalServiceError, LocalServices
from forkjoin_gcp.emulators.local import PORTS
from forkjoin_gcp.emulators.processes import LOOPBACK, free_port
from tests.chaos.run import Outcome, chaos

INTERRUPTED = 128 + signal.SIGINT


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seconds", type=float, default=120.0, help="of chaos (default 120)")
    parser.add_argument("--rate", type=float, default=600.0, help="items a second (default 600)")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument(
        "--directory", type=Path, help="for logs, ledgers and data; kept (default: none is)"
    )
    return parser.parse_args()


def free_ports(count: int) -> int:
    """The first of so many ports in a row that were free a moment ago."""
    for _ in range(1_000):
        first = free_port()
        with contextlib.suppress(OSError), contextlib.ExitStack() as held:
            for port in range(first, first + count):
                held.enter_context(socket.socket()).bind((LOOPBACK, port))
            return first
    raise LocalServiceError(f"found no {count} free ports in a row")


def main() -> int:
    given = arguments()
    began = time.monotonic()

    def tell(what: str) -> None:
        print(f"{time.monotonic() - began:6.1f} s  {what}", flush=True)

    tell(f"seed {given.seed}")
    directory = given.directory or Path(tempfile.mkdtemp(prefix="forkjoin-chaos-"))
    directory.mkdir(parents=True, exist_ok=True)
    outcome: Outcome | None = None
    try:
        data = directory / "data"
        # Ports that can be taken again: each service is started anew where it was.
        with LocalServices.start(
            directory, data=data, firestore="embedded", port=free_ports(PORTS)
        ) as local:
            outcome = asyncio.run(
                chaos(
                    local,
                    directory,
                    data,
                    seconds=given.seconds,
                    rate=given.rate,
                    seed=given.seed,
                    tell=tell,
                )
            )
    except KeyboardInterrupt:
        tell("interrupted")
        return INTERRUPTED
    except LocalServiceError as error:
        tell(str(error))
        return 2
    finally:
        if given.directory is None and outcome is not None and outcome.good:
            shutil.rmtree(directory, ignore_errors=True)
        else:
            tell(f"logs and ledgers are in {directory}")
    for line in outcome.lines():
        print(line)
    return 0 if outcome.good else 1


def _as_interrupt(_number: int, _frame: FrameType | None) -> None:
    os.kill(os.getpid(), signal.SIGINT)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _as_interrupt)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(main())
