"""What the services themselves say was asked of them, beside what clients say they asked."""

from __future__ import annotations

import json
import urllib.request
from dataclasses import dataclass
from typing import Any, Self

import redis

ROUND_TRIPS = ("evalsha", "eval", "blpop", "get", "incrby", "decrby")
"""Commands that are a round trip of their own, of either side. The package's scripts use none of
these inside, and what the 2010 port sends beside them rides in a pipeline with ``incrby``."""


@dataclass(frozen=True, slots=True)
class Calls:
    """Round trips to Memorystore, and creates of tasks whether granted or refused as duplicates."""

    memorystore: int
    creates: int

    def __sub__(self, earlier: Self) -> Calls:
        return Calls(self.memorystore - earlier.memorystore, self.creates - earlier.creates)


class Accountant:
    """Reads the services' own counters, and empties the store between rounds."""

    def __init__(
        self, valkey_url: str, cloud_tasks_admin: str, firestore: str, project: str
    ) -> None:
        self._valkey = redis.Redis.from_url(valkey_url)
        self._stats_url = f"{cloud_tasks_admin}/stats?recent=0"
        self._documents_url = (
            f"http://{firestore}/emulator/v1/projects/{project}/databases/(default)/documents"
        )
        # No proxy: everything is on this machine.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def calls(self) -> Calls:
        commands: Any = self._valkey.info("commandstats")
        found = (commands.get(f"cmdstat_{name}", {}).get("calls", 0) for name in ROUND_TRIPS)
        with self._opener.open(self._stats_url, timeout=10) as answer:
            stats = json.load(answer)
        return Calls(sum(found), stats["creates"] + stats["duplicates"])

    def empty_store(self) -> None:
        """Delete every document of the project, so that no round works on another's."""
        request = urllib.request.Request(self._documents_url, method="DELETE")
        self._opener.open(request, timeout=60).close()

    def close(self) -> None:
        self._valkey.close()
