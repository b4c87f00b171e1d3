"""`python -m forkjoin_gcp.emulators.cloud_tasks`: the emulator as a process of its own."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import resource
import signal
import sys
from pathlib import Path

from .server import CloudTasksEmulator

_OPEN_FILES = 16_384


async def serve(arguments: argparse.Namespace) -> None:
    """Serves until SIGTERM or SIGINT. Prints one line of JSON with the addresses when ready."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with CloudTasksEmulator(
        grpc_port=arguments.grpc_port,
        http_port=arguments.http_port,
        tombstone_age=arguments.tombstone_age,
        queue_tombstone_age=arguments.queue_tombstone_age,
        auto_create_queues=arguments.auto_create_queues,
        data=arguments.data,
        host=arguments.host,
    ) as emulator:
        addresses = {
            "grpc_address": emulator.grpc_address,
            "http_address": emulator.http_address,
            "certs_url": emulator.certs_url,
        }
        print(json.dumps(addresses), flush=True)
        await stop.wait()


def raise_file_limit() -> None:
    """Every dispatch in flight is a socket, and shells often allow 256 or 1,024."""
    present, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OPEN_FILES if most == resource.RLIM_INFINITY else min(most, _OPEN_FILES)
    if present != resource.RLIM_INFINITY and present < wanted:
        with contextlib.suppress(OSError, ValueError):  # a system may set a lower limit still
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))


def main() -> None:
    """Reads the command line and serves."""
    parser = argparse.ArgumentParser(description="A local emulator of Google Cloud Tasks.")
    parser.add_argument("--host", default="127.0.0.1", help="to listen on (default 127.0.0.1)")
    parser.add_argument("--grpc-port", type=int, default=0, help="0 takes a free one (default)")
    parser.add_argument("--http-port", type=int, default=0, help="0 takes a free one (default)")
    parser.add_argument(
        "--tombstone-age",
        type=float,
        default=86_400.0,
        metavar="SECONDS",
        help="how long the name of a task that ran or was deleted stays taken (default 86400)",
    )
    parser.add_argument(
        "--queue-tombstone-age",
        type=float,
        default=259_200.0,
        metavar="SECONDS",
        help="how long the name of a deleted queue stays taken (default 259200)",
    )
    parser.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        help="keep everything there, over restarts and kills; without it all is in memory",
    )
    parser.add_argument(
        "--auto-create-queues",
        action="store_true",
        help="make a missing queue when it is named; the real service answers NOT_FOUND",
    )
    arguments = parser.parse_args()
    raise_file_limit()
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    try:
        asyncio.run(serve(arguments))
    except OSError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
