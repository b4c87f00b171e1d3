"""All the services of the cloud on this machine, started and ended together."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol, get_args

from . import record
from .cloud_tasks_service import CloudTasksService
from .errors import LocalServiceError
from .firestore import HOST_VARIABLE, GivenFirestore, GoogleFirestore
from .firestore_embedded_service import EmbeddedFirestoreService
from .processes import ChildProcess
from .valkey import ValkeyService

FirestoreChoice = Literal["embedded", "google"]
CHOICE_VARIABLE = "FORKJOIN_FIRESTORE"
"""Chooses the Firestore where nothing else does."""

PORTS = 4
"""How many consecutive ports are taken from a given first one: Valkey, Firestore, the Cloud Tasks
API and the HTTP side of that emulator."""

DEFAULT_PROJECT = "forkjoin-local"
DEFAULT_LOCATION = "us-central1"


class _Service(Protocol):
    """One service. Its constructor starts it, without waiting."""

    @property
    def name(self) -> str:
        """What it is called, in messages too."""

    @property
    def address(self) -> str:
        """host:port, once it is ready."""

    @property
    def process(self) -> ChildProcess | None:
        """What runs it; None if it is not ours."""

    def wait_ready(self) -> None:
        """Returns when it serves. Raises LocalServiceError."""

    def ask_to_stop(self) -> None:
        """Begins its end and returns at once."""

    def stop(self) -> None:
        """Ends it and waits for that. Idempotent."""


class LocalServices:
    """Valkey, Firestore and Cloud Tasks on free ports of 127.0.0.1, ready for use.

    Made by `start`, ended by `stop` or by leaving a `with` block. They never outlive the process
    that started them, whichever way it ends.
    """

    def __init__(self, directory: Path, *, project: str, location: str, temporary: bool) -> None:
        self.directory = directory
        self.project = project
        self.location = location
        self._owner = os.getpid()
        self._temporary = temporary
        self._started: list[_Service] = []
        self._cloud_tasks: CloudTasksService | None = None
        self._environment: dict[str, str] = {}
        self._held = contextlib.ExitStack()

    @classmethod
    def start(
        cls,
        directory: Path | None = None,
        *,
        project: str = DEFAULT_PROJECT,
        location: str = DEFAULT_LOCATION,
        firestore: FirestoreChoice | None = None,
        data: Path | None = None,
        port: int = 0,
    ) -> LocalServices:
        """Starts all three at once and returns when all are ready, in a second or two.

        Logs go to `directory`; without one, to a temporary one that `stop` removes. `firestore`
        chooses ours or Google's; without it the emulator that FIRESTORE_EMULATOR_HOST names is
        used as it is, else FORKJOIN_FIRESTORE chooses, else it is ours. With `data` all is kept
        in that directory, and found there by the next start. With `port`, it and the PORTS - 1
        after it are taken instead of free ones.

        Raises LocalServiceError when something is missing or does not start. Then, and on any
        interrupt, nothing is left running.
        """
        home = Path(tempfile.mkdtemp(prefix="forkjoin-local-")) if directory is None else directory
        services = cls(home, project=project, location=location, temporary=directory is None)
        try:
            home.mkdir(parents=True, exist_ok=True)
            services._start(firestore, data, port)
        except BaseException:
            services.stop()
            raise
        return services

    def _start(self, choice: FirestoreChoice | None, data: Path | None, port: int) -> None:
        if data is not None:
            data = data.absolute()
            data.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._held.enter_context(record.using_data(data))
        valkey_port, firestore_port, cloud_tasks_port = (
            (port, port + 1, port + 2) if port else (0, 0, 0)
        )
        # The slowest first. Each constructor only starts a process; the waiting overlaps.
        firestore = _firestore(choice, self.directory, data, firestore_port)
        self._started.append(firestore)
        cloud_tasks = CloudTasksService(self.directory, data=data, port=cloud_tasks_port)
        self._cloud_tasks = cloud_tasks
        self._started.append(cloud_tasks)
        valkey = ValkeyService(self.directory, data=data, port=valkey_port)
        self._started.append(valkey)
        for service in (valkey, cloud_tasks, firestore):
            service.wait_ready()
        self._environment = {
            "FORKJOIN_PROJECT": self.project,
            "FORKJOIN_LOCATION": self.location,
            "FORKJOIN_MEMORYSTORE": f"redis://{valkey.address}",
            HOST_VARIABLE: firestore.address,
            "CLOUD_TASKS_EMULATOR_HOST": cloud_tasks.address,
            "FORKJOIN_INVOKER": f"invoker@{self.project}.iam.gserviceaccount.com",
            "FORKJOIN_CERTS_URL": cloud_tasks.certs_url,
        }

    def environment(self) -> dict[str, str]:
        """The environment variables under which forkjoin_gcp uses these services."""
        return dict(self._environment)

    @property
    def cloud_tasks_admin(self) -> str:
        """Base URL of the HTTP side of the Cloud Tasks emulator: /stats and /health."""
        assert self._cloud_tasks is not None
        return f"http://{self._cloud_tasks.http_address}"

    @property
    def processes(self) -> list[ChildProcess]:
        """The children that run the services; fewer than three if Firestore is not ours."""
        return [service.process for service in self._started if service.process is not None]

    def create_queue(
        self,
        name: str,
        *,
        location: str | None = None,
        max_dispatches_per_second: float | None = None,
        max_concurrent_dispatches: int | None = None,
        max_attempts: int | None = None,
        max_retry_duration: float | None = None,
        min_backoff: float | None = None,
        max_backoff: float | None = None,
        max_doublings: int | None = None,
    ) -> str:
        """Creates a Cloud Tasks queue and returns its full name. `name` is the short one;
        durations are in seconds; what is not given takes the service's default.

        Raises google.api_core.exceptions.GoogleAPICallError, as the client does.
        """
        # Imported here: most users of this module have no need of the client.
        import grpc
        from google.cloud import tasks_v2
        from google.cloud.tasks_v2.services.cloud_tasks.transports import CloudTasksGrpcTransport
        from google.protobuf import duration_pb2  # type: ignore[import-untyped]

        def duration(seconds: float | None) -> Any:
            if seconds is None:
                return None
            return duration_pb2.Duration(
                seconds=int(seconds), nanos=round((seconds - int(seconds)) * 1e9)
            )

        parent = f"projects/{self.project}/locations/{location or self.location}"
        queue = tasks_v2.Queue(
            name=f"{parent}/queues/{name}",
            rate_limits=tasks_v2.RateLimits(
                max_dispatches_per_second=max_dispatches_per_second,
                max_concurrent_dispatches=max_concurrent_dispatches,
            ),
            retry_config=tasks_v2.RetryConfig(
                max_attempts=max_attempts,
                max_retry_duration=duration(max_retry_duration),
                min_backoff=duration(min_backoff),
                max_backoff=duration(max_backoff),
                max_doublings=max_doublings,
            ),
        )
        with grpc.insecure_channel(self._environment["CLOUD_TASKS_EMULATOR_HOST"]) as channel:
            client = tasks_v2.CloudTasksClient(transport=CloudTasksGrpcTransport(channel=channel))
            return str(client.create_queue(parent=parent, queue=queue).name)

    def stop(self) -> None:
        """Ends all that was started and waits for it. Idempotent; does nothing in a process
        forked from the one that started them."""
        if self._owner != os.getpid():
            return
        for service in self._started:
            service.ask_to_stop()
        for service in self._started:
            service.stop()
        self._started.clear()
        self._held.close()
        if self._temporary:
            shutil.rmtree(self.directory, ignore_errors=True)

    def __enter__(self) -> LocalServices:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()


def _firestore(
    choice: FirestoreChoice | None, directory: Path, data: Path | None, port: int
) -> _Service:
    """The one that is chosen, started. Raises LocalServiceError."""
    given = os.environ.get(HOST_VARIABLE)
    if choice is None and given:
        return GivenFirestore(given)
    chosen = choice or os.environ.get(CHOICE_VARIABLE) or "embedded"
    if chosen == "embedded":
        return EmbeddedFirestoreService(directory, data=data, port=port)
    if chosen != "google":
        choices = " or ".join(get_args(FirestoreChoice))
        raise LocalServiceError(f"{CHOICE_VARIABLE} is {chosen!r}; it can be {choices}.")
    if data is not None:
        raise LocalServiceError(
            f"Google's Firestore emulator keeps nothing on disk, so a data directory ({data}) "
            "would be lost on. Use the embedded one, or no data directory."
        )
    return GoogleFirestore(directory, port=port)
