"""Joins a queue to its services on Google Cloud, or to their emulators."""

from __future__ import annotations

from forkjoin_gcp.config import QueueConfig, Services
from forkjoin_gcp.gcp.cloud_tasks import CloudTasksScheduler
from forkjoin_gcp.gcp.instance import open_client
from forkjoin_gcp.gcp.memorystore import MemorystoreIndex
from forkjoin_gcp.importing import one_at_a_time
from forkjoin_gcp.ports import Clock, Counters, Ports, WorkStore


async def connect(
    config: QueueConfig, services: Services, counters: Counters, clock: Clock
) -> Ports:
    """The ports of one queue. To be called on the event loop that will use them.

    Raises ConfigurationError for what is missing. Nothing is contacted before it is used, but for
    the Memorystore API where ``services.memorystore`` is an instance's name.
    """
    scheduler = CloudTasksScheduler(services, counters)
    store: WorkStore
    client = await open_client(services, config.acquire_timeout)
    # Only the store in use is loaded: its client library is most of a cold start.
    if config.storage == "memorystore":
        with one_at_a_time:
            from forkjoin_gcp.gcp.memorystore_store import MemorystoreStore

        store = MemorystoreStore(client, config.expire_after, counters)
    else:
        with one_at_a_time:
            from forkjoin_gcp.gcp.firestore import FirestoreStore

        store = FirestoreStore(services, counters)
    return Ports(MemorystoreIndex(client, config, counters), store, scheduler, clock)
