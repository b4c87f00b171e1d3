"""One child process: started in a group of its own, awaited, ended; never left behind."""

from __future__ import annotations

import atexit
import contextlib
import http.client
import json
import os
import secrets
import selectors
import signal
import socket
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from . import guardian
from .errors import LocalServiceError

LOOPBACK = "127.0.0.1"
_SOURCE_ROOT = Path(__file__).resolve().parents[2]
_LOG_LINES_SHOWN = 20
_PROBE_INTERVAL = 0.02


class ChildProcess:
    """A command that runs under a guardian and so never outlives this process, not even one that
    ends by SIGKILL (see `guardian`).

    The constructor starts it. Its standard error, and its standard output unless `piped`, go to
    the file `log`. Told to end, it has `grace` seconds before it is killed. A command that cannot
    be run shows as one that ended at once.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        log: Path,
        *,
        env: Mapping[str, str] | None = None,
        piped: bool = False,
        grace: float = 5.0,
    ) -> None:
        self.name = name
        self.log = log
        self._grace = grace
        self._owner = os.getpid()
        # An interrupt may come at any instruction from here on. Popen closes the pipe on its way
        # out of a failed start, and the guardian ends with the pipe: there is no moment at which
        # a child runs that nothing would end.
        with log.open("ab") as sink:
            self._guardian: subprocess.Popen[bytes] = subprocess.Popen(
                [sys.executable, "-I", "-S", guardian.__file__, str(grace), *command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE if piped else sink,
                stderr=sink,
                env=env,
                # A Ctrl-C in the terminal reaches the whole foreground group: children must not
                # die of it before their owner has decided.
                start_new_session=True,
            )
        _children.add(self)

    @property
    def pid(self) -> int:
        """The process group of the command, led by its guardian."""
        return self._guardian.pid

    @property
    def running(self) -> bool:
        """Whether the command has not ended yet."""
        return self._guardian.poll() is None

    def wait(self) -> int:
        """Blocks until the command has ended; its exit status."""
        return self._guardian.wait()

    def read_line(self, timeout: float) -> str:
        """The first line of the output of a `piped` command, which must write no more after it.

        Raises LocalServiceError when none comes within `timeout` seconds.
        """
        output = self._guardian.stdout
        assert output is not None
        line = b""
        deadline = time.monotonic() + timeout
        with output, selectors.DefaultSelector() as selector:
            selector.register(output, selectors.EVENT_READ)
            while not line.endswith(b"\n"):
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise self.failure(f"was not ready within {timeout:g} s")
                data = os.read(output.fileno(), 65_536)
                if not data:
                    raise self.failure("ended before it was ready")
                line += data
        return line.decode()

    def wait_ready(self, probe: Callable[[], bool], timeout: float) -> None:
        """Returns when `probe` says so. Raises LocalServiceError when the command ends before,
        or after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while True:
            ready = probe()
            # Looked at after the probe: if the child is gone, someone else answered it.
            if not self.running:
                raise self.failure("ended before it was ready")
            if ready:
                return
            if time.monotonic() > deadline:
                raise self.failure(f"was not ready within {timeout:g} s")
            time.sleep(_PROBE_INTERVAL)

    def failure(self, what: str) -> LocalServiceError:
        """An error that says what happened, with the end of the log."""
        try:
            lines = self.log.read_text(errors="replace").splitlines()[-_LOG_LINES_SHOWN:]
        except OSError:
            lines = []
        end_of_log = "".join(f"\n  {line}" for line in lines) or " (empty)"
        return LocalServiceError(f"{self.name} {what}. The end of its log {self.log}:{end_of_log}")

    def ask_to_stop(self) -> None:
        """Lets the guardian end the command; returns at once."""
        if self._owner == os.getpid():
            self.let_go()
            # A process forked from this one may still hold the pipe open.
            self._guardian.terminate()

    def let_go(self) -> None:
        """Closes this process's end of the pipe that keeps the guardian waiting."""
        if self._guardian.stdin is not None:
            self._guardian.stdin.close()

    def stop(self) -> None:
        """Ends the command and waits for its end. Idempotent; does nothing in a forked child."""
        if self._owner != os.getpid():
            return
        self.ask_to_stop()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._guardian.wait(self._grace + 2.0)
        # For a guardian that hangs, or was itself killed and left its command behind. (macOS
        # answers EPERM for a group of which only the unreaped leader is left.)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._guardian.pid, signal.SIGKILL)
        self._guardian.wait()
        if self._guardian.stdout is not None:
            self._guardian.stdout.close()
        _children.discard(self)


def module_process(name: str, module: str, arguments: Sequence[str], log: Path) -> ChildProcess:
    """A module of this very package as a child, also where the package is not installed. It tells
    that it is ready by one line (see `ChildProcess.read_line`)."""
    path = os.pathsep.join(filter(None, (str(_SOURCE_ROOT), os.environ.get("PYTHONPATH"))))
    return ChildProcess(
        name,
        [sys.executable, "-m", f"forkjoin_gcp.emulators.{module}", *arguments],
        log,
        env={**os.environ, "PYTHONPATH": path},
        piped=True,
    )


_children: weakref.WeakSet[ChildProcess] = weakref.WeakSet()


def _stop_all() -> None:
    for child in list(_children):
        child.ask_to_stop()
    for child in list(_children):
        child.stop()


def _let_all_go() -> None:
    for child in list(_children):
        child.let_go()


atexit.register(_stop_all)
# Without this a forked child would keep the services running after its parent died.
os.register_at_fork(after_in_child=_let_all_go)


def free_port() -> int:
    """A TCP port of 127.0.0.1 that was free a moment ago.

    Below the range from which systems take ports for outgoing connections, so that none of those
    takes it before the service does.
    """
    for _ in range(1_000):
        port = secrets.SystemRandom().randrange(20_000, 30_000)
        with socket.socket() as listener, contextlib.suppress(OSError):
            listener.bind((LOOPBACK, port))
            return port
    raise LocalServiceError(f"found no free port of {LOOPBACK} between 20000 and 29999")


def http_answers(address: str, path: str, *, method: str = "GET", timeout: float = 1.0) -> bool:
    """Whether the HTTP server at host:port answers 200. Takes no proxy, raises nothing."""
    connection = http.client.HTTPConnection(address, timeout=timeout)
    try:
        connection.request(method, path)
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def http_json(address: str, path: str, *, timeout: float = 5.0) -> Any:
    """What the HTTP server at host:port answers as JSON; None if it does not, or not with 200."""
    connection = http.client.HTTPConnection(address, timeout=timeout)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        body = response.read()
        return json.loads(body) if response.status == http.HTTPStatus.OK else None
    except (OSError, http.client.HTTPException, ValueError):
        return None
    finally:
        connection.close()
