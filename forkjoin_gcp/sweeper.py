"""The sweeper: finds batches that nobody is working on, and schedules their root tasks again.

It goes through the keys of all stored segments, without payloads and in parallel ranges. A segment
that nobody has written to for ``sweep_after``, though one of its items may be tried, should have
been handled by then: its batch's root task, or a chunk's task, was lost.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import re
from collections.abc import AsyncGenerator, Collection, Iterable
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any, TypedDict, cast

from forkjoin_gcp.config import QueueConfig
from forkjoin_gcp.errors import ConfigurationError, ServiceError
from forkjoin_gcp.names import Batch
from forkjoin_gcp.ports import END, Counters, KeyRange, Ports, Scanned
from forkjoin_gcp.tasks import RootTask, request_for

logger = logging.getLogger(__name__)

PAGE = 300
"""Segments asked for at once: what Firestore sends in one piece, and no more than that in vain."""

CREATES_AT_ONCE = 32
"""Root tasks being created at the same time."""

MAX_PARTITIONS = 64
MAX_DOCUMENTS = 100_000
"""Segments read in one sweep, unless it is told another number: 3 to 6 cents of Firestore."""


@dataclass(frozen=True, slots=True)
class StaleBatch:
    """A batch that nobody has worked on for ``sweep_after``, and what was done about it.

    ``untouched_since`` (Unix time, s) is when its oldest segment was last written, or became due.
    ``items`` counts what the sweep saw of it. ``scheduled`` is True where a root task was created,
    False where another sweep had created it just before, None in a dry run or after ``error``.
    """

    batch: Batch
    items: int
    untouched_since: float
    scheduled: bool | None = None
    error: str = ""

    def as_json(self) -> dict[str, Any]:
        """All of it in types that JSON has."""
        return {
            "batch": self.batch.key,
            "version": self.batch.lane.version,
            "items": self.items,
            "untouched_since": self.untouched_since,
            "scheduled": self.scheduled,
            "error": self.error,
        }


class SweepOptions(TypedDict, total=False):
    """How a sweep goes about it; ``Sweeper.run`` says what each one means."""

    dry_run: bool
    partitions: int
    max_documents: int
    seconds: float | None
    resume: str
    begin: int
    known: Collection[str]


@dataclass(slots=True)
class SweepReport:
    """What a sweep of one queue found.

    ``documents`` were read, ``items`` of them are still to be handled. ``unknown`` names queues and
    versions that have segments in the same store and are not this sweep's to touch. ``errors`` says
    what could not be read. ``resume`` is where to go on: "" where all was seen.
    """

    queue: str
    dry_run: bool
    documents: int = 0
    items: int = 0
    stale: list[StaleBatch] = field(default_factory=list)
    unknown: list[tuple[str, str]] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    resume: str = ""

    @property
    def failed(self) -> bool:
        """Whether something could not be read or scheduled."""
        return bool(self.errors) or any(one.error for one in self.stale)

    @property
    def scheduled(self) -> int:
        """How many root tasks were created."""
        return sum(one.scheduled is True for one in self.stale)

    def as_json(self) -> dict[str, Any]:
        """All of it in types that JSON has."""
        return {
            "queue": self.queue,
            "dry_run": self.dry_run,
            "documents": self.documents,
            "items": self.items,
            "scheduled": self.scheduled,
            "stale": [one.as_json() for one in self.stale],
            "unknown": [f"{queue}.{version}" for queue, version in self.unknown],
            "errors": self.errors,
            "resume": self.resume,
        }


@dataclass(slots=True)
class _Sweep:
    """A sweep in progress: what it found, and what it may still read."""

    report: SweepReport
    window: int
    max_documents: int
    end_at: float
    asked: int = 0

    def ask(self, page: int) -> bool:
        """Whether another page may be read. It is then answered, with how many it had."""
        over = asyncio.get_running_loop().time() >= self.end_at
        if over or self.report.documents + self.asked + page > self.max_documents:
            return False
        self.asked += page
        return True

    def answer(self, page: int, found: Iterable[Scanned] = ()) -> None:
        self.asked -= page
        for one in found:
            self.report.documents += 1
            self.report.items += one.count


class _Oldest:
    """Of one batch after another, the segment that was left alone for longest."""

    def __init__(self) -> None:
        self._batch: Batch | None = None
        self._since = float("inf")
        self._items = 0

    def add(self, one: Scanned, before: float) -> list[StaleBatch]:
        """Note a segment; the batch that came before it, if it was stale."""
        ended = [] if one.batch == self._batch else self.end(before)
        self._batch = one.batch
        if one.count:
            self._since = min(self._since, max(one.updated_at, one.due))
            self._items += one.count
        return ended

    def end(self, before: float) -> list[StaleBatch]:
        """The last batch, if all of a segment's items were left alone since ``before``."""
        stale = []
        if self._batch is not None and self._since < before:
            stale = [StaleBatch(self._batch, self._items, self._since)]
        self._batch, self._since, self._items = None, float("inf"), 0
        return stale


