"""What is done to the processes and the data, in turn, as a seeded generator says."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence

from tests.chaos.members import Member

DOWN_SECONDS = (0.1, 1.5)
STOPPED_SECONDS = (0.5, 4.0)
"""Longer than a writer is waited for, and than a try to reach Memorystore."""

Act = Callable[[], Awaitable[None]]


class Agenda:
    """Kills and stops each member in turn, and runs each of ``others`` among that.

    ``rounds`` times over, evenly in the time it is given; each round in an order of its own. What
    is done is told to ``tell`` and counted in ``done``. Where a member is still coming up when its
    turn is there, the turn waits for it.
    """

    def __init__(
        self,
        members: Sequence[Member],
        others: Mapping[str, Act],
        seed: int,
        tell: Callable[[str], None],
    ) -> None:
        self._random = random.Random(seed)
        self._tell = tell
        self._busy = {member.name: asyncio.Lock() for member in members}
        self._acts: list[Act] = []
        for member in members:
            self._acts += [self._kill(member), self._stop(member)]
        self._acts += [self._other(name, act) for name, act in others.items()]
        self.done: Counter[str] = Counter()

    async def run(self, seconds: float, rounds: int) -> None:
        """Return when all is done and everybody is up again. Raises what a start raises."""
        pause = seconds / (rounds * len(self._acts))
        async with asyncio.TaskGroup() as group:
            for _ in range(rounds):
                for act in self._random.sample(self._acts, len(self._acts)):
                    await asyncio.sleep(self._random.uniform(0.5, 1.5) * pause)
                    group.create_task(_do(act))

    def _kill(self, member: Member) -> Act:
        async def act() -> None:
            async with self._busy[member.name]:
                seconds = self._random.uniform(*DOWN_SECONDS)
                self._note(f"kill -9 {member.name}", f", started again after {seconds:.1f} s")
                await asyncio.to_thread(member.kill)
                await asyncio.sleep(seconds)
                await asyncio.to_thread(member.start)

        return act

    def _stop(self, member: Member) -> Act:
        async def act() -> None:
            async with self._busy[member.name]:
                seconds = self._random.uniform(*STOPPED_SECONDS)
                self._note(f"SIGSTOP {member.name}", f" for {seconds:.1f} s")
                member.stop()
                try:
                    await asyncio.sleep(seconds)
                finally:
                    member.go_on()

        return act

    def _other(self, name: str, act: Act) -> Act:
        async def noted() -> None:
            self._note(name, "")
            await act()

        return noted

    def _note(self, what: str, more: str) -> None:
        self.done[what] += 1
        self._tell(what + more)


async def _do(act: Act) -> None:
    await act()
