"""Faults on purpose: what the real service does now and then, as often as a test wants it.

Every kind of fault draws from a random stream of its own, seeded by `seed`, so that the n-th
decision of a kind is the same in every run, however calls and dispatches interleave.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from .refusals import Refusal

CODES = frozenset(
    {
        "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND",
        "ALREADY_EXISTS", "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION",
        "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS",
        "UNAUTHENTICATED",
    }
)  # fmt: skip
"""The gRPC status names a call can be refused with."""

METHODS = frozenset(
    {
        "CreateQueue", "GetQueue", "ListQueues", "UpdateQueue", "DeleteQueue", "PauseQueue",
        "ResumeQueue", "PurgeQueue", "CreateTask", "GetTask", "ListTasks", "DeleteTask",
        "RunTask", "BatchCreateTasks", "BatchDeleteTasks", "GetOperation", "ListOperations",
        "WaitOperation", "CancelOperation", "DeleteOperation",
    }
)  # fmt: skip
"""The methods whose calls can be refused or delayed."""

REORDER_WINDOW = 0.5
"""Seconds for which a dispatch is held back at most so that later ones overtake it."""
_LONGEST_DELAY = 3_600.0


class FaultSettingError(ValueError):
    """A fault setting that is wrong; the message says which and why."""


@dataclass(frozen=True, slots=True)
class Delay:
    """With that probability, that many seconds later."""

    probability: float = 0.0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class CallDelay:
    """As `Delay`, for calls of those methods; none given means all."""

    probability: float = 0.0
    seconds: float = 0.0
    methods: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Refuse:
    """With that probability a call of those methods (none given: all) ends with that code before
    it does anything."""

    probability: float = 0.0
    code: str = "UNAVAILABLE"
    methods: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class FaultSettings:
    """Which faults happen; the defaults are none. Numbers without a unit are probabilities."""

    deliver_twice: float = 0.0
    """A dispatch is sent a second time: together with the first, or after its answer."""
    lose_create_answer: float = 0.0
    """A CreateTask that succeeded is answered UNAVAILABLE."""
    forget_tombstones_after: float | None = None
    """Seconds after which the name of a task that is gone is free; None keeps to the rules."""
    delay: Delay = Delay()
    """Of dispatches."""
    delay_calls: CallDelay = CallDelay()
    """Of the calls of the API, before they do anything."""
    reorder: float = 0.0
    """A dispatch is held back for up to REORDER_WINDOW seconds, so that later ones overtake it."""
    refuse: Refuse = Refuse()
    seed: int = 0


class Faults:
    """The faults in force, and how often each happened since the start (`counts`).

    To be used on the event loop of the emulator.
    """

    def __init__(self, forget_tombstones_after: Callable[[float | None], None]) -> None:
        self._forget_tombstones_after = forget_tombstones_after
        self._streams: dict[str, random.Random] = {}
        self.settings = FaultSettings()
        self.active = False
        self.counts: Counter[str] = Counter()

    def set(self, **settings: Any) -> None:
        """Puts exactly these faults in force (the fields of FaultSettings; what is not named is
        off) and starts the random streams anew. Raises FaultSettingError and changes nothing."""
        self._put(settings_of(settings))

    def clear(self) -> None:
        """Ends all faults."""
        self._put(FaultSettings())

    def shown(self) -> dict[str, Any]:
        """The settings in plain JSON types, as `set` takes them."""
        return asdict(self.settings)

    def call_delay(self, method: str) -> float:
        """Seconds for which a call is to wait first."""
        delay = self.settings.delay_calls
        if _concerns(delay.methods, method) and self._strikes("delay_calls", delay.probability):
            return delay.seconds
        return 0.0

    def check_call(self, method: str) -> None:
        """Raises the Refusal that a call is to end with, if it is to."""
        refuse = self.settings.refuse
        if _concerns(refuse.methods, method) and self._strikes("refuse", refuse.probability):
            raise Refusal(refuse.code, "Refused on purpose: a fault is set.")

    def check_answer(self, method: str) -> None:
        """Raises the Refusal that is sent in the place of an answer, if one is to be."""
        if method == "CreateTask" and self._strikes(
            "lose_create_answer", self.settings.lose_create_answer
        ):
            raise Refusal("UNAVAILABLE", "The answer was lost on purpose: a fault is set.")

    def dispatch_delay(self) -> float:
        """Seconds for which a dispatch is held back."""
        settings = self.settings
        seconds = 0.0
        if self._strikes("delay", settings.delay.probability):
            seconds += settings.delay.seconds
        if self._strikes("reorder", settings.reorder):
            seconds += self._stream("reorder").uniform(0.0, REORDER_WINDOW)
        return seconds

    def second_delivery(self) -> str:
        """When a dispatch is to be sent once more: "together", "after" its answer, "" never."""
        if not self._strikes("deliver_twice", self.settings.deliver_twice):
            return ""
        return self._stream("deliver_twice").choice(("together", "after"))

    def _put(self, settings: FaultSettings) -> None:
        self.settings = settings
        self.active = settings != FaultSettings(seed=settings.seed)
        self._streams.clear()
        self._forget_tombstones_after(settings.forget_tombstones_after)

    def _strikes(self, kind: str, probability: float) -> bool:
        if not probability or self._stream(kind).random() >= probability:
            return False
        self.counts[kind] += 1
        return True

    def _stream(self, kind: str) -> random.Random:
        stream = self._streams.get(kind)
        if stream is None:
            stream = self._streams[kind] = random.Random(f"{self.settings.seed}:{kind}")
        return stream


def settings_of(given: Mapping[str, Any]) -> FaultSettings:
    """The settings that a JSON object asks for. Raises FaultSettingError."""
    fields: dict[str, Any] = {}
    for name, value in given.items():
        if name not in _READERS:
            raise FaultSettingError(
                f"There is no fault {name!r}. There are: {', '.join(sorted(_READERS))}."
            )
        fields[name] = _READERS[name](value, name)
    return FaultSettings(**fields)


def _concerns(methods: Sequence[str], method: str) -> bool:
    return not methods or method in methods


def _number(value: Any, name: str, most: float, unit: str) -> float:
    # A bool is an int to Python, and NaN compares with nothing.
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most:
        raise FaultSettingError(f"{name} must be {unit} between 0 and {most:g}, not {value!r}.")
    return float(value)


def _probability(value: Any, name: str) -> float:
    return _number(value, name, 1.0, "a probability")


def _seconds(value: Any, name: str) -> float:
    return _number(value, name, _LONGEST_DELAY, "a number of seconds")


def _seconds_or_none(value: Any, name: str) -> float | None:
    return None if value is None else _number(value, name, 1e9, "null or a number of seconds")


def _code(value: Any, name: str) -> str:
    if not isinstance(value, str) or value not in CODES:
        raise FaultSettingError(f"{name} must be one of {', '.join(sorted(CODES))}, not {value!r}.")
    return value


def _methods(value: Any, name: str) -> tuple[str, ...]:
    listed = isinstance(value, list | tuple)
    if not listed or any(not isinstance(each, str) or each not in METHODS for each in value):
        raise FaultSettingError(
            f"{name} must be a list of methods ({', '.join(sorted(METHODS))}), not {value!r}."
        )
    return tuple(value)


def _seed(value: Any, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise FaultSettingError(f"{name} must be a whole number, not {value!r}.")
    return value


def _object(kind: Callable[..., Any], *required: str) -> Callable[[Any, str], Any]:
    readers = {"probability": _probability, "seconds": _seconds, "code": _code}
    readers |= {"methods": _methods}
    known = set(getattr(kind, "__dataclass_fields__", {}))

    def read(value: Any, name: str) -> Any:
        if not isinstance(value, Mapping):
            raise FaultSettingError(f"{name} must be an object, not {value!r}.")
        for field in value:
            if field not in known:
                raise FaultSettingError(f"{name} has no field {field!r}; it has {sorted(known)}.")
        for field in required:
            if field not in value:
                raise FaultSettingError(f"{name} needs the field {field!r}.")
        return kind(**{field: readers[field](value[field], f"{name}.{field}") for field in value})

    return read


_READERS: dict[str, Callable[[Any, str], Any]] = {
    "deliver_twice": _probability,
    "lose_create_answer": _probability,
    "forget_tombstones_after": _seconds_or_none,
    "delay": _object(Delay, "probability", "seconds"),
    "delay_calls": _object(CallDelay, "probability", "seconds"),
    "reorder": _probability,
    "refuse": _object(Refuse, "probability"),
    "seed": _seed,
}
