"""The two kinds of task: what they are called, which Cloud Tasks queue takes them, what they say.

A task's id, queue and body depend on nothing but its own fields, so whoever creates it again makes
the same one, and Cloud Tasks' duplicate check does the fan-in.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from forkjoin_gcp.config import QueueConfig
from forkjoin_gcp.errors import ConfigurationError
from forkjoin_gcp.names import CLOCK_BLOCK, MAX_POSITIONS, Batch, Chunk, knuth_hash
from forkjoin_gcp.ports import TaskRequest

MAX_GENERATIONS = 10**15
"""Of a chunk, sweeps counted in: it is part of a task's id, which has a limited length."""

GENERATIONS_APART = 1_000
"""Generations that a chunk may go through after a sweep, for each second to the next, before it
takes a name that the next sweep would give it; and after a root of a clock batch, for each
millisecond to another one."""


@dataclass(frozen=True, slots=True)
class RootTask:
    """Closes a batch, schedules its chunks and handles the first.

    ``full`` marks the second root of a batch that reached ``max_batch_items``: it runs at once,
    beside the one that waits for the end of the period, which will then find nothing to do.

    ``sweep`` marks one that a sweeper scheduled, by the Unix time in seconds at which its sweep's
    window began; 0 is none. Sweepers that find the batch in the same window name the same task, and
    the names of its chunks are none that an earlier root's chunks can have taken.

    ``after_ms`` is how long after its index a clock batch is run, in ms. It is in the name: writers
    with other timeouts, as in a rolling upgrade, have a root of their own. So have its chunks: one
    of the same span, that an earlier root scheduled, may have read it before the last were in.

    ``batch_size`` is the batch's own, or the sweeper's where a sweep cannot know it, for whoever
    runs the root after its lane's state is gone; 0 is unknown. It is not in the name: two
    deployments share their batches' roots.
    """

    batch: Batch
    full: bool = False
    sweep: int = 0
    after_ms: int = 0
    batch_size: int = 0

    @property
    def task_id(self) -> str:
        if self.sweep:
            # A sweep goes by ascending hashes, and Cloud Tasks slows down on ascending ids: hashed
            # once more.
            spread = knuth_hash(self.batch.index) + self.sweep
            return f"{_task_id(self.batch, spread)}_sweep-{self.sweep}"
        after = f"_after-{self.after_ms}" if self.after_ms else ""
        return _task_id(self.batch, self.batch.index) + ("_full" if self.full else "") + after

    @property
    def generation(self) -> int:
        """The generation that its chunks begin with."""
        return (self.sweep or self.after_ms) * GENERATIONS_APART

    def shard(self, shards: int) -> int:
        """Which of the Cloud Tasks queues 1 … ``shards`` takes it."""
        return 1 + _shard(self.batch, shards)

    def body(self) -> bytes:
        return _encode(
            self.batch,
            kind="root",
            full=self.full,
            sweep=self.sweep or None,
            after_ms=self.after_ms or None,
            batch_size=self.batch_size or None,
        )


@dataclass(frozen=True, slots=True)
class ChunkTask:
    """Handles positions ``first … stop - 1`` of a batch, for the ``generation``-th time.

    ``due`` is the Unix time in seconds it was scheduled for, 0 for at once: where a worker's clock
    is behind, what Cloud Tasks held back until then is due all the same. A ``suspect`` is a part of
    a chunk whose runs vanished with their process.
    """

    batch: Batch
    first: int
    stop: int
    generation: int = 0
    due: float = 0.0
    suspect: bool = False

    @property
    def task_id(self) -> str:
        spread = self.batch.index + self.first + self.generation
        end = "_suspect" if self.suspect else ""
        return f"{_task_id(self.batch, spread)}_{self.first}-{self.stop}-{self.generation}{end}"

    @property
    def chunk(self) -> Chunk:
        """What it handles."""
        return Chunk(self.batch, self.first, self.stop, self.suspect)

    def shard(self, shards: int) -> int:
        """Which of the Cloud Tasks queues 1 … ``shards`` takes it: chunks go round the shards."""
        chunk = self.first // (self.stop - self.first)
        return 1 + (_shard(self.batch, shards) + chunk) % shards

    def body(self) -> bytes:
        return _encode(
            self.batch,
            kind="chunk",
            first=self.first,
            stop=self.stop,
            generation=self.generation,
            due=self.due or None,
            suspect=self.suspect or None,
        )

    def next(self, due: float) -> ChunkTask:
        """The same chunk once more, at ``due`` or, where that is 0, at once."""
        return replace(self, generation=self.generation + 1, due=due)


