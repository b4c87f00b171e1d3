"""Connecting where something is missing: said at once, by name."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from google.auth.exceptions import DefaultCredentialsError

from forkjoin_gcp import ConfigurationError, QueueConfig, Services
from forkjoin_gcp.gcp.connect import connect
from forkjoin_gcp.ports import Counters
from forkjoin_gcp.runtime import SystemClock


def test_without_credentials_it_says_what_they_are_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: Any, **__: Any) -> Any:
        raise DefaultCredentialsError("none here")

    monkeypatch.setattr("google.auth.default", missing)
    services = Services(
        project="p",
        location="l",
        memorystore="redis://127.0.0.1:9",
        join_url="https://join.example/forkjoin",
        invoker="tasks@p.iam.gserviceaccount.com",
    )
    with pytest.raises(ConfigurationError, match="no credentials for Cloud Tasks: none here"):
        asyncio.run(connect(QueueConfig("feeds"), services, Counters(), SystemClock()))
