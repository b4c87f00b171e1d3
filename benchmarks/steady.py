"""A process that enqueues at a steady rate, and tells what became of each call.

    python -m benchmarks.steady QUEUE RATE LEDGER SETTINGS

RATE is in items per second, SETTINGS the queue's, as JSON. It begins when the first item is
accepted, says so with a line on standard output, and goes on until its standard input is closed.
When all calls have ended it writes LEDGER, a JSON object: ``calls``, a list of [began, seconds, id
or null, error or null], with ``began`` by the machine's monotonic clock, and ``counters``.
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from forkjoin_gcp import ForkJoinError, ForkJoinQueue

Call = tuple[float, float, str | None, str | None]


async def steady(queue: ForkJoinQueue[Any], rate: float, ended: Callable[[], bool]) -> list[Call]:
    """Call ``aenqueue`` each 1 / ``rate`` seconds, however long the calls take."""
    calls: list[Call] = []

    async def one(number: int) -> None:
        began = time.monotonic()
        accepted = error = None
        try:
            accepted = await queue.aenqueue({"n": number})
        except ForkJoinError as raised:
            error = f"{type(raised).__name__}: {raised}"
        calls.append((began, time.monotonic() - began, accepted, error))

    await one(0)
    sys.stdout.write("\n")
    sys.stdout.flush()
    began, number = time.monotonic(), 0
    running: set[asyncio.Task[None]] = set()
    while not ended():
        due = int((time.monotonic() - began) * rate)
        while number < due:
            number += 1
            task = asyncio.create_task(one(number))
            running.add(task)
            task.add_done_callback(running.discard)
        await asyncio.sleep(1 / rate)
    await asyncio.gather(*running)
    return calls


def main() -> None:
    name, rate, ledger, settings = sys.argv[1:]
    over = threading.Event()

    def watch() -> None:
        sys.stdin.read()
        over.set()

    threading.Thread(target=watch, daemon=True).start()
    with ForkJoinQueue(name, **json.loads(settings)) as queue:
        calls = asyncio.run(steady(queue, float(rate), over.is_set))
    Path(ledger).write_text(json.dumps({"calls": calls, "counters": queue.counters}))


if __name__ == "__main__":
    main()
