"""What queues do when their process is forked.

gRPC survives a fork where nothing of it is left, or not at all: a child crashes, and takes wake-ups
from its parent. So queues in use pause before a fork, and connect anew after it, on both sides.
"""

from __future__ import annotations

import gc
import os
import threading
import weakref
from typing import Protocol


class Forkable(Protocol):
    """A queue, as this module sees it."""

    _lock: threading.RLock
    _uses: int

    def _pause(self) -> bool:
        """End what gRPC has for this queue; whether there was anything."""

    def _resume(self) -> None:
        """In the parent: go on with what came meanwhile."""

    def _forget_parent(self) -> None:
        """In the child: begin anew."""


_queues: weakref.WeakSet[Forkable] = weakref.WeakSet()
_forking = threading.RLock()
_forked: list[Forkable] = []
_at_work = False
_marred = False


def watch(queue: Forkable) -> None:
    """Have a queue paused before a fork, and told after it."""
    _queues.add(queue)


def is_marred() -> bool:
    """Whether gRPC was at work when this process, or one it comes from, was forked."""
    return _marred


def _before() -> None:
    """Pause all queues, or none: a request that is handled may be what forks."""
    global _at_work
    _forking.acquire()
    _forked[:] = _queues
    for queue in _forked:
        queue._lock.acquire()
    if not any(queue._uses for queue in _forked):
        paused = [queue._pause() for queue in _forked]
        if any(paused):
            gc.collect()  # channels are in cycles, and gRPC's threads end with the last of them
    # The thread that polls for grpc.aio: of a queue in use, or of the program's own clients.
    _at_work = any("_poll_wrapper" in thread.name for thread in threading.enumerate())


def _after_in_parent() -> None:
    for queue in _forked:
        queue._resume()
        queue._lock.release()
    _forked.clear()
    _forking.release()


def _after_in_child() -> None:
    global _forking, _marred
    _marred |= _at_work
    for queue in _forked:
        queue._forget_parent()
    _forked.clear()
    _forking = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before, after_in_parent=_after_in_parent, after_in_child=_after_in_child
    )
