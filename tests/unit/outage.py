"""Memorystore away, for a rig: refusing at once, or never answering."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

from forkjoin_gcp.errors import IndexUnavailable
from tests.unit.rig import Rig

METHODS = frozenset(
    {"reserve", "release", "release_and_reserve", "seal", "wait_drained", "fence", "ping"}
)
REFUSED = "refused"
SILENT = "silent"


class Outage:
    """A work index whose calls fail while ``mode`` is REFUSED or SILENT; counts and times them."""

    def __init__(self, rig: Rig) -> None:
        self._rig = rig
        self._index = rig.index
        self.mode = ""
        self.calls: Counter[str] = Counter()
        self.pinged_at: list[float] = []
        rig.index = self  # type: ignore[assignment]
        rig.use(rig.runner.handler)

    def forget(self) -> None:
        self._index.forget()

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._index, name)
        if name not in METHODS:
            return method

        async def call(*args: Any, **kwargs: Any) -> Any:
            self.calls[name] += 1
            if name == "ping":
                self.pinged_at.append(self._rig.loop.time())
            await asyncio.sleep(0.0005)
            if self.mode == REFUSED:
                raise IndexUnavailable("connection refused")
            if self.mode == SILENT:
                # The client gives up at about the same time as the writer does.
                await asyncio.sleep(1.1 * self._rig.config.acquire_timeout)
                raise IndexUnavailable("timed out")
            return await method(*args, **kwargs)

        return call