class Sweeper:
    """Sweeps one queue, with all of its versions. Belongs to one event loop.

    Safe to run at any time, and several at once: a batch that is being worked on after all is read
    once more, and what is handled is handled once.
    """

    def __init__(self, config: QueueConfig, ports: Ports, counters: Counters) -> None:
        self._config = config
        self._ports = ports
        self._counters = counters
        self._creates = asyncio.Semaphore(CREATES_AT_ONCE)

    async def run(
        self,
        *,
        dry_run: bool = False,
        partitions: int = 8,
        max_documents: int = MAX_DOCUMENTS,
        seconds: float | None = None,
        resume: str = "",
        begin: int = 0,
        known: Collection[str] = (),
    ) -> SweepReport:
        """Schedule the root task of each stale batch, unless ``dry_run``; return what was found.

        The keys are read in ``partitions`` ranges at once. After ``max_documents`` segments, or
        ``seconds``, the sweep ends, and its report says where to go on: a later one that is given
        this as ``resume`` sees the rest. The first range has the hash ``begin`` in it, and the
        sweep goes round from there: sweeps that begin elsewhere each time see everything in time
        without that. Queues in ``known`` are somebody else's to sweep, and not called unknown.

        Raises ConfigurationError, and ServiceError where the store does not even say which versions
        there are.
        """
        _check(partitions, max_documents, seconds)
        time = asyncio.get_running_loop().time
        sweep = _Sweep(
            SweepReport(self._config.name, dry_run),
            self._window(),
            max_documents,
            float("inf") if seconds is None else time() + seconds,
        )
        if resume:
            ranges = parse_resume(self._config.name, resume)
        else:
            versions = await self._versions(sweep.report, known)
            ranges = [one for each in versions for one in self._cut(each, partitions, begin)]
        at_once = max(1, min(partitions, len(ranges), max_documents))
        page = max(1, min(PAGE, max_documents // at_once))
        places = asyncio.Semaphore(at_once)

        async def scan(wanted: KeyRange) -> KeyRange | None:
            async with places:
                return await self._scan(sweep, wanted, page)

        left = await asyncio.gather(*map(scan, ranges))
        sweep.report.resume = format_resume(one for one in left if one is not None)
        self._counters["sweeps"] += 1
        return sweep.report

    def _window(self) -> int:
        """When the present window of ``sweep_after`` began, in whole seconds."""
        after = self._config.sweep_after
        return max(1, int(self._ports.clock.now() // after * after))

    async def _versions(self, report: SweepReport, known: Collection[str]) -> list[str]:
        found = await self._ports.store.versions()
        mine = self._config.name
        report.unknown = [one for one in found if one[0] != mine and one[0] not in known]
        return [version for queue, version in found if queue == mine]

    def _cut(self, version: str, partitions: int, begin: int) -> list[KeyRange]:
        """A version's key space in equal ranges, the one that ``begin`` is in first."""
        bounds = sorted({(begin + n * 2**32 // partitions) % 2**32 for n in range(partitions)})
        texts = ["0", *(f"{bound:08x}" for bound in bounds if bound), END]
        ranges = [
            KeyRange(self._config.name, version, start, 0, stop)
            for start, stop in itertools.pairwise(texts)
        ]
        first = next(n for n, one in enumerate(ranges) if f"{begin:08x}" < one.stop)
        return ranges[first:] + ranges[:first]

    async def _scan(self, sweep: _Sweep, wanted: KeyRange, page: int) -> KeyRange | None:
        """Sweep one range; what is left of it where the sweep ended before."""
        before = self._ports.clock.now() - self._config.sweep_after
        oldest = _Oldest()
        left: KeyRange | None = wanted
        scan = cast(AsyncGenerator[list[Scanned]], self._ports.store.scan(wanted, page))
        try:
            async with aclosing(scan) as pages:
                while left and sweep.ask(page):
                    found: list[Scanned] = await anext(pages, [])
                    sweep.answer(page, found)
                    stale = [batch for one in found for batch in oldest.add(one, before)]
                    await self._schedule(sweep, stale)
                    left = self._rest(left, found)
        except ServiceError as error:
            sweep.answer(page)
            sweep.report.errors.append(str(error))
        await self._schedule(sweep, oldest.end(before))
        return left

    def _rest(self, wanted: KeyRange, found: list[Scanned]) -> KeyRange | None:
        if not found:
            return None
        return replace(wanted, start=found[-1].batch.key, first=found[-1].first + 1)

    async def _schedule(self, sweep: _Sweep, stale: Iterable[StaleBatch]) -> None:
        sweep.report.stale += await asyncio.gather(*(self._schedule_one(sweep, s) for s in stale))

    async def _schedule_one(self, sweep: _Sweep, stale: StaleBatch) -> StaleBatch:
        if sweep.report.dry_run:
            return stale
        task = RootTask(stale.batch, sweep=sweep.window, batch_size=self._config.batch_size)
        try:
            async with self._creates:
                created = await self._ports.scheduler.create(request_for(task, self._config))
        except ServiceError as error:
            return replace(stale, error=str(error))
        facts = {
            "event": "swept",
            "queue": stale.batch.lane.queue,
            "version": stale.batch.lane.version,
            "batch": stale.batch.key,
            "untouched_since": stale.untouched_since,
        }
        self._counters["batches_swept"] += created
        logger.info("swept %s", facts, extra={"forkjoin": facts})
        return replace(stale, scheduled=created)


def _check(partitions: int, max_documents: int, seconds: float | None) -> None:
    if not 1 <= partitions <= MAX_PARTITIONS:
        raise ConfigurationError(
            f"partitions={partitions!r}: must be a whole number, from 1 to {MAX_PARTITIONS}"
        )
    if max_documents < 1:
        raise ConfigurationError(
            f"max_documents={max_documents!r}: must be a whole number (segments), 1 or more"
        )
    if seconds is not None and not seconds > 0:
        raise ConfigurationError(f"seconds={seconds!r}: must be seconds, more than 0")


_RESUME = re.compile(r"([a-z0-9-]+)\.([a-z0-9-]+):([0-9a-f][0-9a-f-]*):([0-9]{1,9}):([0-9a-f-]+|g)")


def format_resume(ranges: Iterable[KeyRange]) -> str:
    """The text that ``parse_resume`` reads, of characters that no shell minds; "" for none."""
    return ",".join(
        f"{one.queue}.{one.version}:{one.start}:{one.first}:{one.stop}" for one in ranges
    )


def parse_resume(queue: str, text: str) -> list[KeyRange]:
    """The ranges of ``queue`` in what a report's ``resume`` said. Raises ConfigurationError."""
    found = [_RESUME.fullmatch(part.strip()) for part in text.split(",")]
    ranges = [KeyRange(m[1], m[2], m[3], int(m[4]), m[5]) for m in found if m is not None]
    if len(ranges) < len(found) or any(one.start > one.stop for one in ranges):
        raise ConfigurationError(
            f"resume={text[:200]!r}: must be what an earlier sweep said to resume at"
        )
    return [one for one in ranges if one.queue == queue]
