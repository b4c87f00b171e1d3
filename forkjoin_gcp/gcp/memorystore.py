"""The work index in Memorystore for Valkey: atomic scripts over a hash a lane and one a chunk."""

from __future__ import annotations

import asyncio
from importlib import resources
from typing import Any

from forkjoin_gcp.config import LOCAL_HINT, VARIABLES, QueueConfig
from forkjoin_gcp.errors import IndexUnavailable
from forkjoin_gcp.gcp.instance import FAILURES, Client
from forkjoin_gcp.gcp.scripts import Script
from forkjoin_gcp.names import Chunk, Lane
from forkjoin_gcp.ports import Busy, Counters, Extent, Lease, Release, Reservation

LANE_TTL_MS = 24 * 3600 * 1000
"""A lane's state outlives any batch of it by far; an idle lane costs nothing after a day."""

WAKE_UP_TTL_MS = 10 * 60 * 1000
"""A wake-up that no reader came for is dropped after this: twice the longest writer_timeout."""

PING_TTL_MS = 1_000
"""What a ping writes is of no use to anybody."""


class MemorystoreIndex:
    """WorkIndex on a Valkey client that never repeats a command by itself.

    Each method is one round trip, counted as ``memorystore.round_trip``, and each raises
    IndexUnavailable after ``acquire_timeout``, which the client must be set up with.
    """

    def __init__(self, client: Client, config: QueueConfig, counters: Counters) -> None:
        self._client = client
        self._config = config
        self._counters = counters
        self._floors: dict[Lane, int] = {}
        self._closes = "1" if config.batch_period == 0 else "0"
        self._reserve = self._script("reserve", returns="reserve(ARGV[3], ARGV[4], ARGV[5])")
        self._release = self._script(
            "release", returns="release(ARGV[3], ARGV[4], ARGV[5], ARGV[6])"
        )
        self._turn = self._script(
            "release",
            "reserve",
            returns="{release(ARGV[3], ARGV[4], ARGV[5], ARGV[6]),"
            " reserve(ARGV[7], ARGV[8], ARGV[9])}",
        )
        self._seal = self._script("seal", returns="seal(ARGV[3])")
        self._fence = self._script("fence", returns="fence(ARGV[3])")
        self._lease = self._script("lease", returns="lease(ARGV[3], ARGV[4], ARGV[5])")
        self._renew = self._script("lease", returns="renew(ARGV[3], ARGV[4], ARGV[5], ARGV[6])")
        self._unlease = self._script("lease", returns="unlease(ARGV[3], ARGV[4], ARGV[5])")

    async def reserve(self, lane: Lane, count: int) -> Reservation:
        answer = await self._run(self._reserve, lane, None, *self._reserve_args(count))
        return self._reservation(lane, answer)

    async def release(self, lane: Lane, index: int, *, scheduled: bool) -> Release:
        args = self._release_args(index, scheduled)
        return Release((await self._run(self._release, lane, index, *args)).decode())

    async def release_and_reserve(
        self, lane: Lane, index: int, count: int, *, scheduled: bool
    ) -> tuple[Release, Reservation]:
        args = self._release_args(index, scheduled) + self._reserve_args(count)
        released, reserved = await self._run(self._turn, lane, index, *args)
        return Release(released.decode()), self._reservation(lane, reserved)

    async def seal(self, lane: Lane, index: int) -> int | None:
        self._saw(lane, index)
        writers = await self._run(self._seal, lane, index, index)
        return None if writers < 0 else int(writers)

    async def wait_drained(self, lane: Lane, index: int, seconds: float) -> None:
        # The socket's own timeout is far shorter than the wait: the server is asked to block in
        # steps that stay below it.
        step = self._config.acquire_timeout / 2
        self._counters["memorystore.round_trip"] += 1
        try:
            async with asyncio.timeout(seconds):
                while await self._client.blpop([_wake_key(lane, index)], timeout=step) is None:
                    self._counters["memorystore.round_trip"] += 1
        except TimeoutError:
            return
        except FAILURES as error:
            raise _unavailable(error) from error

    async def fence(self, lane: Lane, index: int) -> Extent | None:
        self._saw(lane, index)
        found = await self._run(self._fence, lane, index, index)
        return Extent(int(found[0]), int(found[1])) if found else None

    async def lease(self, chunk: Chunk, token: str, seconds: float) -> Lease | Busy:
        args = token, _ms(seconds), _flag(chunk.suspect)
        verdict, *told = await self._run_leased(self._lease, chunk, *args)
        if verdict == b"busy":
            return Busy(int(told[0]) / 1000)
        return Lease(int(told[0]), int(told[1]) if told[1] else None)

    async def renew(
        self, chunk: Chunk, token: str, seconds: float, *, starts: int | None = None
    ) -> bool:
        args = token, _ms(seconds), _flag(chunk.suspect), "" if starts is None else starts
        return bool(await self._run_leased(self._renew, chunk, *args))

    async def unlease(
        self, chunk: Chunk, token: str, *, vanished: int = 0, split: int | None = None
    ) -> None:
        args = token, vanished, "" if split is None else split
        await self._run_leased(self._unlease, chunk, *args)

    async def ping(self, lane: Lane) -> None:
        # A write, and under the lane's hash tag: a replica, or a cluster without the lane's shard,
        # answers PING and takes no reservation.
        self._counters["memorystore.round_trip"] += 1
        try:
            await self._client.set(f"{lane.key}:ping", "1", px=PING_TTL_MS)
        except FAILURES as error:
            raise _unavailable(error) from error

    async def close(self) -> None:
        await self._client.aclose()

    def _script(self, *files: str, returns: str) -> Script:
        folder = resources.files("forkjoin_gcp.gcp") / "lua"
        parts = [(folder / f"{name}.lua").read_text("utf-8") for name in ("lane", *files)]
        return Script(self._client, "\n".join([*parts, f"return {returns}"]))

    async def _run(self, script: Script, lane: Lane, index: int | None, *args: str | int) -> Any:
        keys = [lane.key] if index is None else [lane.key, _wake_key(lane, index)]
        return await self._call(script, keys, lane, args)

    async def _run_leased(self, script: Any, chunk: Chunk, *args: str | int) -> Any:
        lane = chunk.batch.lane
        return await self._call(script, [lane.key, chunk.key, lane.quarantine_key], lane, args)

    async def _call(
        self, script: Any, keys: list[str], lane: Lane, args: tuple[str | int, ...]
    ) -> Any:
        floor = self._floors.get(lane, 0)
        self._counters["memorystore.round_trip"] += 1
        try:
            return await script(keys=keys, args=[LANE_TTL_MS, floor, *args])
        except FAILURES as error:
            raise _unavailable(error) from error

    def _reserve_args(self, count: int) -> tuple[int, ...]:
        return count, self._config.batch_size, self._config.max_batch_items

    def _release_args(self, index: int, scheduled: bool) -> tuple[str | int, ...]:
        return index, _flag(scheduled), self._closes, WAKE_UP_TTL_MS

    def _reservation(self, lane: Lane, answer: list[bytes]) -> Reservation:
        index, start, batch_size, scheduled, full = map(int, answer)
        self._saw(lane, index)
        return Reservation(index, start, batch_size, bool(scheduled), bool(full))

    def _saw(self, lane: Lane, index: int) -> None:
        self._floors[lane] = max(self._floors.get(lane, 0), index)


def _wake_key(lane: Lane, index: int) -> str:
    return f"{lane.key}:wake:{index}"


def _ms(seconds: float) -> int:
    return max(1, round(seconds * 1000))


def _flag(is_so: bool) -> str:
    return "1" if is_so else "0"


def _unavailable(error: Exception) -> IndexUnavailable:
    text = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    return IndexUnavailable(
        f"Memorystore did not do what was asked: {text}. Check {VARIABLES['memorystore']}, or "
        f"Services(memorystore=...). {LOCAL_HINT}"
    )
