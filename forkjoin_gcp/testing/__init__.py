"""For tests of what is built on this package.

A queue in memory (``queue.in_memory()``), a pytest plugin with queues on local services, and what
our own tests are made of: contract suites, in-process ports, virtual time.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from forkjoin_gcp.testing.in_memory import EndlessError, InMemory
    from forkjoin_gcp.testing.local import wait_until
    from forkjoin_gcp.testing.outcomes import ItemOutcome, JoinedBatch, Ran
    from forkjoin_gcp.testing.virtual_time import StuckError

__all__ = [
    "EndlessError",
    "InMemory",
    "ItemOutcome",
    "JoinedBatch",
    "Ran",
    "StuckError",
    "wait_until",
]

_LOADED_WHEN_ASKED_FOR = {
    "EndlessError": "in_memory",
    "InMemory": "in_memory",
    "ItemOutcome": "outcomes",
    "JoinedBatch": "outcomes",
    "Ran": "outcomes",
    "StuckError": "virtual_time",
    "wait_until": "local",
}
"""Names and their modules. pytest loads the plugin beside them wherever this package is installed,
also for tests that have nothing to do with it."""


def __getattr__(name: str) -> Any:
    module = _LOADED_WHEN_ASKED_FOR.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{module}"), name)
