"""What the Cloud Tasks emulator holds: its statistics over HTTP, its tasks over the API."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from typing import Any

import grpc
from google.cloud import tasks_v2
from google.cloud.tasks_v2.services.cloud_tasks.transports import CloudTasksGrpcTransport

from forkjoin_gcp.emulators.errors import LocalServiceError
from forkjoin_gcp.emulators.processes import http_json

from .view import DispatchRow, QueueRow, TaskRow, TasksView

_TIMEOUT = 2.0
_PAGE = 1_000
_TASKS_READ = 5_000
"""Of each queue, at most."""


class TasksSource:
    """Reads one emulator. `address` is the API's, `http_address` that of its HTTP side."""

    def __init__(self, address: str, http_address: str) -> None:
        self._http_address = http_address
        self._channel = grpc.insecure_channel(address)
        transport = CloudTasksGrpcTransport(channel=self._channel)
        self._client = tasks_v2.CloudTasksClient(transport=transport)

    def close(self) -> None:
        """Ends the connection."""
        self._channel.close()

    def read(self, rows: int) -> TasksView:
        """Tasks that are gone come after those that are there, `rows` of each at most. Raises
        LocalServiceError, or GoogleAPICallError as the client does."""
        asked = f"/stats?recent={rows}&tombstones={rows}"
        stats = http_json(self._http_address, asked, timeout=_TIMEOUT)
        if stats is None:
            raise LocalServiceError(f"no answer from {self._http_address}")
        queues = dict(sorted(stats["queues"].items()))
        states = self._states(queues)
        live = [row for name in queues if name in states for row in self._tasks(name)]
        live.sort(key=lambda row: (row.state != "running", row.moment))
        return TasksView(
            queues=[
                _queue_row(name, states.get(name, ""), queues[name]) for name in sorted(queues)
            ],
            tasks=live[:rows] + [_tombstone_row(each) for each in stats["tombstones"]],
            dispatches=[_dispatch_row(each) for each in stats["recent"]],
        )

    def _states(self, names: Iterable[str]) -> dict[str, str]:
        """The state of each queue that is still there: running or paused."""
        states = {}
        for parent in sorted({name.rpartition("/queues/")[0] for name in names}):
            for queue in self._client.list_queues(parent=parent, timeout=_TIMEOUT):
                states[queue.name] = queue.state.name.lower()
        return states

    def _tasks(self, queue: str) -> list[TaskRow]:
        request = tasks_v2.ListTasksRequest(parent=queue, page_size=_PAGE)
        tasks = self._client.list_tasks(request, timeout=_TIMEOUT)
        return [_task_row(tasks_v2.Task.pb(each)) for each in itertools.islice(tasks, _TASKS_READ)]


def _queue_row(name: str, state: str, stats: Mapping[str, Any]) -> QueueRow:
    running = stats["in_flight"]
    return QueueRow(
        name=_short(name),
        state=state,
        waiting=max(0, stats["tasks"] - running),
        running=running,
        tombstones=stats["tombstones"],
        completed=stats["completed"],
        retried=stats["retried"],
        exhausted=stats["exhausted"],
    )


def _task_row(task: Any) -> TaskRow:
    queue, name = _split(task.name)
    last = task.last_attempt
    running = last.HasField("dispatch_time") and not last.HasField("response_time")
    return TaskRow(
        queue=queue,
        name=name,
        state="running" if running else "waiting",
        moment=task.schedule_time.ToMicroseconds() / 1e6,
        attempts=task.dispatch_count,
    )


def _tombstone_row(tombstone: Mapping[str, Any]) -> TaskRow:
    return TaskRow(*_split(tombstone["name"]), "tombstone", tombstone["gone_at"], None)


def _dispatch_row(dispatch: Mapping[str, Any]) -> DispatchRow:
    queue, name = _split(dispatch["name"])
    return DispatchRow(
        queue=queue,
        name=name,
        status=dispatch["status"],
        error=dispatch["error"],
        retry_count=dispatch["retry_count"],
        started=dispatch["started"],
        seconds=dispatch["finished"] - dispatch["started"],
    )


def _short(queue_name: str) -> str:
    return queue_name.rpartition("/")[2]


def _split(task_name: str) -> tuple[str, str]:
    """Short names of the queue and of the task."""
    queue, _, name = task_name.partition("/tasks/")
    return _short(queue), name
