"""The settings of the queue under fault, shared by the processes that enqueue and the one that
joins."""

from forkjoin_gcp.config import Settings

SETTINGS: Settings = {
    "batch_period": 0.2,
    "batch_size": 100,
    "writer_timeout": 0.5,
    "retry_min_backoff": 0.2,
    "retry_max_backoff": 1.0,
}
