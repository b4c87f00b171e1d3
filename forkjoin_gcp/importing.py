"""Libraries that are loaded at first use are loaded by one thread at a time.

Threads that import the same libraries from different ends wait for each other in a circle. Python
breaks the circle by handing one of them half a module, and what then fails to be made stays broken
for the process's life: a new instance whose first requests came together never answered one.
"""

from __future__ import annotations

import os
import threading


class _OneAtATime:
    """``with one_at_a_time:`` around an import statement."""

    def __init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        """In a forked child: who held the lock may not be there to let go of it."""
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


one_at_a_time = _OneAtATime()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=one_at_a_time.renew)
