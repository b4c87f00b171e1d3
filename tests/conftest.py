"""Fixtures that every kind of test may ask for. Unit tests ask for none: they need no service."""

from __future__ import annotations

import os
import uuid

import hypothesis
import pytest

from forkjoin_gcp import Services
from forkjoin_gcp.emulators import LocalServices
from forkjoin_gcp.testing import plugin

# A busy machine is no failure; under CI the same examples are tried every time.
hypothesis.settings.register_profile("local", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") == "true" else "local")


# Here as well as by the plugin's entry point: a checkout need not be installed for its tests.
_forkjoin_local_queues = plugin._forkjoin_local_queues
forkjoin_queue = plugin.forkjoin_queue
forkjoin_services = plugin.forkjoin_services


@pytest.fixture(scope="session")
def local_services(forkjoin_services: LocalServices) -> LocalServices:
    """Valkey, Firestore and Cloud Tasks on this machine, as users' tests have them."""
    return forkjoin_services


@pytest.fixture
def services(local_services: LocalServices) -> Services:
    """Where the local services are, with a project of the test's own and no join endpoint."""
    environment = local_services.environment()
    environment["FORKJOIN_PROJECT"] = f"test-{uuid.uuid4().hex[:12]}"
    environment["FORKJOIN_JOIN_URL"] = "http://127.0.0.1:9/forkjoin"
    return Services.from_env(environment)
