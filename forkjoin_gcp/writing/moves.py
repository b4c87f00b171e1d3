"""Late segments: they move to a new index, until their writer is in time there.

A segment that is gone, or changed, was read by a reader, which is all that was wanted.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from forkjoin_gcp.errors import IndexUnavailable, SegmentConflict
from forkjoin_gcp.items import Segment
from forkjoin_gcp.names import Batch, Lane
from forkjoin_gcp.ports import Counters, Found, Release, WorkStore
from forkjoin_gcp.writing.holds import Hold, Holds

logger = logging.getLogger(__name__)

MOVE_ATTEMPTS = 5
"""How many new indexes a late group is moved to before its callers are told of the failure."""

READS_AT_ONCE = 20
"""Reads of a late group's segments at the same time, on the clock lane, where they lie apart."""


class Mover:
    """Moves the late segments of one writer. Belongs to one event loop.

    ``home`` is the lane that segments from the clock lane come back to.
    """

    def __init__(self, store: WorkStore, holds: Holds, counters: Counters, home: Lane) -> None:
        self._store = store
        self._holds = holds
        self._counters = counters
        self._home = home

    async def move(
        self, batch: Batch, segments: Sequence[Segment], attempts: int = MOVE_ATTEMPTS
    ) -> None:
        """Return when a reader has each of ``segments``, or is still to come to where it is now.

        Raises ServiceError where that could not be reached.
        """
        found = await self._find(batch, segments)
        if not found:
            return
        if not attempts:
            raise IndexUnavailable(f"{batch.key} was late on {MOVE_ATTEMPTS} indexes in a row")
        lane = self._home if batch.lane.is_clock else batch.lane
        hold = await self._holds.take(lane, sum(len(segment.items) for _, segment in found))
        pieces = hold.rebuild([segment for _, segment in found])
        scheduled, *outcome = await asyncio.gather(
            self._holds.schedule(hold),
            *(
                self._move_one(batch, one, hold, to)
                for (one, _), to in zip(found, pieces, strict=True)
            ),
            return_exceptions=True,
        )
        if isinstance(scheduled, BaseException):
            # The items are durable already, so a missing Cloud Tasks queue no longer refuses them.
            self._holds.defer(hold, scheduled)
        verdict = await self._holds.release(hold, scheduled=scheduled is True)
        moved = [piece for result in outcome if isinstance(result, list) for piece in result]
        clashed = [
            segment
            for (_, segment), result in zip(found, outcome, strict=True)
            if isinstance(result, SegmentConflict)
        ]
        if verdict is Release.LATE and moved:
            await self.move(hold.batch, moved, attempts - 1)
        if clashed:
            await self.move(batch, clashed, attempts - 1)
        for result in outcome:
            if isinstance(result, BaseException) and not isinstance(result, SegmentConflict):
                raise result

    async def _find(self, batch: Batch, segments: Sequence[Segment]) -> list[tuple[Found, Segment]]:
        """The segments that stand as this writer wrote them: no reader has settled any of them."""
        wrote = {segment.first: segment for segment in segments}
        if batch.lane.is_clock:
            there = await self._read_each(batch, sorted(wrote))
        else:
            there = await self._store.read(batch, min(wrote), max(wrote) + 1)
        return [
            (one, one.segment)
            for one in there
            if one.segment
            and one.first in wrote
            and (one.segment.nonce, one.segment.items)
            == (wrote[one.first].nonce, wrote[one.first].items)
        ]

    async def _read_each(self, batch: Batch, firsts: Sequence[int]) -> list[Found]:
        """As ``read``, without what others have put in between."""
        limit = asyncio.Semaphore(READS_AT_ONCE)

        async def read(first: int) -> list[Found]:
            async with limit:
                return await self._store.read(batch, first, first + 1)

        return [one for there in await asyncio.gather(*map(read, firsts)) for one in there]

    async def _move_one(
        self, batch: Batch, found: Found, hold: Hold, pieces: Sequence[Segment]
    ) -> list[Segment]:
        if not await self._store.move(batch, found, hold.batch, pieces):
            return []
        hold.wrote()
        self._counters["segments_moved"] += 1
        return list(pieces)
