"""For tests of what is built on this package.

A queue in memory (``queue.in_memory()``), a pytest plugin with queues on local services, and what
our own tests are made of: contract suites, in-process ports, virtual time.
"""

from forkjoin_gcp.testing.in_memory import EndlessError, InMemory
from forkjoin_gcp.testing.outcomes import ItemOutcome, JoinedBatch, Ran
from forkjoin_gcp.testing.virtual_time import StuckError

__all__ = ["EndlessError", "InMemory", "ItemOutcome", "JoinedBatch", "Ran", "StuckError"]
