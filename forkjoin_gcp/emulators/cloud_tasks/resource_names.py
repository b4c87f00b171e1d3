"""The names of locations, queues, tasks and operations, and what the API refuses in them."""

from __future__ import annotations

import re

from . import refusals

_LOCATION = r"projects/[A-Za-z0-9:.-]+/locations/[A-Za-z0-9-]+"
_LOCATION_NAME = re.compile(_LOCATION)
_QUEUE_NAME = re.compile(_LOCATION + r"/queues/[A-Za-z0-9-]{1,100}")
_TASK_NAME = re.compile(f"({_LOCATION}/queues/[^/]+)/tasks/([^/]*)")
_TASK_ID = re.compile(r"[A-Za-z0-9_-]{1,500}")
_OPERATION_NAME = re.compile(f"{_LOCATION}/operations/[A-Za-z0-9_-]{{1,500}}")


def check_location(name: str) -> str:
    """The name itself. Raises Refusal INVALID_ARGUMENT unless it is projects/P/locations/L."""
    if not _LOCATION_NAME.fullmatch(name):
        raise refusals.invalid("Invalid resource field value in the request.")
    return name


def check_queue_name(name: str) -> str:
    """The name itself. Raises Refusal INVALID_ARGUMENT for what is no queue name."""
    if not _QUEUE_NAME.fullmatch(name):
        raise refusals.invalid(
            "Queue name must be formatted: "
            '"projects/<PROJECT_ID>/locations/<LOCATION_ID>/queues/<QUEUE_ID>".'
        )
    return name


def split_task_name(name: str) -> tuple[str, str]:
    """(queue name, task id). Raises Refusal INVALID_ARGUMENT for what is no task name."""
    match = _TASK_NAME.fullmatch(name)
    if match is None:
        raise refusals.invalid(
            'Task name must be formatted: "projects/<PROJECT_ID>/locations/<LOCATION_ID>/'
            'queues/<QUEUE_ID>/tasks/<TASK_ID>"'
        )
    queue_name, task_id = match.groups()
    if not _TASK_ID.fullmatch(task_id):
        raise refusals.invalid(
            f'Task ID "{task_id}" can contain only letters ([A-Za-z]), numbers ([0-9]), hyphens '
            "(-), or underscores (_). Task ID must between 1 and 500 characters."
        )
    return queue_name, task_id


def split_task_name_of(queue_name: str, name: str) -> tuple[str, str]:
    """As `split_task_name`, for a task that has to be of the queue a request names."""
    named, task_id = split_task_name(name)
    if named != queue_name:
        raise refusals.invalid(
            f"The queue name from request ('{queue_name}') must be the same as the queue name in "
            f"the named task ('{named}')."
        )
    return named, task_id


def check_operation_name(name: str) -> str:
    """The name itself. Raises Refusal INVALID_ARGUMENT for what is no operation name."""
    if not _OPERATION_NAME.fullmatch(name):
        raise refusals.invalid(
            "Operation name must be formatted: "
            '"projects/<PROJECT_ID>/locations/<LOCATION_ID>/operations/<OPERATION_ID>".'
        )
    return name


def location_of(queue_name: str) -> str:
    """projects/P/locations/L of a well-formed queue name."""
    return queue_name.rpartition("/queues/")[0]
