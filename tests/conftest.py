"""Fixtures that every kind of test may ask for. Unit tests ask for none: they need no service."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator

import hypothesis
import pytest

from forkjoin_gcp import Services
from forkjoin_gcp.emulators import LocalServiceError, LocalServices

# A busy machine is no failure; under CI the same examples are tried every time.
hypothesis.settings.register_profile("local", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") == "true" else "local")


@pytest.fixture(scope="session")
def local_services() -> Iterator[LocalServices]:
    """Valkey, Firestore and Cloud Tasks on this machine, for the whole session.

    Where one cannot be had, tests that need it are skipped; under CI=true they fail.
    """
    try:
        services = LocalServices.start()
    except LocalServiceError as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(str(error))
    with services:
        yield services


@pytest.fixture
def services(local_services: LocalServices) -> Services:
    """Where the local services are, with a project of the test's own and no join endpoint."""
    environment = local_services.environment()
    environment["FORKJOIN_PROJECT"] = f"test-{uuid.uuid4().hex[:12]}"
    environment["FORKJOIN_JOIN_URL"] = "http://127.0.0.1:9/forkjoin"
    return Services.from_env(environment)
