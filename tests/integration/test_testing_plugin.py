"""The pytest plugin, in a user's own test suite: their files, their pytest, another process."""

from __future__ import annotations

import configparser
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from forkjoin_gcp import ForkJoinQueue, Item, Reject
from forkjoin_gcp.testing import wait_until
from forkjoin_gcp.testing.local import LocalQueues
from tests.unit.test_testing_papers import PAGE, PLAIN, files_in, run_pytest

ROOT = Path(__file__).parents[2]

FEEDS = """
from forkjoin_gcp import ForkJoinQueue

feeds = ForkJoinQueue("feeds", batch_period=0.1)
seen = []


@feeds.handler
async def fetch(item):
    seen.append(item.payload["url"])
"""

USERS_TESTS = """
import pytest
from feeds import feeds, seen
from forkjoin_gcp.testing import wait_until


@pytest.mark.parametrize("url", ["a", "b"])
def test_it_is_fetched(forkjoin_queue, url):
    assert forkjoin_queue(feeds) is feeds
    feeds.enqueue({"url": url})
    wait_until(lambda: feeds.counters["items_handled"] == 1)
    assert seen.pop() == url and not seen
    assert feeds.dead_letters() == []


def test_without_services():
    with feeds.in_memory() as local:
        feeds.enqueue({"url": "c"})
        assert len(local.run().handled) == 1
"""


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    """A user's suite, beside an installation of this package as its metadata describes it."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    (points,) = [setup["options.entry_points"]["pytest11"].strip()]
    installed = tmp_path / "installed" / "forkjoin_gcp-0.1.dist-info"
    installed.mkdir(parents=True)
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: forkjoin-gcp\nVersion: 0.1\n")
    (installed / "entry_points.txt").write_text(f"[pytest11]\n{points}\n")
    (installed / "RECORD").write_text("")
    home = tmp_path / "suite"
    home.mkdir()
    (home / "feeds.py").write_text(FEEDS)
    (home / "test_feeds.py").write_text(USERS_TESTS)
    (home / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\n    ignore:.*google.*\n")
    return home


def run_suite(suite: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(ROOT), str(suite.parent / "installed")])
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1", **variables}
    command = [sys.executable, "-m", "pytest", *PLAIN, *arguments]
    return subprocess.run(
        command,
        cwd=suite,
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def test_a_users_suite_passes(suite: Path) -> None:
    done = run_suite(suite, "-q")
    assert "3 passed" in done.stdout, done.stdout + done.stderr


def test_the_pages_tests_pass(tmp_path: Path) -> None:
    assert "1 passed" in run_pytest(tmp_path, files_in(PAGE), "test_feeds_locally.py")


def test_its_fixtures_are_listed_with_what_they_do(suite: Path) -> None:
    done = run_suite(suite, "--fixtures")
    assert "forkjoin_services [session scope]" in done.stdout
    assert "forkjoin_queue" in done.stdout
    assert "puts a declared queue on local services" in done.stdout


@pytest.mark.parametrize(("ci", "outcome"), [("", "1 passed, 2 skipped"), ("true", "2 errors")])
def test_missing_services_skip_here_and_fail_in_ci(suite: Path, ci: str, outcome: str) -> None:
    (suite / "conftest.py").write_text(
        "from forkjoin_gcp.emulators import LocalServiceError, LocalServices\n"
        "def start():\n    raise LocalServiceError('no Valkey here')\n"
        "LocalServices.start = start\n"
    )
    done = run_suite(suite, "-q", "-rs", CI=ci)
    assert outcome in done.stdout, done.stdout
    assert "no Valkey here" in done.stdout


def test_who_does_not_use_it_loads_nothing_heavy(suite: Path) -> None:
    (suite / "test_feeds.py").write_text(
        "import sys\n"
        "def test_it():\n"
        "    names = ('google.api_core', 'grpc', 'redis', 'flask', 'aiohttp', 'pydantic')\n"
        "    assert 'forkjoin_gcp.testing.plugin' in sys.modules\n"
        "    assert not [n for n in names if n in sys.modules]\n"
    )
    done = run_suite(suite, "-q")
    assert "1 passed" in done.stdout, done.stdout


# In this process


@pytest.fixture
def local_queues(request: pytest.FixtureRequest) -> LocalQueues:
    queues = request.getfixturevalue("_forkjoin_local_queues")
    assert isinstance(queues, LocalQueues)
    return queues


@pytest.mark.parametrize("storage", ["firestore", "memorystore"])
def test_nothing_of_one_test_is_seen_by_the_next(
    forkjoin_queue: Any, local_queues: LocalQueues, storage: Any
) -> None:
    """The same queue twice on the same services, as two tests have it."""
    queue = ForkJoinQueue("feeds", storage=storage, batch_period=0, max_attempts=1, shards=2)
    seen: list[int] = []

    @queue.handler
    async def work(item: Item[dict[str, Any]]) -> None:
        seen.append(item.payload["n"])
        if item.payload["n"] == 0:
            raise Reject("no")

    before = queue.config
    with local_queues.on(queue, f"test-one-{storage}"):
        queue.enqueue({"n": 0})
        wait_until(lambda: queue.counters["items_dead"] == 1)
        assert len(queue.dead_letters()) == 1
    assert queue.config is before
    forkjoin_queue(queue)
    assert queue.counters["items_dead"] == 0
    assert queue.dead_letters() == []
    queue.enqueue_many([{"n": 1}, {"n": 2}])
    wait_until(lambda: queue.counters["items_handled"] == 2)
    assert sorted(seen) == [0, 1, 2]


class Watched(dict[str, Any]):
    """Join endpoints, and which of them were asked for in vain."""

    def __init__(self, endpoints: Any) -> None:
        super().__init__(endpoints)
        self.missed: list[str] = []

    def get(self, token: str, default: Any = None) -> Any:
        if token not in self:
            self.missed.append(token)
        return super().get(token, default)


def test_tasks_left_over_are_forgotten(
    local_queues: LocalQueues, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = ForkJoinQueue("late", batch_period=1)
    seen: list[Any] = []
    queue.handler(seen.append)
    watched = Watched(local_queues._endpoints)
    monkeypatch.setattr(local_queues, "_endpoints", watched)
    with local_queues.on(queue, "test-late"):
        queue.enqueue({})
    wait_until(lambda: len(watched.missed) == 1)
    assert not seen


def test_binding_again_changes_nothing_and_one_of_the_same_name_is_refused(
    forkjoin_queue: Any,
) -> None:
    feeds = ForkJoinQueue("feeds", batch_period=0)
    feeds.handler(lambda item: None)
    forkjoin_queue(feeds)
    feeds.enqueue({"n": 1})
    forkjoin_queue(feeds)
    wait_until(lambda: feeds.counters["items_handled"] == 1)
    with pytest.raises(RuntimeError, match="another queue 'feeds'"):
        forkjoin_queue(ForkJoinQueue("feeds"))


def test_two_queues_in_one_test(forkjoin_queue: Any) -> None:
    feeds, mails = ForkJoinQueue("feeds", batch_period=0), ForkJoinQueue("mails", batch_period=0)
    forkjoin_queue(feeds)
    forkjoin_queue(mails)
    sent: list[Any] = []

    @feeds.handler
    async def fetch(item: Item[dict[str, Any]]) -> None:
        await mails.aenqueue({"about": item.payload["url"]})

    mails.handler(lambda item: sent.append(item.payload))
    feeds.enqueue({"url": "a"})
    wait_until(lambda: sent == [{"about": "a"}])
    assert feeds.services.project == mails.services.project
