"""Our own Cloud Tasks emulator as a child process."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

from .errors import LocalServiceError
from .processes import http_answers, http_json, module_process

_READY_TIMEOUT = 60.0
_EMPTY_TIMEOUT = 30.0
_NEEDED = ("aiohttp", "cryptography", "google.cloud.tasks_v2", "grpc", "jwt")


class CloudTasksService:
    """Starts the emulator on free ports, or the API on `port` and HTTP on the one after it; its
    log goes to `directory`. With `data` it keeps queues, tasks and used names there.

    `address` (of the API), `http_address` and `certs_url` are known once `wait_ready` returned.
    Raises LocalServiceError.
    """

    name = "cloud-tasks"

    def __init__(self, directory: Path, *, data: Path | None = None, port: int = 0) -> None:
        missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
        if missing:
            raise LocalServiceError(
                f"The Cloud Tasks emulator needs {', '.join(missing)}. Install it with "
                "`pip install 'forkjoin-gcp[local]'`."
            )
        self.address = self.http_address = self.certs_url = ""
        arguments = []
        if data is not None:
            arguments += ["--data", str(data / "cloud-tasks")]
        if port:
            arguments += ["--grpc-port", str(port), "--http-port", str(port + 1)]
        log = directory / "cloud-tasks.log"
        self.process = module_process(self.name, "cloud_tasks", arguments, log)

    def wait_ready(self) -> None:
        """Returns when it serves. Raises LocalServiceError."""
        addresses = json.loads(self.process.read_line(_READY_TIMEOUT))
        self.address = addresses["grpc_address"]
        self.http_address = addresses["http_address"]
        self.certs_url = addresses["certs_url"]

    def ask_to_stop(self) -> None:
        """Begins its end."""
        self.process.ask_to_stop()

    def stop(self) -> None:
        """Ends it and waits for that. Idempotent."""
        self.process.stop()


def answers(http_address: str) -> bool:
    """Whether an emulator's HTTP side at host:port answers."""
    return http_answers(http_address, "/health")


def empty(address: str, http_address: str) -> bool:
    """Drops the tasks of every queue of the emulator whose API is at `address`; whether it did."""
    # Imported here: most users of this module have no need of the client.
    import grpc
    from google.api_core.exceptions import GoogleAPICallError
    from google.cloud import tasks_v2
    from google.cloud.tasks_v2.services.cloud_tasks.transports import CloudTasksGrpcTransport

    stats = http_json(http_address, "/stats?recent=0")
    if stats is None:
        return False
    with grpc.insecure_channel(address) as channel:
        client = tasks_v2.CloudTasksClient(transport=CloudTasksGrpcTransport(channel=channel))
        try:
            for queue in stats["queues"]:
                client.purge_queue(name=queue, timeout=_EMPTY_TIMEOUT)
        except GoogleAPICallError:
            return False
    return True
