"""Fixtures that every kind of test may ask for. Unit tests ask for none: they need no service."""

from __future__ import annotations

import contextlib
import os
import signal
import uuid
from collections.abc import Iterator

import hypothesis
import pytest

from forkjoin_gcp import Services
from forkjoin_gcp.emulators import LocalServiceError, LocalServices
from forkjoin_gcp.emulators.firestore import HOST_VARIABLE, GoogleFirestore
from forkjoin_gcp.testing import plugin

# A shell has its background jobs ignore SIGINT, and what they start would, too; tests send it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

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


@pytest.fixture(scope="session")
def googles_address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Google's Firestore emulator; one that runs already may be named by FIRESTORE_COMPARED_WITH.

    Where Java or the jar is missing, what asks for it is skipped with the reason; under CI=true it
    fails.
    """
    address = os.environ.get("FIRESTORE_COMPARED_WITH")
    with contextlib.ExitStack() as stack:
        if not address:
            try:
                service = GoogleFirestore(tmp_path_factory.mktemp("google"))
                stack.callback(service.stop)
                service.wait_ready()
            except LocalServiceError as error:
                if os.environ.get("CI") == "true":
                    raise
                pytest.skip(str(error))
            address = service.address
        yield address


on_both_firestores = pytest.mark.parametrize(
    "local_environment", ["embedded", "google"], indirect=True
)
"""Runs a test of local services twice: on the embedded Firestore, and on Google's emulator."""


@pytest.fixture
def local_environment(
    local_services: LocalServices, request: pytest.FixtureRequest
) -> dict[str, str]:
    """Where the local services are, as environment variables. See ``on_both_firestores``."""
    environment = local_services.environment()
    if getattr(request, "param", "embedded") == "google":
        environment[HOST_VARIABLE] = request.getfixturevalue("googles_address")
    return environment


@pytest.fixture
def services(local_environment: dict[str, str]) -> Services:
    """Where the local services are, with a project of the test's own and no join endpoint."""
    environment = dict(local_environment)
    environment["FORKJOIN_PROJECT"] = f"test-{uuid.uuid4().hex[:12]}"
    environment["FORKJOIN_JOIN_URL"] = "http://127.0.0.1:9/forkjoin"
    return Services.from_env(environment)
