"""A chunk: lease → read → decode → handle in parallel → settle → next generation.

A chunk whose runs vanished with their process is split instead: see isolation.py. What failed and
may be tried again goes into a new generation of the same chunk, scheduled after a backoff; what did
not fit into the deadline goes into one at once. Only a failure of the machinery is raised, so a
handler's failures never slow a Cloud Tasks queue down.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Protocol

from forkjoin_gcp.config import QueueConfig
from forkjoin_gcp.errors import MAX_RETRY_AFTER, ChunkBusy, InvalidPayload
from forkjoin_gcp.items import DeadLetter, Item, PayloadCodec, Segment, StoredItem
from forkjoin_gcp.joining import leases
from forkjoin_gcp.joining.handlers import End, Outcome
from forkjoin_gcp.joining.isolation import (
    PUT_OFF_SECONDS,
    Presence,
    ProcessGate,
    items_in,
    parts_of,
    plan_cut,
)
from forkjoin_gcp.joining.leases import Held, Leases
from forkjoin_gcp.names import Batch
from forkjoin_gcp.ports import Change, Counters, Found, Ports
from forkjoin_gcp.tasks import ChunkTask, request_for

logger = logging.getLogger(__name__)

FARTHEST_DUE = MAX_RETRY_AFTER + 24 * 3600
"""Seconds. What is due later than this was not written so: it is due now. The day is for clocks."""


class HandlerRunner(Protocol):
    """Runs a queue's handler somewhere else than on the I/O loop."""

    async def run(self, items: Sequence[Item[Any]], elapsed: float) -> list[Outcome]:
        """An outcome for each item, well before the dispatch deadline of a request that has taken
        ``elapsed`` seconds so far. Raises HandlerError."""


@dataclass
class _Opened:
    """One segment as found, and what its items came to."""

    found: Found
    batch: Batch
    left: list[StoredItem] = field(default_factory=list)
    handled: list[StoredItem] = field(default_factory=list)
    dead: list[DeadLetter] = field(default_factory=list)
    changed: bool = False


_Try = tuple[_Opened, StoredItem, Item[Any]]


