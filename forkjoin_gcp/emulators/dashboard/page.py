"""The page itself: asks the services at the same time, and renders what they answer."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime
from importlib import resources
from typing import TypeVar

import jinja2
from google.api_core.exceptions import GoogleAPICallError
from markupsafe import Markup
from redis import RedisError

from forkjoin_gcp.emulators.errors import LocalServiceError
from forkjoin_gcp.emulators.firestore import HOST_VARIABLE

from .firestore_source import FirestoreSource
from .tasks_source import TasksSource
from .valkey_source import ValkeySource
from .view import ROWS_SHOWN, ItemsView, Snapshot, TasksView, ValkeyView

REFRESH_SECONDS = 2
_ERRORS = (GoogleAPICallError, LocalServiceError, OSError, RedisError)

T = TypeVar("T")


class Page:
    """The page of one set of services; `environment` is that of LocalServices."""

    def __init__(self, environment: Mapping[str, str], cloud_tasks_admin: str) -> None:
        self._environment = environment
        self._tasks = TasksSource(
            environment["CLOUD_TASKS_EMULATOR_HOST"], cloud_tasks_admin.removeprefix("http://")
        )
        self._firestore = FirestoreSource(
            environment[HOST_VARIABLE], environment["FORKJOIN_PROJECT"]
        )
        self._valkey = ValkeySource(environment["FORKJOIN_MEMORYSTORE"])
        self._pool = ThreadPoolExecutor(3, thread_name_prefix="dashboard")
        folder = resources.files(__package__)
        self._texts = {
            name: (folder / f"page.{name}").read_text("utf-8") for name in ("html", "css", "js")
        }
        jinja = jinja2.Environment(
            autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
        )
        jinja.filters |= {"clock": clock, "span": span}
        self._template = jinja.from_string(self._texts["html"])

    def close(self) -> None:
        """Ends the connections."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        for source in (self._tasks, self._firestore, self._valkey):
            source.close()

    def snapshot(self, rows: int) -> Snapshot:
        """What the services say now. One that does not answer is among the problems."""
        problems: dict[str, str] = {}
        tasks = self._pool.submit(self._tasks.read, rows)
        valkey = self._pool.submit(self._valkey.read, rows)
        firestore = self._pool.submit(self._firestore.read, rows)
        return Snapshot(
            taken_at=time.time(),
            rows=rows,
            tasks=_result("Cloud Tasks", tasks, TasksView, problems),
            valkey=_result("Valkey", valkey, ValkeyView, problems),
            firestore=_result("Firestore", firestore, ItemsView, problems),
            problems=problems,
        )

    def render(self, rows: int) -> str:
        """The page as of now, as HTML; each table has at most one of ROWS_SHOWN rows."""
        snapshot = self.snapshot(rows)
        return self._template.render(
            now=snapshot.taken_at,
            view=snapshot,
            environment=self._environment,
            addresses={
                "Valkey": self._environment["FORKJOIN_MEMORYSTORE"].removeprefix("redis://"),
                "Firestore": self._environment[HOST_VARIABLE],
                "Cloud Tasks": self._environment["CLOUD_TASKS_EMULATOR_HOST"],
            },
            css=Markup(self._texts["css"]),
            js=Markup(self._texts["js"]),
            refresh_seconds=REFRESH_SECONDS,
            choices=ROWS_SHOWN,
        )


def _result(name: str, future: Future[T], nothing: Callable[[], T], problems: dict[str, str]) -> T:
    try:
        return future.result()
    except _ERRORS as error:
        problems[name] = " ".join(str(error).split()) or type(error).__name__
        return nothing()


def clock(moment: float) -> str:
    """A time of day with its date, in UTC."""
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def span(seconds: float) -> str:
    """A length of time as a person says it, in the two units that matter at most."""
    seconds = abs(seconds)
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    for limit, unit, short, small in ((3600, 60, "min", "s"), (86_400, 3600, "h", "min")):
        if seconds < limit:
            rest = seconds % unit if small == "s" else seconds % unit / 60
            return f"{seconds // unit:.0f} {short} {int(rest)} {small}"
    return f"{seconds // 86_400:.0f} d {int(seconds % 86_400 / 3600)} h"
