"""A whole queue on Memorystore as it is deployed: a cluster of three nodes behind TLS."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from forkjoin_gcp import Item
from tests.contracts.encrypted_valkey import EncryptedValkey, encrypted_valkey
from tests.integration.conftest import Declare, wait_until


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EncryptedValkey]:
    with encrypted_valkey(tmp_path_factory.mktemp("cluster"), "front", nodes=3) as made:
        yield made


@pytest.mark.parametrize("storage", ["firestore", "memorystore"])
def test_items_reach_their_handler_once(
    storage: str, cluster: EncryptedValkey, declare: Declare
) -> None:
    queue = declare(
        elsewhere={"FORKJOIN_MEMORYSTORE": cluster.url()},
        storage=storage, lanes=12, batch_period=0.2, batch_size=20, acquire_timeout=5.0,
    )  # fmt: skip
    handled: list[str] = []
    lock = threading.Lock()

    @queue.handler
    async def handle(item: Item[dict[str, Any]]) -> None:
        with lock:
            handled.append(item.id)

    with ThreadPoolExecutor(16) as pool:
        ids = list(pool.map(lambda n: queue.enqueue({"n": n}), range(200)))
        ids += [each for some in pool.map(_many(queue), range(8)) for each in some]
    wait_until(lambda: len(handled) >= len(ids))
    assert sorted(handled) == sorted(ids)
    assert queue.counters["breaker_opened"] == queue.counters["release_late"] == 0


def _many(queue: Any) -> Any:
    return lambda k: queue.enqueue_many({"n": k * 1_000 + n} for n in range(50))
