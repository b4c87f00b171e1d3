"""A whole queue on one virtual event loop: the real writer, reader and worker, ports in process."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from forkjoin_gcp.config import QueueConfig
from forkjoin_gcp.items import Item, PayloadCodec
from forkjoin_gcp.joining.handlers import Handler, ItemHandler, Outcome, Run
from forkjoin_gcp.joining.reader import Reader
from forkjoin_gcp.joining.worker import Worker
from forkjoin_gcp.names import Batch
from forkjoin_gcp.ports import Counters, Ports
from forkjoin_gcp.sweeper import Sweeper
from forkjoin_gcp.tasks import RootTask, parse_task
from forkjoin_gcp.testing.in_process import InProcessIndex, InProcessScheduler, InProcessStore
from forkjoin_gcp.testing.virtual_time import VirtualClock, VirtualTimeLoop, run_virtual
from forkjoin_gcp.writing.writer import Writer


class LoopRunner:
    """HandlerRunner on the loop itself, with the deadlines a queue has."""

    def __init__(self, handler: Handler, deadline: float) -> None:
        self.handler = handler
        self.deadline = deadline

    async def run(self, items: Sequence[Item[Any]], elapsed: float) -> list[Outcome]:
        run = Run(items)
        try:
            async with asyncio.timeout(self.deadline * 0.9 - elapsed):
                await self.handler.handle(run, self.deadline * 0.8 - elapsed)
        except TimeoutError:
            pass
        return run.results()


class Rig:
    """One queue; ``handle`` says what becomes of an item, and ``handled`` collects them."""

    def __init__(
        self, handle: Callable[[Item[Any]], Awaitable[None]] | None = None, **settings: Any
    ):
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualTimeLoop)
        self.loop = loop
        self.config = QueueConfig("rig", **settings)
        self.clock = VirtualClock(loop)
        self.index = InProcessIndex(self.config, self.clock)
        self.store = InProcessStore(self.clock)
        self.scheduler = InProcessScheduler(self.clock)
        self.counters = Counters()
        self.handled: list[Item[Any]] = []
        self._handle = handle
        self.codec: PayloadCodec[Any] = PayloadCodec(dict[str, Any])
        self.use(ItemHandler(self._collect, self.config.concurrency))

    def use(self, handler: Handler) -> None:
        """Build the protocol's parts over the ports as they are now."""
        self.ports = Ports(self.index, self.store, self.scheduler, self.clock)
        self.runner = LoopRunner(handler, self.config.dispatch_deadline)
        self.writer = Writer(self.config, self.ports, self.counters)
        self.worker = Worker(self.config, self.ports, self.counters, self.codec, self.runner)
        self.reader = Reader(self.config, self.ports, self.counters, self.worker)
        self.sweeper = Sweeper(self.config, self.ports, self.counters)

    async def _collect(self, item: Item[Any]) -> None:
        if self._handle is not None:
            await self._handle(item)
        self.handled.append(item)

    async def put(self, *numbers: int) -> list[str]:
        return await self.writer.put([self.codec.encode({"n": n}) for n in numbers])

    async def deliver(self, body: bytes, tried: int = 0) -> None:
        task = parse_task(body)
        if isinstance(task, RootTask):
            await self.reader.run(task)
        else:
            await self.worker.run(task, self.loop.time())

    async def drain(self) -> None:
        """Deliver tasks until none is left."""
        await self.scheduler.run(self.deliver)

    @property
    def numbers(self) -> list[int]:
        return sorted(item.payload["n"] for item in self.handled)

    @property
    def left(self) -> int:
        return sum(len(s.items) for held in self.store.segments.values() for s in held.values())

    @property
    def batches(self) -> list[Batch]:
        return list(self.store.segments)


def rigged(test: Callable[[], Awaitable[None]]) -> Callable[[], None]:
    """Run an async test on a virtual loop."""

    def run() -> None:
        async def main() -> None:
            await test()

        run_virtual(main())

    run.__name__ = test.__name__
    run.__doc__ = test.__doc__
    return run
