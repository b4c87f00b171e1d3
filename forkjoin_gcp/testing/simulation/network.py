"""The network between simulated processes and services: latency, loss, silence, refusal."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

from forkjoin_gcp.testing.simulation.loop import SimulatedLoop, current_process


@dataclass
class Link:
    """The way to one service, and what happens on it. Probabilities are of a call.

    ``late_requests``: whether a request may arrive after the caller has given up waiting for it.
    ``silent`` and ``refusing`` are outages: no answer at all, or a refused connection.
    """

    name: str
    latency: float = 0.002
    lost_requests: float = 0.0
    lost_answers: float = 0.0
    resets: float = 0.0
    slow: float = 0.0
    late_requests: bool = True
    silent: bool = False
    refusing: bool = False

    def heal(self) -> None:
        """From here on nothing goes wrong on it."""
        self.lost_requests = self.lost_answers = self.resets = self.slow = 0.0
        self.silent = self.refusing = False


@dataclass(eq=False)
class Witness:
    """What went wrong in the sight of one piece of work: a delivery, an enqueue."""

    troubles: list[str] = field(default_factory=list)


witness: contextvars.ContextVar[Witness] = contextvars.ContextVar("witness")


class Trace:
    """What happened, in order: the schedule of a seed."""

    def __init__(self, loop: SimulatedLoop) -> None:
        self._loop = loop
        self._events: list[tuple[float, str, tuple[object, ...]]] = []

    def __call__(self, who: object, *what: object) -> None:
        self._events.append((self._loop.time(), str(who), what))

    def lines(self) -> list[str]:
        """One line an event: seconds, who, what."""
        return [
            f"{at:12.6f} {who:<12} {' '.join(map(str, what))}" for at, who, what in self._events
        ]


class Network:
    """Carries calls over links, as the seed has it."""

    def __init__(self, loop: SimulatedLoop, random: Random, trace: Trace) -> None:
        self._loop = loop
        self._random = random
        self._trace = trace
        self.on_their_way = 0
        """Requests that are still to arrive, whoever waits for them."""

    async def call(
        self, link: Link, what: str, action: Callable[[], Any], seconds: float | None
    ) -> Any:
        """What ``action`` returns at the service, or raises there.

        It may return a future, and is then answered when that is done. Raises builtin
        ConnectionError, and TimeoutError after ``seconds``; whether the action was done is
        then unknown.
        """
        answered: asyncio.Future[Any] = self._loop.create_future()
        _Call(self, link, what, action, answered, seconds)
        try:
            async with asyncio.timeout(seconds):
                return await answered
        except OSError as error:
            self.trouble(witness.get(None), f"{link.name}: {type(error).__name__}")
            raise

    def trouble(self, seen: Witness | None, what: str) -> None:
        """Something went wrong in the sight of some work."""
        if seen is not None:
            seen.troubles.append(what)

    def latency(self, link: Link) -> float:
        return link.latency * (0.5 + self._random.expovariate(1.0))


class _Call:
    """One request and its answer on their way."""

    __slots__ = ("action", "answered", "fate", "link", "network", "seen_by", "what", "who")

    def __init__(
        self,
        network: Network,
        link: Link,
        what: str,
        action: Callable[[], Any],
        answered: asyncio.Future[Any],
        seconds: float | None,
    ) -> None:
        self.network = network
        self.link = link
        self.what = what
        self.action = action
        self.answered = answered
        self.who = current_process().name
        self.seen_by = witness.get(None)
        self.fate = self._draw()
        delay = network.latency(link)
        if self.fate == "slow":
            longest = 1.0 if seconds is None else seconds * (3 if link.late_requests else 0.3)
            delay += network._random.uniform(0.0, longest)
        if self.fate:
            network.trouble(self.seen_by, f"{link.name} {self.fate}")
            network._trace(self.who, link.name, what, self.fate)
        if self.fate != "lost request":
            network.on_their_way += 1
            network._loop.outside_later(delay, self._arrive)

    def _draw(self) -> str:
        link, random = self.link, self.network._random
        chances = link.lost_requests + link.lost_answers + link.resets + link.slow
        if not chances:
            return ""
        drawn = random.random()
        for fate, chance in (
            ("lost request", link.lost_requests),
            ("lost answer", link.lost_answers),
            ("reset", link.resets),
            ("slow", link.slow),
        ):
            if drawn < chance:
                return fate
            drawn -= chance
        return ""

    def _arrive(self) -> None:
        network, link = self.network, self.link
        network.on_their_way -= 1
        if link.silent or link.refusing:
            network.trouble(self.seen_by, f"{link.name} away")
        if link.silent:
            network._trace(self.who, link.name, self.what, "into silence")
            return
        if link.refusing:
            network._trace(self.who, link.name, self.what, "refused")
            self._fail(ConnectionRefusedError(f"{link.name} refuses connections"))
            return
        if self.fate == "reset" and network._random.random() < 0.5:
            self._fail(ConnectionResetError(f"{link.name}: reset before the request"))
            return
        try:
            result = self.action()
        except Exception as error:
            network._trace(self.who, link.name, self.what, type(error).__name__)
            self._answer(None, error)
            return
        if isinstance(result, asyncio.Future):
            result.add_done_callback(self._answer_later, context=network._loop.outside.context)
        else:
            self._answer(result, None)

    def _answer_later(self, future: asyncio.Future[Any]) -> None:
        self._answer(future.result(), None)

    def _answer(self, result: Any, error: Exception | None) -> None:
        network = self.network
        if error is None:
            network._trace(self.who, self.link.name, self.what, _short(result))
        if self.fate == "lost answer":
            return
        if self.fate == "reset":
            self._fail(ConnectionResetError(f"{self.link.name}: reset before the answer"))
            return
        network._loop.outside_later(network.latency(self.link), self._settle, result, error)

    def _fail(self, error: Exception) -> None:
        self.network._loop.outside_later(self.network.latency(self.link), self._settle, None, error)

    def _settle(self, result: Any, error: Exception | None) -> None:
        if self.answered.done():
            return
        if error is None:
            self.answered.set_result(result)
        else:
            self.answered.set_exception(error)


def _short(result: Any) -> str:
    """A few characters that are the same in every run."""
    if isinstance(result, bytes):
        return result.decode("utf-8", "replace")
    if isinstance(result, list):
        return f"[{' '.join(_short(each) for each in result[:6])}]"
    return str(result) if isinstance(result, int | float | str) or result is None else ""
