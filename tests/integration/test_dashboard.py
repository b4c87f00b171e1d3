"""The dashboard of the local services: what it says, and that a browser can show it."""

from __future__ import annotations

import http.client
import os
import re
import shutil
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.cloud import tasks_v2
from google.cloud.tasks_v2.services.cloud_tasks.transports import CloudTasksGrpcTransport

from forkjoin_gcp import Item, Reject
from forkjoin_gcp.emulators import LocalServiceError, LocalServices
from forkjoin_gcp.emulators.dashboard import Dashboard

from .conftest import Declare, wait_until

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--hide-scrollbars", "--no-proxy-server", "--window-size=1280,2000"),
)
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def local_services() -> Iterator[LocalServices]:
    """Services of this module's own: a page shows the first rows of what there is, and other tests
    leave theirs behind."""
    with LocalServices.start() as services:
        yield services


@pytest.fixture
def dashboard(local_services: LocalServices) -> Iterator[Dashboard]:
    with Dashboard(local_services.environment(), local_services.cloud_tasks_admin) as shown:
        yield shown


@pytest.fixture
def busy(declare: Declare) -> Iterator[Any]:
    """A queue with something in every table: a handler that is at work, a dead letter, a batch
    that is gathering, and one that ran."""
    queue = declare(batch_period=0.2, batch_size=20)
    later = declare(batch_period=30)
    release, begun = threading.Event(), threading.Event()

    @queue.handler(concurrency=20)
    def handle(item: Item[Any]) -> None:
        if item.payload["kind"] == "hopeless":
            raise Reject("there is no such page")
        if item.payload["kind"] == "slow":
            begun.set()
            release.wait(30)

    queue.enqueue_many({"kind": "hopeless", "n": n} for n in range(3))
    wait_until(lambda: len(queue.dead_letters()) == 3)
    queue.enqueue_many({"kind": "slow", "n": n} for n in range(5))
    assert begun.wait(30)
    later.handler(lambda item: None)
    later.enqueue_many({"kind": "later", "n": n} for n in range(42))
    try:
        yield queue, later
    finally:
        release.set()


def page(dashboard: Dashboard, path: str = "/") -> str:
    with urllib.request.urlopen(f"http://{dashboard.address}{path}", timeout=30) as answer:
        return str(answer.read().decode())


def section(html: str, name: str) -> str:
    """The text of one table, tags taken out."""
    found = re.search(rf'<section id="{name}">(.*?)</section>', html, re.DOTALL)
    assert found is not None
    return " ".join(re.sub(r"<[^>]*>", " ", found[1]).split())


def test_every_table_shows_what_there_is(dashboard: Dashboard, busy: Any) -> None:
    queue, later = busy
    wait_until(lambda: section(page(dashboard), "dispatches").count("200") >= 1)
    html = page(dashboard)
    name = queue.config.name
    assert '<p class="problem"><b>' not in html
    assert f"{name}-1 running" in section(html, "queues")
    assert re.search(rf"{name}-1 running \d+ ms ago|{name}-1 running \d", section(html, "tasks"))
    assert re.search(rf"{later.config.name}-1 waiting in \d+", section(html, "tasks"))
    assert re.search(rf"{name}-1 tombstone", section(html, "tasks"))
    assert re.search(rf"{name}-1 200 0 [\d.]+ m?s ago", section(html, "dispatches"))
    assert re.search(
        rf"{later.config.name}\.v1 lane 0 \d+ 0 42 100 scheduled open", section(html, "indexes")
    )
    assert f"{later.config.name}.v1 00000000 42" in section(html, "segments")
    assert f"{name}.v1 rejected" in section(html, "dead-letters")
    assert "there is no such page" in section(html, "dead-letters")


def test_names_of_tasks_that_are_gone_are_all_to_be_had(
    dashboard: Dashboard, local_services: LocalServices
) -> None:
    """Also of tasks that were never dispatched, and more of them than dispatches are remembered."""
    queue = local_services.create_queue("gone")
    names = [f"{queue}/tasks/gone-{n:04}" for n in range(300)]
    request = tasks_v2.HttpRequest(url="http://127.0.0.1:9/")
    at = datetime.now(UTC) + timedelta(days=1)
    with grpc.insecure_channel(
        local_services.environment()["CLOUD_TASKS_EMULATOR_HOST"]
    ) as channel:
        client = tasks_v2.CloudTasksClient(transport=CloudTasksGrpcTransport(channel=channel))
        for name in names:
            task = tasks_v2.Task(name=name, http_request=request, schedule_time=at)
            client.create_task(parent=queue, task=task)
        for name in names:
            client.delete_task(name=name)
    shown = re.findall(r"gone-\d+", section(page(dashboard), "tasks"))
    assert shown == [f"gone-{n:04}" for n in range(299, 249, -1)], "the last ones"
    assert re.search(r"gone running 0 0 300 0 0 0", section(page(dashboard), "queues"))
    every = section(page(dashboard, "/?rows=500"), "tasks")
    assert set(re.findall(r"gone-\d+", every)) == {name.rpartition("/")[2] for name in names}
    with pytest.raises(urllib.error.HTTPError, match="404"):
        page(dashboard, "/?rows=1")


