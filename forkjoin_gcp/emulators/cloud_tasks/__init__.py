"""A local emulator of Google Cloud Tasks that the unmodified google-cloud-tasks client talks to.

Faithful where this project leans on the service: names are deduplicated atomically and stay taken
after a task ran or was deleted, tasks go out when they are due under the queue's rate and
concurrency limits with the service's headers and tokens, and failed ones are retried by its
backoff arithmetic. On request it keeps its state on disk, and fails in the ways of the real one
(`faults`).

Not emulated: the slow start of new queues (500/50/5), the slowing down of a queue whose target
answers 429 or 503, redirects (any 3xx is a failed attempt), Cloud Logging, IAM and CMEK, the
quotas of calls. App Engine targets are refused.
"""

from .faults import FaultSettingError
from .server import CloudTasksEmulator

__all__ = ["CloudTasksEmulator", "FaultSettingError"]
