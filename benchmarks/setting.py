"""What every process of a run needs to know, and the items that all sides are given."""

from __future__ import annotations

import json
from dataclasses import dataclass

from typing_extensions import TypedDict  # pydantic asks for this one before Python 3.12

from forkjoin_gcp import Services

ITEM_BYTES = 1024
"""Size of an item's JSON text."""


class Work(TypedDict):
    """An item: two flat fields, as a crawler's would be."""

    url: str
    body: str


def make_items(count: int) -> list[Work]:
    """Different items of ITEM_BYTES of compact JSON each."""
    items: list[Work] = []
    for number in range(count):
        work = Work(url=f"https://example.com/feeds/{number:08d}.xml", body="")
        missing = ITEM_BYTES - len(json.dumps(work, separators=(",", ":")))
        work["body"] = (f"{number:08d} " * ITEM_BYTES)[:missing]
        items.append(work)
    return items


@dataclass(frozen=True, slots=True)
class Setting:
    """Where the local services are, as environment variables say it."""

    environment: dict[str, str]
    join_url: str = "http://127.0.0.1:9/forkjoin"
    """Port 9 discards: nothing answers there, and nothing is dispatched while it stands here."""

    def services(self, join_url: str | None = None) -> Services:
        return Services.from_env(
            {**self.environment, "FORKJOIN_JOIN_URL": join_url or self.join_url}
        )

    @property
    def project(self) -> str:
        return self.environment["FORKJOIN_PROJECT"]

    @property
    def location(self) -> str:
        return self.environment["FORKJOIN_LOCATION"]

    @property
    def valkey_url(self) -> str:
        return self.environment["FORKJOIN_MEMORYSTORE"]

    @property
    def firestore(self) -> str:
        return self.environment["FIRESTORE_EMULATOR_HOST"]

    @property
    def cloud_tasks(self) -> str:
        return self.environment["CLOUD_TASKS_EMULATOR_HOST"]
