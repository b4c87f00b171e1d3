"""The embedded Firestore keeps the project's own store contract, through one port and on disk."""

from __future__ import annotations

import asyncio
import uuid
from pathlib import Path

import pytest

from forkjoin_gcp import Services
from forkjoin_gcp.emulators.firestore_embedded import EmbeddedFirestore
from forkjoin_gcp.gcp.firestore import FirestoreStore
from forkjoin_gcp.names import Lane
from forkjoin_gcp.ports import Counters
from forkjoin_gcp.testing.store_contract import CHECKS, Check

every_check = pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)


def services_at(address: str) -> Services:
    return Services.from_env(
        {
            "FORKJOIN_PROJECT": f"test-{uuid.uuid4().hex[:12]}",
            "FIRESTORE_EMULATOR_HOST": address,
            "FORKJOIN_JOIN_URL": "http://127.0.0.1:9/forkjoin",
        }
    )


@pytest.mark.parametrize("kept", [False, True], ids=["in memory", "on disk"])
@every_check
def test_the_store_contract(check: Check, kept: bool, tmp_path: Path) -> None:
    async def run() -> None:
        directory = tmp_path if kept else None
        async with EmbeddedFirestore(directory=directory) as firestore:
            store = FirestoreStore(services_at(firestore.address), Counters())
            try:
                await check(store, Lane("checks", uuid.uuid4().hex[:12]))
            finally:
                await store.close()

    asyncio.run(run())
