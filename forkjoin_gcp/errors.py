"""Everything this package raises, in one tree.

    ForkJoinError
    ├── ConfigurationError (ValueError)   a setting, name or variable is wrong
    ├── HandlerError (TypeError)          a handler is missing, doubled, or of the wrong shape
    ├── PayloadError (ValueError)         not accepted; nothing was reserved or written
    │   ├── InvalidPayload                it is not of the queue's payload type, or has no JSON form
    │   └── PayloadTooLarge               its encoded form is over the limit
    ├── QueueFull             (retry)     too much is pending in this process; nothing was accepted
    ├── QueueClosed                       the queue object was closed, or its process is ending
    ├── ChunkBusy             (retry)     another delivery of the chunk runs it: inside the endpoint
    ├── ServiceError                      a service did not do what was asked
    │   ├── IndexUnavailable      (retry) Memorystore
    │   ├── StoreUnavailable      (retry) the store of segments
    │   ├── StoreRefused                  the store will not take this, however often it is asked
    │   ├── SegmentConflict               another writer's segment stands where this one should
    │   ├── SchedulerUnavailable  (retry) Cloud Tasks
    │   ├── SchedulerRefused              Cloud Tasks will not take this task
    │   └── TaskQueueNotFound             the Cloud Tasks queue does not exist; nothing was accepted
    └── HandlerOutcome                    raised *by* handlers, to say what becomes of an item
        ├── Reject                        dead-letter it now
        └── Retry                         try it again, no earlier than ``after`` seconds from now

``retryable`` is true where the same call may succeed later. Delivery is at least once, so repeating
an ``enqueue`` that raised a retryable error may hand the item over twice.
"""

from __future__ import annotations


class ForkJoinError(Exception):
    """Something went wrong in forkjoin_gcp."""

    retryable = False

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or (type(self).__doc__ or "").partition("\n")[0])


class ConfigurationError(ForkJoinError, ValueError):
    """A setting, a name or an environment variable is wrong."""


class HandlerError(ForkJoinError, TypeError):
    """A queue's handler is missing, doubled, or of the wrong shape."""


class PayloadError(ForkJoinError, ValueError):
    """The payload is not accepted."""


class InvalidPayload(PayloadError):
    """The payload is not of the queue's payload type, or has no JSON form."""


class PayloadTooLarge(PayloadError):
    """The payload's encoded form is over the limit."""


class QueueFull(ForkJoinError):
    """Too much is pending in this process already, and no room was made in time."""

    retryable = True


class QueueClosed(ForkJoinError):
    """The queue object was closed; declare a new one to go on."""


class ChunkBusy(ForkJoinError):
    """Another delivery of the chunk runs it, or a suspect runs that must not be disturbed.

    The same request may be made again ``after`` seconds from now.
    """

    retryable = True

    def __init__(self, *, after: float) -> None:
        super().__init__()
        self.after = after


class ServiceError(ForkJoinError):
    """A service did not do what was asked of it."""


class IndexUnavailable(ServiceError):
    """Memorystore, which holds the work indexes, did not answer."""

    retryable = True


class StoreUnavailable(ServiceError):
    """The store of segments did not answer."""

    retryable = True


class StoreRefused(ServiceError):
    """The store of segments refused a write for good."""


class SegmentConflict(ServiceError):
    """Another writer's segment stands where this one should."""


class SchedulerUnavailable(ServiceError):
    """Cloud Tasks did not answer."""

    retryable = True


class SchedulerRefused(ServiceError):
    """Cloud Tasks refused a task for good."""


class TaskQueueNotFound(SchedulerRefused):
    """The Cloud Tasks queue does not exist."""


class HandlerOutcome(ForkJoinError):
    """Raised by a handler to say what becomes of an item."""


class Reject(HandlerOutcome):
    """The item will never succeed: it is dead-lettered at once, with this reason."""

    def __init__(self, reason: str = "rejected by the handler") -> None:
        super().__init__(reason)
        self.reason = reason


class Retry(HandlerOutcome):
    """Try the item again, no earlier than ``after`` seconds from now.

    The try counts as one of ``max_attempts``. Without ``after`` the queue's own backoff applies.
    """

    def __init__(
        self, reason: str = "retry asked for by the handler", *, after: float = 0.0
    ) -> None:
        if not 0 <= after <= MAX_RETRY_AFTER:
            raise ConfigurationError(
                f"Retry(after={after!r}): after is in seconds, from 0 to {MAX_RETRY_AFTER:,} "
                "(Cloud Tasks takes a schedule time at most 30 days ahead)"
            )
        super().__init__(reason)
        self.reason = reason
        self.after = after


MAX_RETRY_AFTER = 29 * 24 * 3600
"""Seconds. Cloud Tasks refuses a schedule time over 30 days ahead; one day is left for delays."""
