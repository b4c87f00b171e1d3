"""Firestore emulators that are not ours: one that runs already, and Google's jar under Java."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from .errors import LocalServiceError
from .processes import LOOPBACK, ChildProcess, free_port, http_answers

HOST_VARIABLE = "FIRESTORE_EMULATOR_HOST"
_MAIN_CLASS = "com.google.cloud.datastore.emulator.firestore.CloudFirestore"
_JAR_IN_SDK = Path("platform", "cloud-firestore-emulator", "cloud-firestore-emulator.jar")
_COMMON_SDK_ROOTS = (
    "/usr/lib/google-cloud-sdk",
    "/usr/share/google-cloud-sdk",
    "/opt/google-cloud-sdk",
    "/opt/google-cloud-cli",
    "/usr/local/share/google-cloud-sdk",
    "/opt/homebrew/share/google-cloud-sdk",
    "/snap/google-cloud-cli/current",
    "~/google-cloud-sdk",
)
_READY_TIMEOUT = 60.0
_SHUTDOWN_TIMEOUT = 2.0
_EMPTY_TIMEOUT = 30.0


class GivenFirestore:
    """The emulator that FIRESTORE_EMULATOR_HOST names: neither started nor stopped here."""

    name = "firestore"
    process = None

    def __init__(self, address: str) -> None:
        self.address = address

    def wait_ready(self) -> None:
        """Returns when it answers. Raises LocalServiceError."""
        if not answers(self.address):
            raise LocalServiceError(
                f"{HOST_VARIABLE} is {self.address!r}, but no Firestore emulator answers there. "
                "Start it, or unset the variable to have one started."
            )

    def ask_to_stop(self) -> None:
        """Does nothing: it is not ours."""

    def stop(self) -> None:
        """Does nothing: it is not ours."""


class GoogleFirestore:
    """Starts Google's emulator on `port`, or a free one; its log goes to `directory`. It keeps
    documents in memory only. Raises LocalServiceError."""

    name = "firestore"

    def __init__(self, directory: Path, *, port: int = 0) -> None:
        java, jar = find_java(), find_jar()
        port = port or free_port()
        self.address = f"{LOOPBACK}:{port}"
        self.process = ChildProcess(
            self.name,
            [
                # Unbounded, the heap of a long run grows to gigabytes.
                *(str(java), "-Xmx512m", "-XX:+UseSerialGC", "-cp", str(jar), _MAIN_CLASS),
                *("start", f"--host={LOOPBACK}", f"--port={port}"),
            ],
            directory / "firestore.log",
        )

    def wait_ready(self) -> None:
        """Returns when it answers. Raises LocalServiceError."""
        self.process.wait_ready(lambda: answers(self.address), _READY_TIMEOUT)

    def ask_to_stop(self) -> None:
        """Begins its end."""
        if self.process.running:
            http_answers(self.address, "/shutdown", method="POST", timeout=_SHUTDOWN_TIMEOUT)
            self.process.ask_to_stop()

    def stop(self) -> None:
        """Ends it and waits for that. Idempotent."""
        self.ask_to_stop()
        self.process.stop()


def answers(address: str) -> bool:
    """Whether an emulator at host:port answers."""
    return http_answers(address, "/")


def empty(address: str, project: str, database: str = "(default)") -> bool:
    """Drops all documents of a database of the emulator at host:port; whether it did. Ours and
    Google's both take it."""
    path = f"/emulator/v1/projects/{project}/databases/{database}/documents"
    return http_answers(address, path, method="DELETE", timeout=_EMPTY_TIMEOUT)


def find_java() -> Path:
    """The java of JAVA_HOME, else of the PATH. Raises LocalServiceError."""
    home = os.environ.get("JAVA_HOME")
    in_home = Path(home, "bin", "java") if home else None
    if in_home is not None and os.access(in_home, os.X_OK):
        return in_home
    found = shutil.which("java")
    if found is None:
        raise LocalServiceError(
            "Java was not found, and Google's Firestore emulator runs on it. Install a Java "
            "runtime, 17 or newer (Debian: apt install default-jre-headless; macOS: brew install "
            "openjdk), or set JAVA_HOME; or leave the choice of Google's out: the embedded one "
            "needs no Java."
        )
    return Path(found)


def find_jar() -> Path:
    """The emulator's jar in a gcloud SDK or in the cache of firebase-tools.

    Raises LocalServiceError.
    """
    for candidate in _jar_candidates():
        if candidate.is_file():
            return candidate
    raise LocalServiceError(
        "Google's Firestore emulator (cloud-firestore-emulator.jar) was not found. Install it "
        "with `gcloud components install cloud-firestore-emulator` (Debian package: "
        "google-cloud-cli-firestore-emulator) or `npx firebase-tools setup:emulators:firestore`; "
        "or leave the choice of Google's out: the embedded one needs no jar."
    )


def _jar_candidates() -> Iterator[Path]:
    gcloud = shutil.which("gcloud")
    if gcloud is not None:
        yield Path(gcloud).resolve().parent.parent / _JAR_IN_SDK
    root = os.environ.get("CLOUDSDK_ROOT_DIR")
    if root:
        yield Path(root) / _JAR_IN_SDK
    for common in _COMMON_SDK_ROOTS:
        with contextlib.suppress(RuntimeError):  # no home directory
            yield Path(common).expanduser() / _JAR_IN_SDK
    yield from _firebase_jars()
    if gcloud is not None:
        # Last, as it takes a second: finds the SDK behind a wrapper script on the PATH.
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            command = [gcloud, "info", "--format=value(installation.sdk_root)"]
            answer = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
            yield Path(answer.stdout.strip()) / _JAR_IN_SDK


def _firebase_jars() -> list[Path]:
    """The jars that firebase-tools has downloaded, newest version first."""
    try:
        cache = Path(
            os.environ.get("FIREBASE_EMULATORS_PATH") or Path.home() / ".cache/firebase/emulators"
        )
    except RuntimeError:  # no home directory
        return []
    return sorted(
        cache.glob("cloud-firestore-emulator-v*.jar"),
        key=lambda jar: [int(number) for number in re.findall(r"\d+", jar.name)],
        reverse=True,
    )
