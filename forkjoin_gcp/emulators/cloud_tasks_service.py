"""Our own Cloud Tasks emulator as a child process."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path

from .errors import LocalServiceError
from .processes import ChildProcess, http_answers

_READY_TIMEOUT = 60.0
_NEEDED = ("aiohttp", "cryptography", "google.cloud.tasks_v2", "grpc", "jwt")
_SOURCE_ROOT = Path(__file__).resolve().parents[2]


class CloudTasksService:
    """Starts the emulator on free ports; its log goes to `directory`.

    `address` (of the API), `http_address` and `certs_url` are known once `wait_ready` returned.
    Raises LocalServiceError.
    """

    name = "cloud-tasks"

    def __init__(self, directory: Path) -> None:
        missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
        if missing:
            raise LocalServiceError(
                f"The Cloud Tasks emulator needs {', '.join(missing)}. Install it with "
                "`pip install 'forkjoin-gcp[local]'`."
            )
        self.address = self.http_address = self.certs_url = ""
        # The child must run this very package, also where it is not installed.
        path = os.pathsep.join(filter(None, (str(_SOURCE_ROOT), os.environ.get("PYTHONPATH"))))
        self.process = ChildProcess(
            self.name,
            [sys.executable, "-m", "forkjoin_gcp.emulators.cloud_tasks"],
            directory / "cloud-tasks.log",
            env={**os.environ, "PYTHONPATH": path},
            piped=True,
        )

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
