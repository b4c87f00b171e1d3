"""forkjoin_gcp: a fork-join queue for Google Cloud.

Many callers hand in small pieces of work, one at a time; one request handles a hundred of them in
parallel. Nothing accepted is lost.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from forkjoin_gcp.config import QueueConfig, Services
from forkjoin_gcp.errors import (
    ConfigurationError,
    ForkJoinError,
    HandlerError,
    IndexUnavailable,
    InvalidPayload,
    PayloadError,
    PayloadTooLarge,
    QueueClosed,
    Reject,
    Retry,
    SchedulerRefused,
    SchedulerUnavailable,
    ServiceError,
    StoreRefused,
    StoreUnavailable,
    TaskQueueNotFound,
)
from forkjoin_gcp.handlers import BatchItem
from forkjoin_gcp.items import DeadLetter, Item
from forkjoin_gcp.queue import ForkJoinQueue

if TYPE_CHECKING:
    from forkjoin_gcp.endpoint import join_blueprint, join_function

__all__ = [
    "BatchItem",
    "ConfigurationError",
    "DeadLetter",
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
    "Reject",
    "Retry",
    "SchedulerRefused",
    "SchedulerUnavailable",
    "ServiceError",
    "Services",
    "StoreRefused",
    "StoreUnavailable",
    "TaskQueueNotFound",
    "join_blueprint",
    "join_function",
]


def __getattr__(name: str) -> Any:
    """The endpoint's names load a web framework: only who joins pays for it."""
    if name in ("join_blueprint", "join_function"):
        from forkjoin_gcp import endpoint

        return getattr(endpoint, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