Task = RootTask | ChunkTask


def request_for(task: Task, config: QueueConfig, at: float | None = None) -> TaskRequest:
    """What to ask of Cloud Tasks so that ``task`` runs at ``at`` (Unix time, s), or at once."""
    return TaskRequest(
        queue=config.task_queue(task.shard(config.shards)),
        task_id=task.task_id,
        body=task.body(),
        at=at,
        dispatch_deadline=config.dispatch_deadline,
    )


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    kind: str = Field(pattern="^(root|chunk)$")
    queue: str
    version: str
    batch: str
    full: bool | None = None
    sweep: int | None = Field(None, ge=1, lt=10**11)
    after_ms: int | None = Field(None, ge=1, le=3_600_000)
    batch_size: int | None = Field(None, ge=1, le=CLOCK_BLOCK)
    first: int | None = Field(None, ge=0, lt=MAX_POSITIONS)
    stop: int | None = Field(None, ge=1, le=MAX_POSITIONS)
    generation: int | None = Field(None, ge=0)
    due: float | None = Field(None, ge=0, lt=1e11, allow_inf_nan=False)
    suspect: bool | None = None


def parse_task(body: bytes | str) -> Task:
    """The task that ``body`` describes.

    Raises ConfigurationError, with a reason fit for an answer, when it describes none.
    """
    try:
        fields = _Body.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(map(str, first["loc"])) or "body"
        raise ConfigurationError(f"{where}: {first['msg']}") from None
    batch = Batch.parse(fields.queue, fields.version, fields.batch)
    span = (fields.first, fields.stop, fields.generation)
    if fields.kind == "root":
        if span != (None, None, None) or (fields.due, fields.suspect) != (None, None):
            raise ConfigurationError("a root task takes no first, stop, generation, due or suspect")
        if sum(map(bool, (fields.full, fields.sweep, fields.after_ms))) > 1:
            raise ConfigurationError("a root task has one of full, sweep and after_ms at most")
        if fields.after_ms is not None and not batch.lane.is_clock:
            raise ConfigurationError("only a root task of a clock batch takes after_ms")
        return RootTask(
            batch,
            fields.full or False,
            fields.sweep or 0,
            fields.after_ms or 0,
            fields.batch_size or 0,
        )
    if fields.first is None or fields.stop is None or fields.generation is None:
        raise ConfigurationError("a chunk task needs first, stop and generation")
    if fields.generation >= MAX_GENERATIONS:
        raise ConfigurationError(f"generation: should be less than {MAX_GENERATIONS}")
    if (fields.full, fields.sweep, fields.after_ms, fields.batch_size) != (None,) * 4:
        raise ConfigurationError("a chunk task takes no full, sweep, after_ms or batch_size")
    if fields.first >= fields.stop:
        raise ConfigurationError("a chunk task needs first < stop")
    span = fields.first, fields.stop, fields.generation
    return ChunkTask(batch, *span, fields.due or 0.0, fields.suspect or False)


def _shard(batch: Batch, shards: int) -> int:
    """0 … ``shards - 1``, by the hash's upper bits: the lower ones of round indexes, as the clock
    lane has, are alike."""
    return knuth_hash(batch.index) * shards >> 32


def _task_id(batch: Batch, spread: int) -> str:
    return f"{knuth_hash(spread):08x}_{batch.lane.queue}_{batch.lane.version}_{batch.key}"


def _encode(batch: Batch, **fields: Any) -> bytes:
    named = _Body(queue=batch.lane.queue, version=batch.lane.version, batch=batch.key, **fields)
    return named.model_dump_json(exclude_none=True).encode()
