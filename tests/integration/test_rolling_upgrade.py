"""Two deployments of a queue at once, as in a rolling upgrade: each item is handled, and once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from forkjoin_gcp.emulators import LocalServices
from forkjoin_gcp.endpoint.core import JoinEndpoint
from tests.integration.conftest import wait_until
from tests.integration.rollout import Queue, Rollout, rolling_out


@pytest.fixture
def rollout(local_services: LocalServices) -> Iterator[Rollout]:
    with rolling_out(local_services) as made:
        yield made


def enqueue(queues: list[Queue], items: int) -> list[str]:
    """Items from all of them at once, one a call."""
    calls: list[Callable[[dict[str, Any]], str]] = [queue.enqueue for queue in queues]
    with ThreadPoolExecutor(16) as pool:
        return sorted(pool.map(lambda n: calls[n % len(calls)]({"n": n}), range(items)))


def test_old_and_new_settings_share_a_queue(rollout: Rollout) -> None:
    """The same version: they write into each other's batches, and run each other's tasks."""
    old = rollout.deploy("old", batch_size=10)
    new = rollout.deploy("new", batch_size=25, lanes=3, shards=2, concurrency=10)
    rollout.serve(JoinEndpoint(old), JoinEndpoint(new))
    ids = enqueue([old, new], 400)
    ids += new.enqueue_many({"n": n} for n in range(150))
    wait_until(lambda: len(rollout.ids()) >= 550)
    assert rollout.ids() == sorted(ids), "each is handled, and once"
    assert rollout.labels() == {"old", "new"}
    assert old.dead_letters() == new.dead_letters() == []


def test_a_new_version_finishes_what_the_old_one_took(rollout: Rollout) -> None:
    """Another `version`: batches of their own. The old services end before their batches run."""
    old = rollout.deploy("old", version="v1", shards=2, batch_size=10)
    new = rollout.deploy("new", version="v2", shards=2)
    rollout.serve(JoinEndpoint(new))
    ids = enqueue([old, new], 300)
    old.close()
    wait_until(lambda: len(rollout.ids()) >= 300)
    assert rollout.ids() == ids
    assert rollout.labels() == {"new"}


def test_rolled_back_services_finish_what_the_new_ones_took(rollout: Rollout) -> None:
    """The way back: what was written with more lanes and shards is handled with fewer."""
    new = rollout.deploy("new", lanes=4, shards=3, batch_size=50)
    old = rollout.deploy("old", batch_size=10)
    rollout.serve(JoinEndpoint(old))
    ids = enqueue([new], 300)
    new.close()
    wait_until(lambda: len(rollout.ids()) >= 300)
    assert rollout.ids() == ids
