"""The protocol's defences, each of which can be taken away, to see that the simulation finds it.

Production code has no switch for this: scripts' texts and ports are changed on their way in.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from forkjoin_gcp.names import Lane
from forkjoin_gcp.ports import Ports, Release


def _same(value: Any) -> Any:
    return value


@dataclass(frozen=True)
class Defence:
    """One defence, and how to take it away. ``faults`` are in every world that looks for it."""

    name: str
    what: str
    patch_lua: Callable[[str], str] = _same
    patch_ports: Callable[[Ports], Ports] = _same
    faults: tuple[str, ...] = ()


NONE = Defence("", "nothing is taken away")


def _without(text: str, instead: str = "") -> Callable[[str], str]:
    """Replace a part of whatever script has it."""

    def patch(script: str) -> str:
        return script.replace(text, instead)

    return patch


class _Changed:
    """A port with some of its methods replaced."""

    def __init__(self, port: Any, **methods: Any) -> None:
        self._port = port
        self.__dict__.update(methods)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._port, name)


def _late_is_open(ports: Ports) -> Ports:
    index = ports.index

    async def release(lane: Lane, at: int, *, scheduled: bool) -> Release:
        await index.release(lane, at, scheduled=scheduled)
        return Release.OPEN

    async def both(lane: Lane, at: int, count: int, *, scheduled: bool) -> Any:
        _, reservation = await index.release_and_reserve(lane, at, count, scheduled=scheduled)
        return Release.OPEN, reservation

    changed: Any = _Changed(index, release=release, release_and_reserve=both)
    return replace(ports, index=changed)


DEFENCES = {
    defence.name: defence
    for defence in (
        Defence(
            "fence",
            "the reader's fence forgets the index, so that later releases are late",
            patch_lua=_without(
                "'w:' .. index, 'n:' .. index, 's:' .. index, 't:' .. index, 'x:' .. index",
                "'none'",
            ),
        ),
        Defence(
            "late answer",
            "a writer that is late moves its segments",
            patch_ports=_late_is_open,
        ),
        Defence(
            "epoch",
            "state that another primary wrote is not believed",
            patch_lua=_without("redis.pcall('INFO', 'replication')", "nil"),
        ),
        Defence(
            "clock seed",
            "a lane that was lost begins at the clock",
            patch_lua=_without("math.max(last + 1, now_ms())", "last + 1"),
        ),
    )
}
