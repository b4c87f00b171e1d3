"""For tests of what is built on this package.

A queue in memory (``queue.in_memory()``), a pytest plugin with queues on local services, and what
our own tests are made of: contract suites, in-process ports, virtual time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from forkjoin_gcp.testing.in_memory import EndlessError, InMemory
from forkjoin_gcp.testing.outcomes import ItemOutcome, JoinedBatch, Ran
from forkjoin_gcp.testing.virtual_time import StuckError

if TYPE_CHECKING:
    from forkjoin_gcp.testing.local import wait_until

__all__ = [
    "EndlessError",
    "InMemory",
    "ItemOutcome",
    "JoinedBatch",
    "Ran",
    "StuckError",
    "wait_until",
]


def __getattr__(name: str) -> Any:
    """What is beside a web framework is loaded when it is asked for."""
    if name == "wait_until":
        from forkjoin_gcp.testing.local import wait_until

        return wait_until
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
