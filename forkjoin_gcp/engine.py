"""A started queue: its I/O loop, its connections, and the protocol's parts on it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
from collections.abc import Awaitable, Callable
from typing import Any

from forkjoin_gcp.config import QueueConfig, Services
from forkjoin_gcp.dead_letters import DeadLetters
from forkjoin_gcp.importing import one_at_a_time
from forkjoin_gcp.items import PayloadCodec
from forkjoin_gcp.joining import leases
from forkjoin_gcp.joining.handlers import Handler
from forkjoin_gcp.joining.isolation import ProcessGate
from forkjoin_gcp.joining.reader import Reader
from forkjoin_gcp.joining.worker import Worker
from forkjoin_gcp.ports import Clock, Counters, Ports
from forkjoin_gcp.runtime import Inbox, LoopThread, SystemClock, ThreadedRunner
from forkjoin_gcp.sweeper import Sweeper
from forkjoin_gcp.tasks import RootTask, Task
from forkjoin_gcp.writing.writer import Writer

logger = logging.getLogger(__name__)

Connect = Callable[[QueueConfig, Services, Counters, Clock], Awaitable[Ports]]

CLOSE_SECONDS = 8.0
"""How long closing waits for what is in flight. Cloud Run gives a process 10 s to end."""


class Engine:
    """A started queue: its I/O loop, its connections, and the protocol's parts on it."""

    def __init__(
        self,
        config: QueueConfig,
        services: Services,
        counters: Counters,
        codec: PayloadCodec[Any],
        connect: Connect | None,
        *,
        io: LoopThread | None = None,
        clock: Clock | None = None,
        inbox: Inbox | None = None,
    ) -> None:
        self.is_paused = False
        self.is_on_google = connect is None
        if connect is None:
            # Only here: importing a module that declares a queue loads no client library.
            with one_at_a_time:
                from forkjoin_gcp.gcp.connect import connect as connect_to_google

            connect = connect_to_google
        self._config = config
        self._counters = counters
        self._codec = codec
        self._runner: ThreadedRunner | None = None
        self._joins: set[asyncio.Task[Any]] = set()
        self.io = io or LoopThread(f"forkjoin-{config.name}")
        try:
            made = connect(config, services, counters, clock or SystemClock())
            self._ports = self.io.submit(_awaited(made)).result()
        except BaseException:
            self.io.stop()
            raise
        self._writer = Writer(
            config, self._ports, counters, first_lane=random.randrange(config.lanes)
        )
        self.inbox = inbox or Inbox(self.io.loop, self._writer.submit)
        if inbox is not None:
            inbox.resume(self.io.loop, self._writer.submit)
        self.sweeper = Sweeper(config, self._ports, counters)
        self.dead = DeadLetters(config, self._ports, counters)

    async def join(self, task: Task, handler: Handler) -> None:
        running = asyncio.current_task()
        assert running is not None
        self._joins.add(running)
        try:
            await self._join(task, handler)
        finally:
            self._joins.discard(running)

    async def _join(self, task: Task, handler: Handler) -> None:
        if self._runner is None:
            self._runner = self._new_runner(handler)
            self._worker = Worker(
                self._config,
                self._ports,
                self._counters,
                self._codec,
                self._runner,
                gate=_gate,
                lease_seconds=self._lease_seconds(),
            )
            self._reader = Reader(self._config, self._ports, self._counters, self._worker)
        if isinstance(task, RootTask):
            await self._reader.run(task)
        else:
            await self._worker.run(task, asyncio.get_running_loop().time())

    def _lease_seconds(self) -> float:
        return leases.LEASE_SECONDS

    def _new_runner(self, handler: Handler) -> ThreadedRunner:
        return ThreadedRunner(handler, self._config.dispatch_deadline)

    def stop(self) -> None:
        try:
            self.io.submit(self._drain()).result(CLOSE_SECONDS + 1)
        except TimeoutError:
            logger.warning("closed with items still in flight; their callers get no answer")
        self._end_threads()

    def pause(self) -> None:
        """End all threads and connections, as the process is to be forked. Nobody is refused.

        What was handed in is finished first, within CLOSE_SECONDS. The inbox keeps what comes from
        here on for the engine that it is given to.
        """
        self.is_paused = True
        try:
            self.io.submit(self._rest()).result(CLOSE_SECONDS + 1)
        except TimeoutError:
            logger.warning("forked with items still in flight; their callers get no answer")
        self._end_threads()

    def _end_threads(self) -> None:
        self.io.stop()
        if self._runner:
            self._runner.stop()

    async def _rest(self) -> None:
        self.inbox.pause()
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_SECONDS):
                    await self._writer.rest()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.1):
                    await self._writer.close()
        finally:
            await self._disconnect()

    async def _drain(self) -> None:
        try:
            self.inbox.close()
            async with asyncio.timeout(CLOSE_SECONDS):
                await self._writer.close()
        finally:
            await self._disconnect()

    async def _disconnect(self) -> None:
        await self._end_joins()
        await self.dead.close()
        await self._ports.close()

    async def _end_joins(self) -> None:
        """End the requests in progress, which would connect anew once connections are closed."""
        joins = set(self._joins)
        for join in joins:
            join.cancel()
        if joins:
            await asyncio.wait(joins, timeout=1)


async def _awaited(made: Awaitable[Ports]) -> Ports:
    return await made


_gate = ProcessGate()


def _forget_parent() -> None:
    """In a forked child: none of the parent's chunks runs here."""
    global _gate
    _gate = ProcessGate()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_parent)
