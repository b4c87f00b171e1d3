"""A pytest plugin: queues on local services, each test by itself.

Registered by an entry point, so pytest loads it wherever this package is installed: it imports
nothing until a fixture of it is asked for, and does nothing else.
"""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

if TYPE_CHECKING:
    from forkjoin_gcp import emulators
    from forkjoin_gcp.queue import ForkJoinQueue
    from forkjoin_gcp.testing.local import LocalQueues

Q = TypeVar("Q", bound="ForkJoinQueue[Any]")


@pytest.fixture(scope="session")
def forkjoin_services() -> Iterator[emulators.LocalServices]:
    """Valkey, Firestore and Cloud Tasks on this machine, for the whole session.

    Where one cannot be had, tests that need it are skipped with the reason; under CI=true they
    fail.
    """
    from forkjoin_gcp import emulators

    try:
        services = emulators.LocalServices.start()
    except emulators.LocalServiceError as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(str(error))
    with services:
        yield services


@pytest.fixture(scope="session")
def _forkjoin_local_queues(forkjoin_services: emulators.LocalServices) -> Iterator[LocalQueues]:
    from forkjoin_gcp.testing.local import LocalQueues

    with LocalQueues.served(forkjoin_services) as queues:
        yield queues


@pytest.fixture
def forkjoin_queue(_forkjoin_local_queues: LocalQueues) -> Iterator[Callable[[Q], Q]]:
    """``forkjoin_queue(feeds)`` puts a declared queue on local services for the rest of the test.

    Its Cloud Tasks queues are created, its join endpoint is served, and the test has a project of
    its own: nothing that another test left is seen. Gives the queue back; after the test it is
    closed, and as it was before.
    """
    project = f"test-{uuid.uuid4().hex[:12]}"
    bound: dict[str, ForkJoinQueue[Any]] = {}
    with contextlib.ExitStack() as stack:

        def bind(queue: Q) -> Q:
            if queue.name not in bound:
                stack.enter_context(_forkjoin_local_queues.on(queue, project))
            if bound.setdefault(queue.name, queue) is not queue:
                raise RuntimeError(f"another queue {queue.name!r} is in use in this test already")
            return queue

        yield bind
