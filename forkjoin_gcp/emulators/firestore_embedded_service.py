"""Our own Firestore, which needs no Java, as a child process."""

from __future__ import annotations

import json
from pathlib import Path

from .processes import module_process

_READY_TIMEOUT = 60.0


class EmbeddedFirestoreService:
    """Starts it on `port`, or a free one; its log goes to `directory`.

    With `data` it keeps its documents there. `address` is known once `wait_ready` returned.
    """

    name = "firestore"

    def __init__(self, directory: Path, *, data: Path | None = None, port: int = 0) -> None:
        self.address = ""
        arguments = ["--port", str(port)]
        if data is not None:
            arguments += ["--directory", str(data / "firestore")]
        log = directory / "firestore.log"
        self.process = module_process(self.name, "firestore_embedded", arguments, log)

    def wait_ready(self) -> None:
        """Returns when it serves. Raises LocalServiceError."""
        self.address = json.loads(self.process.read_line(_READY_TIMEOUT))["address"]

    def ask_to_stop(self) -> None:
        """Begins its end."""
        self.process.ask_to_stop()

    def stop(self) -> None:
        """Ends it and waits for that. Idempotent."""
        self.process.stop()
