"""The leases of chunks without a service: what the script lease.lua does, in dictionaries."""

from __future__ import annotations

from dataclasses import dataclass

from forkjoin_gcp.names import Chunk, Lane
from forkjoin_gcp.ports import Busy, Clock, Lease


@dataclass
class _Leased:
    """A chunk's hash; ``until`` is 0 where nobody holds it."""

    token: str = ""
    until: float = 0.0
    starts: int = 0
    split: int | None = None


class InProcessLeases:
    """The part of a WorkIndex that leases chunks."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._leases: dict[Chunk, _Leased] = {}
        self._quarantines: dict[Lane, _Leased] = {}

    def forget(self) -> None:
        """Lose all state."""
        self._leases.clear()
        self._quarantines.clear()

    async def lease(self, chunk: Chunk, token: str, seconds: float) -> Lease | Busy:
        now = self._clock.now()
        lane = chunk.batch.lane
        state = self._leases.get(chunk) or _Leased()
        quarantine = self._quarantines.get(lane) if chunk.suspect else None
        for held in (state, quarantine):
            if held and held.until > now and held.token != token:
                return Busy(held.until - now)
        vanished = state.starts
        state.token, state.until = token, now + seconds
        if chunk.suspect:
            self._quarantines[lane] = _Leased(token, now + seconds)
        else:
            state.starts += 1
        self._leases[chunk] = state
        return Lease(vanished, state.split)

    async def renew(
        self, chunk: Chunk, token: str, seconds: float, *, starts: int | None = None
    ) -> bool:
        now = self._clock.now()
        held = [self._leases.get(chunk)]
        if chunk.suspect:
            quarantine = self._quarantines.get(chunk.batch.lane)
            held.append(quarantine if quarantine and quarantine.until > now else None)
        for one in held:
            if one is None or one.token != token:
                return False
        for one in held:
            if one is not None:
                one.until = now + seconds
        if starts is not None and held[0] is not None:
            held[0].starts = starts
        return True

    async def unlease(
        self, chunk: Chunk, token: str, *, vanished: int = 0, split: int | None = None
    ) -> None:
        quarantine = self._quarantines.get(chunk.batch.lane)
        if quarantine is not None and quarantine.token == token:
            del self._quarantines[chunk.batch.lane]
        state = self._leases.get(chunk)
        if state is None or state.token != token:
            return
        del self._leases[chunk]
        if vanished or split is not None:
            self._leases[chunk] = _Leased(starts=vanished, split=split)