class Worker:
    """Handles chunks of one queue. Belongs to one event loop.

    ``gate`` is shared by all workers of a process. ``lease_seconds`` is LEASE_SECONDS unless given.
    """

    def __init__(
        self,
        config: QueueConfig,
        ports: Ports,
        counters: Counters,
        codec: PayloadCodec[Any],
        runner: HandlerRunner,
        *,
        gate: ProcessGate | None = None,
        lease_seconds: float | None = None,
    ) -> None:
        self._config = config
        self._ports = ports
        self._counters = counters
        self._codec = codec
        self._runner = runner
        self._gate = gate or ProcessGate()
        seconds = leases.LEASE_SECONDS if lease_seconds is None else lease_seconds
        # A chunk that waited until its deadline is near would begin nothing, time after time.
        patience = min(config.acquire_timeout, config.dispatch_deadline / 10)
        self._leases = Leases(ports.index, counters, patience, seconds)

    async def run(self, task: ChunkTask, began: float) -> None:
        """Handle what is due of a chunk and see to what is left.

        ``began`` is the event loop's time at which the request came. Raises ServiceError where
        the machinery failed, and ChunkBusy where another delivery runs the chunk: the request is
        then to be made again.
        """
        with self._gate.inside() as presence:
            held = await self._leases.take(task.chunk)
            try:
                following = await self._run(task, began, held, presence)
            except Exception:
                await held.give_back(vanished=held.vanished)
                raise
            except BaseException:
                held.drop()
                raise
            # Before the next generation is there to find the chunk busy.
            await held.give_back()
        for each in following:
            request = request_for(each, self._config, each.due or None)
            await self._ports.scheduler.create(request)

    async def _run(
        self, task: ChunkTask, began: float, held: Held, presence: Presence
    ) -> list[ChunkTask]:
        """Do it, under its lease; the tasks that are to follow it."""
        if held.split is not None:
            return await self._set_apart(task, held, held.split)
        found = await self._ports.store.read(task.batch, task.first, task.stop)
        cut = plan_cut(task, found, held.vanished, self._config.crash_limit)
        if cut is not None:
            if cut.found and not await self._ports.store.split(task.batch, cut.found, cut.pieces):
                raise ChunkBusy(after=PUT_OFF_SECONDS)  # somebody settles or moves it just now
            self._counters["chunks_split"] += 1
            return await self._set_apart(task, held, cut.at)
        self._counters["chunks"] += 1
        now = max(self._ports.clock.now(), task.due)
        opened = [_Opened(one, task.batch) for one in found]
        tries = [each for one in opened for each in self._open(one, now)]
        if tries and task.suspect:
            alone = items_in(found) == 1
            if alone and held.vanished >= self._config.crash_limit:
                self._blame(tries.pop(), held.vanished, now)
            else:
                await self._admit(alone, began, held, presence)
        if tries:
            elapsed = asyncio.get_running_loop().time() - began
            outcomes = await self._runner.run([item for _, _, item in tries], elapsed)
            ended = self._ports.clock.now()
            for (one, stored, _), outcome in zip(tries, outcomes, strict=True):
                self._decide(one, stored, outcome, ended)
        lost = await self._settle(task, opened)
        self._report(task, opened, len(tries))
        left = [item for one in opened for item in one.left]
        if lost:
            left += await self._look_again(task, lost)
        return [task.next(min(item.due for item in left))] if left else []

    async def _set_apart(self, task: ChunkTask, held: Held, at: int) -> list[ChunkTask]:
        # Noted first: once a part runs, the middle of what is left is another.
        await held.note_split(at)
        return parts_of(task, at)

    async def _admit(self, alone: bool, began: float, held: Held, presence: Presence) -> None:
        """Count a suspect's start. Of its last item's only if nobody else's crash can end it."""
        if alone:
            elapsed = asyncio.get_running_loop().time() - began
            if not await presence.alone(self._config.dispatch_deadline / 2 - elapsed):
                return
        if not await held.count_start():
            raise ChunkBusy(after=PUT_OFF_SECONDS)

    def _blame(self, tried: _Try, vanished: int, now: float) -> None:
        one, stored, _ = tried
        error = f"its process died or hung {vanished} times with nothing else running in it"
        self._bury(one, replace(stored, attempts=stored.attempts + vanished), "crashed", error, now)

    def _open(self, one: _Opened, now: float) -> list[_Try]:
        """Decode a segment's due items; set aside what is not due and what does not decode."""
        segment = one.found.segment
        if segment is None:
            self._bury(one, None, "undecodable", one.found.defect, now)
            return []
        tries = []
        for stored in segment.items:
            if now < stored.due < now + FARTHEST_DUE:
                one.left.append(stored)
                continue
            try:
                payload = self._codec.decode(stored.payload)
            except InvalidPayload as error:
                self._bury(one, stored, "undecodable", str(error), now)
                continue
            enqueued_at = datetime.fromtimestamp(segment.enqueued_at, UTC)
            item = Item(segment.item_id(stored), payload, stored.attempts + 1, enqueued_at)
            tries.append((one, stored, item))
        return tries

    def _decide(self, one: _Opened, stored: StoredItem, outcome: Outcome, now: float) -> None:
        if outcome.end is End.UNSTARTED:
            one.left.append(stored)
            return
        one.changed = True
        tried = replace(stored, attempts=stored.attempts + 1)
        if outcome.end is End.SUCCEEDED:
            one.handled.append(tried)
        elif outcome.end is End.REJECTED:
            self._bury(one, tried, "rejected", outcome.error, now)
        elif tried.attempts >= self._config.max_attempts:
            self._bury(one, tried, "attempts", outcome.error, now)
        else:
            wait = max(self.backoff(tried.attempts), outcome.after)
            one.left.append(replace(tried, due=now + wait))

    def backoff(self, attempts: int) -> float:
        """Seconds before the try after the ``attempts``-th: doubling between the two limits."""
        doubled = self._config.retry_min_backoff * 2.0 ** min(attempts - 1, 60)
        return min(doubled, self._config.retry_max_backoff)

    def _bury(
        self, one: _Opened, stored: StoredItem | None, reason: str, error: str, now: float
    ) -> None:
        """Turn an item, or a document that is no segment, into a dead letter."""
        one.changed = True
        segment = one.found.segment
        if segment is None or stored is None:
            letter = DeadLetter(
                one.batch.item_id(one.found.first), one.found.raw, reason, error, 0, now, now
            )
        else:
            letter = DeadLetter(
                id=segment.item_id(stored),
                payload=stored.payload,
                reason=reason,
                error=error,
                attempts=stored.attempts,
                enqueued_at=segment.enqueued_at,
                dead_at=now,
            )
        one.dead.append(letter)

    async def _settle(self, task: ChunkTask, opened: Sequence[_Opened]) -> set[int]:
        """Settle what changed; the first positions of segments that somebody else was first at."""
        changed = [one for one in opened if one.changed]
        if not changed:
            return set()
        changes = [Change(one.found, self._remains(one), tuple(one.dead)) for one in changed]
        applied = await self._ports.store.settle(task.batch, changes)
        lost = set()
        for one, was_applied in zip(changed, applied, strict=True):
            if not was_applied:
                self._counters["settle_lost"] += 1
                lost.add(one.found.first)
                one.left.clear()
        return lost

    async def _look_again(self, task: ChunkTask, lost: set[int]) -> list[StoredItem]:
        """What is left of segments that a second delivery of the chunk settled first.

        That delivery may have found this one's next generation taken by this one's own name, and
        trust it to go on. A segment that is gone was moved by its late writer, or is finished.
        """
        found = await self._ports.store.read(task.batch, min(lost), max(lost) + 1)
        again = [one.segment for one in found if one.segment and one.first in lost]
        return [item for segment in again for item in segment.items]

    def _remains(self, one: _Opened) -> Segment | None:
        segment = one.found.segment
        if segment is None:
            return None
        keeps = self._config.on_success == "keep"
        handled = (*segment.handled, *one.handled) if keeps else ()
        left = tuple(sorted(one.left, key=lambda item: item.position))
        if not left and not handled:
            return None
        # What is to be tried later must not expire before.
        latest = max((item.due for item in left), default=0.0)
        expire_at = max(segment.expire_at, latest + self._config.expire_after)
        return replace(segment, items=left, handled=handled, expire_at=expire_at)

    def _report(self, task: ChunkTask, opened: Sequence[_Opened], tried: int) -> None:
        counts = {
            "handled": sum(len(one.handled) for one in opened),
            "dead": sum(len(one.dead) for one in opened),
            "left": sum(len(one.left) for one in opened),
        }
        facts = {
            "event": "chunk",
            "queue": task.batch.lane.queue,
            "batch": task.batch.key,
            "first": task.first,
            "generation": task.generation,
            "tried": tried,
            **counts,
        }
        for name, count in counts.items():
            self._counters[f"items_{name}"] += count
        logger.info("chunk %s", facts, extra={"forkjoin": facts})
