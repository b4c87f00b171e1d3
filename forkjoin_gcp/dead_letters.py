"""Dead letters: found, purged, and requeued, each in one atomic step.

A requeued item is written as any other: into a batch that a hold was taken on, with its root task
asked for before. It keeps its id, and begins with no attempts. At every moment it is a dead letter
or in a batch, never both and never neither.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, TypedDict

from forkjoin_gcp.config import QueueConfig
from forkjoin_gcp.errors import ConfigurationError, ServiceError
from forkjoin_gcp.items import DeadLetter, Segment, StoredItem
from forkjoin_gcp.names import MAX_POSITIONS, Batch, Lane
from forkjoin_gcp.ports import Buried, Counters, Ports, Release
from forkjoin_gcp.writing.holds import Holds
from forkjoin_gcp.writing.moves import Mover

logger = logging.getLogger(__name__)

REASONS = ("attempts", "crashed", "rejected", "undecodable")

PAGE = 100
"""Dead letters read, and requeued under one hold, at a time: well within writer_timeout."""


class Choice(TypedDict, total=False):
    """Which dead letters are meant: those that meet all that is given.

    ``ids`` are items' ids. ``reason`` is one of REASONS. ``older_than`` and ``newer_than`` are
    seconds since the item died.
    """

    ids: Collection[str] | None
    reason: str | None
    older_than: float | None
    newer_than: float | None


@dataclass(slots=True)
class DeadLetterReport:
    """What became of the dead letters that were chosen.

    ``found`` of them were there. ``done`` were requeued or purged: none in a dry run. ``gone`` were
    settled by somebody else in the meantime. ``failed`` has the others' ids, and why.
    """

    dry_run: bool
    found: int = 0
    done: int = 0
    gone: int = 0
    failed: dict[str, str] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """All of it in types that JSON has."""
        counts = {"found": self.found, "done": self.done, "gone": self.gone}
        return {"dry_run": self.dry_run, **counts, "failed": self.failed}


Progress = Callable[[DeadLetterReport], None]
"""Called after each page with what was done so far."""


class DeadLetters:
    """The dead letters of one queue, of all its versions. Belongs to one event loop."""

    def __init__(self, config: QueueConfig, ports: Ports, counters: Counters) -> None:
        self._config = config
        self._ports = ports
        self._counters = counters
        self._holds = Holds(config, ports, counters)
        home = Lane(config.name, config.version)
        self._mover = Mover(ports.store, self._holds, counters, home)

    async def find(self, choice: Choice, limit: int | None = None) -> list[DeadLetter]:
        """The chosen ones, ``limit`` of them at most, in id order.

        Raises ConfigurationError and ServiceError.
        """
        pages = [page async for page in self._pages(choice, limit, everywhere=True)]
        letters = sorted((one.letter for _, page in pages for one in page), key=lambda one: one.id)
        return letters[:limit]

    async def requeue(
        self,
        choice: Choice,
        limit: int | None = None,
        *,
        dry_run: bool = False,
        progress: Progress | None = None,
    ) -> DeadLetterReport:
        """Bring the chosen ones' items, ``limit`` at most, to a handler again.

        Raises ConfigurationError, TaskQueueNotFound before anything was done to an item, and
        ServiceError where no dead letters could be had or no hold.
        """
        return await self._each(choice, limit, self._requeue_page, dry_run, progress)

    async def purge(
        self,
        choice: Choice,
        limit: int | None = None,
        *,
        dry_run: bool = False,
        progress: Progress | None = None,
    ) -> DeadLetterReport:
        """Delete the chosen ones, ``limit`` at most, for good.

        Raises ConfigurationError and ServiceError.
        """
        return await self._each(choice, limit, self._purge_page, dry_run, progress)

    async def close(self) -> None:
        """End what runs in the background."""
        await self._holds.close()

    async def _each(
        self,
        choice: Choice,
        limit: int | None,
        act: Callable[[Lane, Sequence[Buried], DeadLetterReport], Any],
        dry_run: bool,
        progress: Progress | None,
    ) -> DeadLetterReport:
        report = DeadLetterReport(dry_run)
        async for grave, page in self._pages(choice, limit):
            report.found += len(page)
            if not dry_run:
                await act(grave, page, report)
            if progress is not None:
                progress(report)
        return report

    async def _pages(
        self, choice: Choice, limit: int | None, *, everywhere: bool = False
    ) -> AsyncIterator[tuple[Lane, list[Buried]]]:
        """The chosen ones, grave by grave; ``everywhere`` up to the limit from each grave."""
        _check(choice, limit)
        left = limit if limit is not None else MAX_POSITIONS**2
        for grave in await self._ports.store.graves(self._config.name):
            here = left
            async for page in self._found(grave, choice.get("ids")):
                chosen = [one for one in page if self._is_meant(one.letter, choice)][:here]
                here -= len(chosen)
                if chosen:
                    yield grave, chosen
                if not here:
                    break
            left = left if everywhere else here
            if not left:
                return

    async def _found(self, grave: Lane, ids: Collection[str] | None) -> AsyncIterator[list[Buried]]:
        store = self._ports.store
        if ids is not None:
            wanted = sorted(set(ids))
            for n in range(0, len(wanted), PAGE):
                some = wanted[n : n + PAGE]
                pages = await asyncio.gather(*(store.find_dead(grave, _before(i), 1) for i in some))
                yield [one for page in pages for one in page if one.letter.id in some]
            return
        after = ""
        while page := await store.find_dead(grave, after, PAGE):
            yield page
            after = page[-1].letter.id

    def _is_meant(self, letter: DeadLetter, choice: Choice) -> bool:
        age = self._ports.clock.now() - letter.dead_at
        reason, older = choice.get("reason"), choice.get("older_than")
        newer = choice.get("newer_than")
        return (
            (reason is None or letter.reason == reason)
            and (older is None or age > older)
            and (newer is None or age < newer)
        )

    async def _purge_page(
        self, grave: Lane, page: Sequence[Buried], report: DeadLetterReport
    ) -> None:
        purged = await self._ports.store.purge(grave, page)
        report.done += sum(purged)
        report.gone += len(page) - sum(purged)
        self._counters["dead_letters_purged"] += sum(purged)

    async def _requeue_page(
        self, grave: Lane, page: Sequence[Buried], report: DeadLetterReport
    ) -> None:
        """Requeue some under one hold. The root task comes first: without it nothing is done."""
        sources = [(one, source) for one in page if (source := self._source(one.letter, report))]
        if not sources:
            return
        hold = await self._holds.take(grave, len(sources))
        pieces = hold.rebuild([source for _, source in sources])
        scheduled = False
        moved: list[Segment] = []
        try:
            scheduled = await self._holds.schedule(hold)
            outcome = await asyncio.gather(
                *(
                    self._ports.store.requeue(grave, one, hold.batch, piece)
                    for (one, _), (piece,) in zip(sources, pieces, strict=True)
                ),
                return_exceptions=True,
            )
            hold.wrote()
            for (one, _), (piece,), result in zip(sources, pieces, outcome, strict=True):
                if isinstance(result, ServiceError):
                    report.failed[one.letter.id] = str(result)
                elif isinstance(result, BaseException):
                    raise result
                elif result:
                    moved.append(piece)
                else:
                    report.gone += 1
            report.done += len(moved)
            self._counters["dead_letters_requeued"] += len(moved)
        finally:
            verdict = await self._holds.release(hold, scheduled=scheduled)
        if verdict is Release.LATE and moved:
            await self._move(hold.batch, moved)

    async def _move(self, batch: Batch, moved: Sequence[Segment]) -> None:
        try:
            await self._mover.move(batch, moved)
        except ServiceError as error:
            # They are in the store, where the sweeper looks.
            logger.warning("requeued items of %s wait for a sweep: %s", batch.key, error)

    def _source(self, letter: DeadLetter, report: DeadLetterReport) -> Segment | None:
        """The item as a segment of the batch that it was first written in."""
        origin, _, position = letter.id.rpartition("-")
        try:
            batch = Batch.parse(self._config.name, self._config.version, origin)
            place = int(position)
        except ValueError:  # ConfigurationError among them
            report.failed[letter.id] = "no item's id: only purging it is possible"
            return None
        now = self._ports.clock.now()
        return Segment(
            first=place,
            items=(StoredItem(place, letter.payload),),
            nonce=uuid.uuid4().hex,
            origin=batch.key,
            shift=0,
            enqueued_at=letter.enqueued_at,
            expire_at=now + self._config.expire_after,
        )


def _check(choice: Choice, limit: int | None) -> None:
    unknown = choice.keys() - Choice.__annotations__.keys()
    if unknown:
        raise ConfigurationError(f"unknown: {', '.join(sorted(unknown))}")
    reason = choice.get("reason")
    if reason is not None and reason not in REASONS:
        raise ConfigurationError(f"reason={reason!r}: must be one of {', '.join(REASONS)}")
    if limit is not None and limit < 1:
        raise ConfigurationError(f"limit={limit!r}: must be a whole number, 1 or more")
    ages = {"older_than": choice.get("older_than"), "newer_than": choice.get("newer_than")}
    for name, age in ages.items():
        if age is not None and not age >= 0:
            raise ConfigurationError(f"{name}={age!r}: must be seconds, 0 or more")
    ids = choice.get("ids")
    if isinstance(ids, str):
        raise ConfigurationError(f"ids={ids!r}: must be a list of items' ids, not one text")
    for one in ids or ():
        if not one or "/" in one:
            raise ConfigurationError(f"ids: {one!r} is no item's id")


def _before(item_id: str) -> str:
    """A text that comes after every id that is less, and before this one."""
    last = chr(ord(item_id[-1]) - 1)
    return f"{item_id[:-1]}!" if last == "/" else f"{item_id[:-1]}{last}~"
