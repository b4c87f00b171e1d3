"""WorkStore in Firestore: a document a segment, written and removed under preconditions."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable, Sequence
from functools import partial
from typing import Any, cast

from google.cloud.firestore_v1 import types

from forkjoin_gcp.config import Services
from forkjoin_gcp.errors import SegmentConflict, StoreRefused, StoreUnavailable
from forkjoin_gcp.gcp.firestore_client import (
    ALREADY_EXISTS,
    DELETION_BYTES,
    Fill,
    FirestoreCalls,
    UnmetError,
)
from forkjoin_gcp.gcp.firestore_documents import (
    DEAD_LETTERS,
    SEGMENTS,
    Revision,
    count_of,
    fill_dead_letter,
    fill_segment,
    nonce_of,
    position_of,
    read_dead_letter,
    read_segment,
    revision_of,
    segment_bytes,
)
from forkjoin_gcp.gcp.firestore_scan import FirestoreScan
from forkjoin_gcp.items import DeadLetter, Segment
from forkjoin_gcp.names import MAX_POSITIONS, Batch, Lane, segment_id
from forkjoin_gcp.ports import Buried, Change, Counters, Found, KeyRange, Listed, Scanned

logger = logging.getLogger(__name__)

COMMITS_AT_ONCE = 32

_Write: Any = types.Write.pb()
_RunQueryRequest: Any = types.RunQueryRequest.pb()
_ASCENDING = int(types.StructuredQuery.Direction.ASCENDING)


class FirestoreStore:
    """Keeps segments in the Firestore database that ``services`` names, or in an emulator.

    Writes are tried for ``write_seconds``, reads for ``read_seconds``; an emulator that never
    answered yet for 2 s. Calls and documents are counted as ``firestore.batch_write``, ``.commit``,
    ``.run_query``, ``.batch_get``, ``.documents_written``, ``.documents_deleted`` and
    ``.documents_read``. Belongs to the event loop it is first used on. Raises ConfigurationError
    where no project is set, or no credentials are found.
    """

    def __init__(
        self,
        services: Services,
        counters: Counters,
        *,
        write_seconds: float = 10.0,
        read_seconds: float = 30.0,
    ) -> None:
        self._calls = FirestoreCalls(
            services, counters, write_seconds=write_seconds, read_seconds=read_seconds
        )
        self._scan = FirestoreScan(self._calls)
        self._commits = asyncio.Semaphore(COMMITS_AT_ONCE)

    async def create(self, batch: Batch, segments: Sequence[Segment]) -> list[Exception | None]:
        fills = [partial(self._create, batch, segment) for segment in segments]
        if len(fills) == 1:
            answers = [await self._calls.create(_made(fills[0]))]
        else:
            sizes = map(segment_bytes, segments)
            answers = await self._calls.batch_write(zip(fills, sizes, strict=True))
        there = [
            segment
            for segment, answer in zip(segments, answers, strict=True)
            if isinstance(answer, UnmetError)
        ]
        if there:
            nonces = await self._nonces(batch, there)
            for n, segment in enumerate(segments):
                error = answers[n]
                if isinstance(error, UnmetError):
                    # One that is gone again may have been ours, and handled; or not. Handed over
                    # twice is better than lost.
                    ours = nonces.get(segment.first) == segment.nonce
                    answers[n] = None if ours else self._unmet(error, batch, segment)
        failures = [answer for answer in answers if isinstance(answer, StoreUnavailable)]
        if failures and len(failures) == len(answers):
            raise failures[0]
        return answers

    async def discard(self, batch: Batch, segments: Sequence[Segment]) -> None:
        """Only what carries the segment's own nonce is deleted."""
        documents = await self._calls.get([self._name(batch, s.first) for s in segments], "nonce")
        deletions = []
        for segment in segments:
            document = documents.get(self._name(batch, segment.first))
            if document is not None and nonce_of(document) == segment.nonce:
                fill = partial(_delete, document.name, revision_of(document))
                deletions.append((fill, DELETION_BYTES))
        for answer in await self._calls.batch_write(deletions):
            # An unmet precondition: it has gone, or is somebody's business by now.
            if answer is not None and not isinstance(answer, UnmetError):
                raise answer

    async def move(
        self, batch: Batch, found: Found, target: Batch, pieces: Sequence[Segment]
    ) -> bool:
        name = self._name(batch, found.first)
        deletion = partial(_delete, name, cast(Revision, found.revision))
        return await self._exchange(batch, found, deletion, target, pieces)

    async def split(self, batch: Batch, found: Found, pieces: Sequence[Segment]) -> bool:
        rewriting = partial(self._settle, batch, Change(found, pieces[0]))
        return await self._exchange(batch, found, rewriting, batch, pieces[1:])

    async def _exchange(
        self, batch: Batch, found: Found, change: Fill, target: Batch, pieces: Sequence[Segment]
    ) -> bool:
        """Change what was found and create ``pieces`` in one commit, or do neither: False."""
        source = self._name(batch, found.first)
        writes = [_made(change)]
        writes += [_made(partial(self._create, target, piece)) for piece in pieces]
        try:
            return await self._calls.commit(writes)
        except UnmetError as error:
            # Perhaps a repeat of a commit whose answer was lost: then the pieces stand. They came
            # with one commit, so one of them is proof of all; unless what was found stands as well:
            # then they are others of the same group.
            names = {self._name(target, piece.first): piece for piece in pieces}
            there = await self._calls.get([source, *names], "nonce")
            if source not in there or revision_of(there[source]) != found.revision:
                return any(
                    nonce_of(there[name]) == names[name].nonce for name in names if name in there
                )
            for name, piece in names.items():
                if name in there:
                    raise self._conflict(target, piece) from error
            raise StoreRefused(f"Firestore refused to move {source}: {error}") from error

    async def listing(self, batch: Batch) -> list[Listed]:
        query = self._query(batch.path, SEGMENTS)
        query.structured_query.select.fields.add(field_path="count")
        documents = _with_position(await self._calls.query(query))
        return [Listed(position_of(each.name), count_of(each)) for each in documents]

    async def read(self, batch: Batch, first: int, stop: int) -> list[Found]:
        query = self._query(batch.path, SEGMENTS)
        bounds = query.structured_query
        bounds.start_at.values.add(reference_value=self._name(batch, first))
        bounds.start_at.before = True
        # A colon comes after every digit, so after every segment.
        end = self._name(batch, stop) if stop < MAX_POSITIONS else self._name(batch, ":")
        bounds.end_at.values.add(reference_value=end)
        bounds.end_at.before = True
        documents = _with_position(await self._calls.query(query))
        found = [read_segment(each, batch) for each in documents]
        return [one for one in found if one.segment is None or one.segment.items]

    async def settle(self, batch: Batch, changes: Sequence[Change]) -> list[bool]:
        answers: list[Exception | None] = [None] * len(changes)
        fills = [partial(self._settle, batch, change) for change in changes]
        alone = [n for n, change in enumerate(changes) if not change.dead]
        buried = [n for n, change in enumerate(changes) if change.dead]
        together, commits = await asyncio.gather(
            self._calls.batch_write([(fills[n], _size(changes[n])) for n in alone]),
            asyncio.gather(*(self._bury(batch, fills[n], changes[n].dead) for n in buried)),
        )
        for n, answer in zip([*alone, *buried], [*together, *commits], strict=True):
            answers[n] = answer
        unmet = [n for n, answer in enumerate(answers) if isinstance(answer, UnmetError)]
        stands = await self._stands(batch, [(changes[n], fills[n]) for n in unmet])
        for answer in answers:
            if answer is not None and not isinstance(answer, UnmetError):
                raise answer
        done = dict(zip(unmet, stands, strict=True))
        return [done.get(n, True) for n in range(len(changes))]

    async def _bury(self, batch: Batch, fill: Fill, dead: Sequence[DeadLetter]) -> Exception | None:
        writes = [_made(fill)]
        for letter in dead:
            # A plain set: one that is there, after a lost answer, is the same.
            grave = _Write()
            grave.update.name = self._grave(batch.lane, letter.id)
            fill_dead_letter(grave.update, letter, len(dead))
            writes.append(grave)
        try:
            async with self._commits:
                await self._calls.commit(writes)
        except (UnmetError, StoreUnavailable, StoreRefused) as error:
            return error
        return None

    async def _stands(self, batch: Batch, lost: Sequence[tuple[Change, Fill]]) -> list[bool]:
        """Whether changes whose precondition was not met were made before, by a lost answer's try.

        A rewritten segment is compared with what was to be written, and a deletion with dead
        letters is known by these. Who deleted a segment without a trace cannot be told: False.
        """
        if not lost:
            return []
        names = [self._name(batch, change.found.first) for change, _ in lost]
        graves = {
            self._grave(batch.lane, letter.id)
            for change, _ in lost
            if change.left is None
            for letter in change.dead
        }
        there = await self._calls.get(names)
        buried = await self._calls.get(sorted(graves), "dead_at") if graves else {}
        stands = []
        for name, (change, fill) in zip(names, lost, strict=True):
            document = there.get(name)
            if change.left is None:
                letters = [self._grave(batch.lane, letter.id) for letter in change.dead]
                gone = document is None and bool(letters)
                stands.append(gone and all(letter in buried for letter in letters))
            elif document is None:
                stands.append(False)
            else:
                document.ClearField("create_time")
                document.ClearField("update_time")
                stands.append(document == _made(fill).update)
        return stands

    async def dead_letters(self, lane: Lane, limit: int) -> list[DeadLetter]:
        """Those of all lanes of the queue and version."""
        return [one.letter for one in await self.find_dead(lane, "", limit)]

    async def versions(self) -> list[tuple[str, str]]:
        return await self._scan.versions()

    def scan(self, wanted: KeyRange, page: int) -> AsyncIterator[list[Scanned]]:
        return self._scan.scan(wanted, page)

    async def graves(self, queue: str) -> list[Lane]:
        return await self._scan.graves(queue)

    async def find_dead(self, grave: Lane, after: str, limit: int) -> list[Buried]:
        query = self._query(grave.root_path, DEAD_LETTERS)
        query.structured_query.limit.value = limit
        if after:
            cursor = query.structured_query.start_at
            cursor.values.add(reference_value=self._grave(grave, after))
            cursor.before = False
        documents = await self._calls.query(query)
        return [Buried(read_dead_letter(each), revision_of(each)) for each in documents]

    async def requeue(self, grave: Lane, buried: Buried, target: Batch, segment: Segment) -> bool:
        revision = cast(Revision, buried.revision)
        letter = self._grave(grave, buried.letter.id)
        writes = [partial(_delete, letter, revision), partial(self._create, target, segment)]
        try:
            async with self._commits:
                return await self._calls.commit([_made(fill) for fill in writes])
        except UnmetError as error:
            place = self._name(target, segment.first)
            there = await self._calls.get([letter, place], "nonce")
            if place in there and nonce_of(there[place]) == segment.nonce:
                return True
            if letter not in there or revision_of(there[letter]) != revision:
                return False
            if place in there:
                raise self._conflict(target, segment) from error
            raise StoreRefused(f"Firestore refused to requeue {letter}: {error}") from error

    async def purge(self, grave: Lane, buried: Sequence[Buried]) -> list[bool]:
        """One whose deletion was repeated, as its answer was lost, counts as gone before."""
        names = [(self._grave(grave, one.letter.id), one.revision) for one in buried]
        answers = await self._calls.batch_write(
            [(partial(_delete, name, cast(Revision, at)), DELETION_BYTES) for name, at in names]
        )
        for answer in answers:
            if answer is not None and not isinstance(answer, UnmetError):
                raise answer
        return [answer is None for answer in answers]

    async def close(self) -> None:
        await self._calls.close()

    def _name(self, batch: Batch, first: int | str) -> str:
        place = first if isinstance(first, str) else segment_id(first)
        return self._calls.name(f"{batch.path}/{SEGMENTS}/{place}")

    def _grave(self, lane: Lane, item_id: str) -> str:
        return self._calls.name(f"{lane.root_path}/{DEAD_LETTERS}/{item_id}")

    def _create(self, batch: Batch, segment: Segment, write: Any) -> None:
        write.update.name = self._name(batch, segment.first)
        write.current_document.exists = False
        fill_segment(write.update, segment, batch)

    def _settle(self, batch: Batch, change: Change, write: Any) -> None:
        name = self._name(batch, change.found.first)
        revision = cast(Revision, change.found.revision)
        if change.left is None:
            _delete(name, revision, write)
            return
        write.update.name = name
        _expect(write, revision)
        fill_segment(write.update, change.left, batch)

    def _query(self, parent: str, collection: str) -> Any:
        request = _RunQueryRequest(parent=self._calls.name(parent))
        query = request.structured_query
        query.from_.add(collection_id=collection)
        # Ascending keys: Firestore refuses to scan keys the other way.
        query.order_by.add(direction=_ASCENDING).field.field_path = "__name__"
        return request

    async def _nonces(self, batch: Batch, segments: Iterable[Segment]) -> dict[int, str | None]:
        names = [self._name(batch, segment.first) for segment in segments]
        there = await self._calls.get(names, "nonce")
        return {position_of(name): nonce_of(document) for name, document in there.items()}

    def _unmet(self, error: UnmetError, batch: Batch, segment: Segment) -> Exception:
        if error.code == ALREADY_EXISTS:
            return self._conflict(batch, segment)
        return StoreRefused(f"Firestore refused {self._name(batch, segment.first)}: {error}")

    def _conflict(self, batch: Batch, segment: Segment) -> SegmentConflict:
        return SegmentConflict(
            f"another writer's segment stands at {self._name(batch, segment.first)}"
        )


def _size(change: Change) -> int:
    return segment_bytes(change.left) if change.left else DELETION_BYTES


def _made(fill: Fill) -> Any:
    write = _Write()
    fill(write)
    return write


def _delete(name: str, revision: Revision, write: Any) -> None:
    write.delete = name
    _expect(write, revision)


def _expect(write: Any, revision: Revision) -> None:
    write.current_document.update_time.seconds = revision[0]
    write.current_document.update_time.nanos = revision[1]


def _with_position(documents: Iterable[Any]) -> list[Any]:
    """The documents whose id is a position: nobody here made the others."""
    kept = []
    for document in documents:
        try:
            position_of(document.name)
        except ValueError as error:
            logger.warning("not a segment, and left alone: %s", error)
        else:
            kept.append(document)
    return kept
