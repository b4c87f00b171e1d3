"""A process that enqueues and writes down what was acknowledged, until it has enough or is killed.

    python -m tests.integration.faults.caller QUEUE LEDGER FIRST WANTED STYLE

Items are numbered from FIRST on; a number is never used again, whatever became of it. A line
"number id" goes to LEDGER, past any buffer, once its enqueue has returned, and before the caller
does anything else. Ends with 0 when WANTED items are acknowledged, and when its standard input is
closed: it does not outlive the test.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import random
import sys
import threading
from collections import Counter
from pathlib import Path

from forkjoin_gcp import ForkJoinQueue, ServiceError
from tests.integration.faults.settings import SETTINGS

CALLERS = 16
MOST_AT_ONCE = 20


class Caller:
    """Hands in items in one of three styles. ``refusals`` counts what was not acknowledged."""

    def __init__(self, queue: ForkJoinQueue, ledger: Path, first: int, wanted: int) -> None:
        self.queue = queue
        self.refusals: Counter[str] = Counter()
        self._ledger = os.open(ledger, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        self._numbers = itertools.count(first)
        self._wanted = wanted
        self._lock = threading.Lock()

    def run(self, style: str) -> None:
        if style == "loop":
            asyncio.run(self._on_a_loop())
            return
        one = self._one_by_one if style == "threads" else self._many_at_once
        threads = [threading.Thread(target=one) for _ in range(CALLERS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _one_by_one(self) -> None:
        while self._wanted > 0:
            number = next(self._numbers)
            try:
                self._note([number], [self.queue.enqueue({"n": number})])
            except ServiceError as error:
                self._refused(error)

    def _many_at_once(self) -> None:
        while self._wanted > 0:
            count = random.randint(1, MOST_AT_ONCE)
            numbers = list(itertools.islice(self._numbers, count))
            try:
                self._note(numbers, self.queue.enqueue_many([{"n": n} for n in numbers]))
            except ServiceError as error:
                self._refused(error)

    async def _on_a_loop(self) -> None:
        async def call() -> None:
            while self._wanted > 0:
                number = next(self._numbers)
                try:
                    self._note([number], [await self.queue.aenqueue({"n": number})])
                except ServiceError as error:
                    self._refused(error)

        await asyncio.gather(*(call() for _ in range(CALLERS)))

    def _note(self, numbers: list[int], ids: list[str]) -> None:
        lines = "".join(f"{number} {one}\n" for number, one in zip(numbers, ids, strict=True))
        with self._lock:
            os.write(self._ledger, lines.encode())
            self._wanted -= len(numbers)

    def _refused(self, error: ServiceError) -> None:
        with self._lock:
            self.refusals[f"{type(error).__name__}: {error}"[:150]] += 1


def _end_with_the_test() -> None:
    sys.stdin.read()
    os._exit(1)


def main() -> None:
    name, ledger, first, wanted, style = sys.argv[1:]
    threading.Thread(target=_end_with_the_test, daemon=True).start()
    with ForkJoinQueue(name, **SETTINGS) as queue:
        caller = Caller(queue, Path(ledger), int(first), int(wanted))
        caller.run(style)
    ended = {"refusals": caller.refusals, "counters": queue.counters}
    Path(f"{ledger}.{first}.ended").write_text(json.dumps(ended))


if __name__ == "__main__":
    main()
