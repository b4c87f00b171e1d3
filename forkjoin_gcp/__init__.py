"""forkjoin_gcp: a fork-join queue for Google Cloud.

Many callers hand in small pieces of work, one at a time; one request handles a hundred of them in
parallel. Nothing accepted is lost.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from forkjoin_gcp.errors import (
    ConfigurationError,
    ForkJoinError,
    HandlerError,
    IndexUnavailable,
    InvalidPayload,
    PayloadError,
    PayloadTooLarge,
    QueueClosed,
    QueueFull,
    Reject,
    Retry,
    SchedulerRefused,
    SchedulerUnavailable,
    ServiceError,
    StoreRefused,
    StoreUnavailable,
    TaskQueueNotFound,
)

if TYPE_CHECKING:
    from forkjoin_gcp.config import QueueConfig, Services
    from forkjoin_gcp.dead_letters import DeadLetterReport
    from forkjoin_gcp.endpoint import join_blueprint, join_function, sweep_function
    from forkjoin_gcp.items import DeadLetter, Item
    from forkjoin_gcp.joining.handlers import BatchItem
    from forkjoin_gcp.queue import ForkJoinQueue
    from forkjoin_gcp.sweeper import StaleBatch, SweepReport

__all__ = [
    "BatchItem",
    "ConfigurationError",
    "DeadLetter",
    "DeadLetterReport",
    "ForkJoinError",
    "ForkJoinQueue",
    "HandlerError",
    "IndexUnavailable",
    "InvalidPayload",
    "Item",
    "PayloadError",
    "PayloadTooLarge",
    "QueueClosed",
    "QueueConfig",
    "QueueFull",
    "Reject",
    "Retry",
    "SchedulerRefused",
    "SchedulerUnavailable",
    "ServiceError",
    "Services",
    "StaleBatch",
    "StoreRefused",
    "StoreUnavailable",
    "SweepReport",
    "TaskQueueNotFound",
    "join_blueprint",
    "join_function",
    "sweep_function",
]


_LOADED_WHEN_ASKED_FOR = {
    "BatchItem": "joining.handlers",
    "DeadLetter": "items",
    "DeadLetterReport": "dead_letters",
    "ForkJoinQueue": "queue",
    "Item": "items",
    "QueueConfig": "config",
    "Services": "config",
    "StaleBatch": "sweeper",
    "SweepReport": "sweeper",
    "join_blueprint": "endpoint",
    "join_function": "endpoint",
    "sweep_function": "endpoint",
}
"""Names and their modules: those of the endpoint load a web framework, the others pydantic, which
the local services and the command line do without."""


def __getattr__(name: str) -> Any:
    module = _LOADED_WHEN_ASKED_FOR.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{module}"), name)
