"""What docs/operations.md tells to do, done: pausing, renaming, restoring a database."""

from __future__ import annotations

import time
from collections.abc import Iterator

import grpc
import pytest
import redis
from google.auth.credentials import AnonymousCredentials
from google.cloud import firestore
from google.cloud.tasks_v2 import CloudTasksClient
from google.cloud.tasks_v2.services.cloud_tasks.transports import CloudTasksGrpcTransport

from forkjoin_gcp import QueueConfig, Services
from forkjoin_gcp.emulators import LocalServices
from forkjoin_gcp.endpoint.core import JoinEndpoint
from forkjoin_gcp.gcp.connect import connect
from forkjoin_gcp.gcp.firestore_documents import SEGMENTS
from forkjoin_gcp.names import Lane
from forkjoin_gcp.ports import Clock, Counters, Ports
from tests.integration.conftest import wait_until
from tests.integration.rollout import Rollout, rolling_out

SWEEP_AFTER = 60.0


@pytest.fixture
def rollout(local_services: LocalServices) -> Iterator[Rollout]:
    with rolling_out(local_services) as made:
        yield made


@pytest.fixture
def tasks(local_services: LocalServices) -> Iterator[CloudTasksClient]:
    host = local_services.environment()["CLOUD_TASKS_EMULATOR_HOST"]
    with grpc.insecure_channel(host) as channel:
        yield CloudTasksClient(transport=CloudTasksGrpcTransport(channel=channel))


def task_queue(rollout: Rollout) -> str:
    services = rollout.services
    return f"projects/{services.project}/locations/{services.location}/queues/{rollout.name}-1"


def test_a_paused_queue_takes_items_and_runs_them_when_it_is_resumed(
    rollout: Rollout, tasks: CloudTasksClient
) -> None:
    queue = rollout.deploy("here")
    rollout.serve(JoinEndpoint(queue))
    tasks.pause_queue(name=task_queue(rollout))
    ids = queue.enqueue_many({"n": n} for n in range(150))
    ids.append(queue.enqueue({"n": 150}))
    wait_until(lambda: len(list(tasks.list_tasks(parent=task_queue(rollout)))) >= 1)
    assert rollout.ids() == []
    tasks.resume_queue(name=task_queue(rollout))
    wait_until(lambda: len(rollout.ids()) >= 151)
    assert rollout.ids() == sorted(ids)


def test_a_queue_is_renamed_by_serving_both(
    rollout: Rollout, local_services: LocalServices
) -> None:
    old = rollout.deploy("old")
    new = rollout.deploy("new", name=f"{rollout.name}-renamed")
    local_services.create_queue(new.config.task_queue(1), max_attempts=-1)
    rollout.serve(JoinEndpoint(old, new))
    ids = [old.enqueue({"n": 1}), *new.enqueue_many({"n": n} for n in range(20))]
    wait_until(lambda: len(rollout.ids()) >= 21)
    assert rollout.ids() == sorted(ids)
    assert rollout.labels() == {"old", "new"}


class Later:
    """A clock by which everything stored so far is older than ``sweep_after``."""

    def now(self) -> float:
        return time.time() + SWEEP_AFTER + 1


async def connect_later(
    config: QueueConfig, services: Services, counters: Counters, _clock: Clock
) -> Ports:
    return await connect(config, services, counters, Later())


def restore(services: Services, database: str) -> int:
    """Every segment of the queue's database, in another one; how many there are."""
    clients = [
        firestore.Client(services.project, AnonymousCredentials(), database=name)
        for name in (services.database, database)
    ]
    copied = 0
    for document in clients[0].collection_group(SEGMENTS).stream():
        clients[1].document(document.reference.path).set(document.to_dict())
        copied += 1
    for client in clients:
        client.close()
    return copied


def test_a_restored_database_is_swept_and_handled(
    rollout: Rollout, tasks: CloudTasksClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With an empty Memorystore, and without a single task that there was."""
    services = rollout.services
    assert services.firestore_emulator_host
    monkeypatch.setenv("FIRESTORE_EMULATOR_HOST", services.firestore_emulator_host)
    before = rollout.deploy("before", batch_size=20)
    tasks.pause_queue(name=task_queue(rollout))
    ids = before.enqueue_many({"n": n} for n in range(150))
    before.close()
    database = f"restored-{rollout.name}"
    assert restore(services, database) >= 8
    tasks.purge_queue(name=task_queue(rollout))
    with redis.Redis.from_url(str(services.memorystore)) as valkey:
        assert valkey.delete(Lane(rollout.name, "v1").key) == 1

    restored = {"services": services.model_copy(update={"database": database})}
    after = rollout.deploy("after", **restored)
    sweeper = rollout.deploy("sweeper", connect=connect_later, sweep_after=SWEEP_AFTER, **restored)
    rollout.serve(JoinEndpoint(after))
    tasks.resume_queue(name=task_queue(rollout))
    assert not sweeper.sweep().failed
    wait_until(lambda: len(rollout.ids()) >= 150)
    ids += [after.enqueue({"n": 150})]
    wait_until(lambda: len(rollout.ids()) >= 151)
    assert rollout.ids() == sorted(ids)
    assert rollout.labels() == {"after"}
