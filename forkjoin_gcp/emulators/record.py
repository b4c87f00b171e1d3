"""What a running set of local services leaves in its directory, for `stop`, `status` and `env`.

Whoever runs the services holds a lock on `lock` for as long as it lives; the kernel drops it
however that process ends. So a process id read from `state.json` is trusted, and signalled, only
while the lock is held: it cannot be a stranger that got the number later.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from .errors import LocalServiceError

_STATE = "state.json"
_LOCK = "lock"
_CHECK_INTERVAL = 0.05
_LOCK_ATTEMPTS = 5


@dataclass(frozen=True, slots=True)
class ServiceRecord:
    """One service: what it is for others, and where it answers for its health (host:port)."""

    name: str
    address: str
    health_address: str
    process: int | None
    """Its process group; None for a Firestore emulator that is not ours."""


@dataclass(frozen=True, slots=True)
class Record:
    """Who runs the services, and where they are."""

    pid: int
    environment: dict[str, str]
    services: list[ServiceRecord]


def default_directory() -> Path:
    """A directory of this user alone below the system's temporary one."""
    return Path(tempfile.gettempdir()) / f"forkjoin-local-{os.getuid()}"


def prepare(directory: Path) -> None:
    """Makes the directory, closed to others. Raises LocalServiceError as `read`."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    check_owner(directory)


def check_owner(directory: Path) -> None:
    """Another user's record could have us signal a process of their choice."""
    if directory.exists() and directory.stat().st_uid != os.getuid():
        raise LocalServiceError(f"{directory} belongs to another user. Choose another with --dir.")


@contextlib.contextmanager
def running_here(directory: Path) -> Iterator[None]:
    """Holds the lock of the directory. Raises LocalServiceError when another process does."""
    with (directory / _LOCK).open("ab") as lock:
        for attempts_left in reversed(range(_LOCK_ATTEMPTS)):
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not attempts_left:
                    raise LocalServiceError(
                        f"The local services of {directory} are running already, or just "
                        "starting or stopping. `stop` ends them."
                    ) from None
                # `is_held` of another process may have it for a moment.
                time.sleep(_CHECK_INTERVAL)
        # What is left of a run that was killed says nothing about this one.
        (directory / _STATE).unlink(missing_ok=True)
        try:
            yield
        finally:
            (directory / _STATE).unlink(missing_ok=True)


@contextlib.contextmanager
def using_data(directory: Path) -> Iterator[None]:
    """Holds the directory that services keep their data in, for one set of services alone: two
    Valkeys would spoil each other's files. Raises LocalServiceError when another has it."""
    with (directory / _LOCK).open("ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LocalServiceError(f"{directory} is in use by other local services.") from None
        yield


def write(directory: Path, record: Record) -> None:
    """Puts the record in place, whole."""
    new = directory / f"{_STATE}.new"
    new.write_text(json.dumps(asdict(record), indent=2) + "\n")
    new.replace(directory / _STATE)


def read(directory: Path) -> Record | None:
    """The record of the services that run now; None if none do or they are not ready.

    Raises LocalServiceError when the directory belongs to another user.
    """
    check_owner(directory)
    if not is_held(directory):
        return None
    try:
        fields = json.loads((directory / _STATE).read_text())
    except FileNotFoundError:
        return None
    fields["services"] = [ServiceRecord(**service) for service in fields["services"]]
    return Record(**fields)


def is_held(directory: Path) -> bool:
    """Whether some process runs, starts or stops services in the directory."""
    try:
        with (directory / _LOCK).open("rb") as lock:
            # Shared, so that two who look do not see each other.
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def stop(directory: Path, timeout: float = 20.0) -> bool:
    """Ends the process that runs the services, which ends them, and waits for it. False if there
    was none. After `timeout` seconds it is killed; the services then end on their own.

    Raises LocalServiceError when it is only starting, and so has not written who it is.
    """
    record = read(directory)
    if record is None:
        if is_held(directory):
            raise LocalServiceError(
                f"The local services of {directory} are just starting or stopping; try again."
            )
        return False
    with contextlib.suppress(ProcessLookupError):
        os.kill(record.pid, signal.SIGTERM)
    deadline = time.monotonic() + timeout
    while is_held(directory):
        if time.monotonic() > deadline:
            with contextlib.suppress(ProcessLookupError):
                os.kill(record.pid, signal.SIGKILL)
            deadline += timeout
        time.sleep(_CHECK_INTERVAL)
    return True