def test_a_queue_in_memory_is_shown_too(dashboard: Dashboard, declare: Declare) -> None:
    queue = declare(storage="memorystore", batch_period=30)
    queue.handler(lambda item: None)
    queue.enqueue_many({"n": n} for n in range(7))
    found = section(page(dashboard), "segments")
    assert re.search(rf"{queue.config.name}\.v1 00000000 7 .* Valkey", found)


def test_what_does_not_answer_is_said_and_the_rest_is_shown(local_services: LocalServices) -> None:
    environment = local_services.environment() | {"FORKJOIN_MEMORYSTORE": "redis://127.0.0.1:9"}
    with Dashboard(environment, local_services.cloud_tasks_admin) as dashboard:
        html = page(dashboard)
    assert '<p class="problem"><b>Valkey</b>' in html
    assert html.count('<p class="problem"><b>') == 1


def test_what_it_shows_cannot_become_part_of_the_page(
    dashboard: Dashboard, declare: Declare
) -> None:
    queue = declare(batch_period=0)

    @queue.handler
    def handle(item: Item[Any]) -> None:
        raise Reject("<script>alert(1)</script>")

    queue.enqueue({})
    wait_until(lambda: "alert(1)" in page(dashboard))
    assert "<script>alert" not in page(dashboard)
    assert "&lt;script&gt;alert(1)" in page(dashboard)


@pytest.mark.parametrize(("host", "status"), [("127.0.0.1:1", 200), ("evil.example:1", 403)])
def test_it_answers_only_who_asks_for_this_machine(
    dashboard: Dashboard, host: str, status: int
) -> None:
    connection = http.client.HTTPConnection(dashboard.address, timeout=5)
    connection.request("GET", "/health", headers={"Host": host})
    assert connection.getresponse().status == status
    connection.close()


def test_a_port_that_is_taken_is_said(dashboard: Dashboard, local_services: LocalServices) -> None:
    port = int(dashboard.address.rpartition(":")[2])
    environment, admin = local_services.environment(), local_services.cloud_tasks_admin
    with (
        pytest.raises(LocalServiceError, match=f"cannot listen on 127.0.0.1:{port}"),
        Dashboard(environment, admin, port=port),
    ):
        pass


@pytest.fixture
def browser() -> str:
    """A Chromium. Skips where there is none; under CI=true that is an error."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        missing = f"none of {', '.join(BROWSERS)} is on the PATH (Debian: apt install chromium)"
        assert os.environ.get("CI") != "true", missing
        pytest.skip(missing)
    return found


def browse(browser: str, profile: Path, *arguments: str) -> str:
    """What the browser prints."""
    done = subprocess.run(
        [browser, *FLAGS, f"--user-data-dir={profile}", *arguments],
        capture_output=True,
        text=True,
        timeout=90,
        check=True,
    )
    return done.stdout


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_shows_it(
    scheme: str, dashboard: Dashboard, busy: Any, browser: str, tmp_path: Path
) -> None:
    """Leaves the picture in $SCREENSHOTS, too, where that is set: to be looked at."""
    picture = tmp_path / f"dashboard-{scheme}.png"
    dark = ["--blink-settings=preferredColorScheme=0"] if scheme == "dark" else []
    url = f"http://{dashboard.address}/"
    browse(browser, tmp_path / "profile", *dark, f"--screenshot={picture}", url)
    data = picture.read_bytes()
    assert data.startswith(PNG)
    assert int.from_bytes(data[16:20]) == 1280
    assert len(data) > 30_000, "an empty page is smaller"
    if os.environ.get("SCREENSHOTS"):
        shutil.copy(picture, os.environ["SCREENSHOTS"])


def test_it_refreshes_itself_in_a_browser(
    dashboard: Dashboard,
    busy: Any,
    browser: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The browser asks again by itself, and puts what it gets in place of what it has."""
    asked: list[str] = []
    render = dashboard.page

    def counted(rows: int) -> str:
        asked.append("")
        return render(rows).replace("<h1>", f"<h1>{len(asked)}. ")

    monkeypatch.setattr(dashboard, "page", counted)
    url = f"http://{dashboard.address}/"
    arguments = ("--virtual-time-budget=10000", "--dump-dom", url)
    dom = browse(browser, tmp_path / "profile", *arguments)
    assert len(asked) >= 2
    assert "<h1>1. " not in dom
    assert 'id="gone" hidden' in dom
    assert busy[0].config.name in section(dom, "queues")


def test_it_refreshes_itself_without_javascript_too(dashboard: Dashboard) -> None:
    assert '<noscript><meta http-equiv="refresh" content="2"></noscript>' in page(dashboard)


def test_it_reads_googles_firestore_too(
    local_services: LocalServices, googles_address: str, declare: Declare
) -> None:
    elsewhere = {"FIRESTORE_EMULATOR_HOST": googles_address}
    queue = declare(batch_period=30, elsewhere=elsewhere)
    queue.handler(lambda item: None)
    queue.enqueue_many({"n": n} for n in range(9))
    environment = local_services.environment() | elsewhere
    with Dashboard(environment, local_services.cloud_tasks_admin) as dashboard:
        html = page(dashboard)
    assert '<p class="problem"><b>' not in html
    found = section(html, "segments")
    assert re.search(rf"{queue.config.name}\.v1 00000000 9 .* Firestore", found)
