"""`python -m forkjoin_gcp.emulators.firestore_embedded`: as a process of its own."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import signal
import sys
from pathlib import Path

from .server import EmbeddedFirestore


async def serve(arguments: argparse.Namespace) -> None:
    """Serves until SIGTERM or SIGINT. Prints one line of JSON with the addresses when ready."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with EmbeddedFirestore(
        arguments.port, host=arguments.host, directory=arguments.directory
    ) as firestore:
        addresses = {"address": firestore.address, "grpc_address": firestore.grpc_address}
        print(json.dumps(addresses), flush=True)
        await stop.wait()


def main() -> None:
    """Reads the command line and serves."""
    parser = argparse.ArgumentParser(description="An embedded Firestore.")
    parser.add_argument("--host", default="127.0.0.1", help="to listen on (default 127.0.0.1)")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one (default)")
    parser.add_argument(
        "--directory",
        type=Path,
        help="keeps the documents there, so that a restart loses nothing (default: in memory)",
    )
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    try:
        asyncio.run(serve(arguments))
    except OSError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
