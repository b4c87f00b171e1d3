"""The Cloud Tasks queues of each queue: there, running, and never giving a task up."""

from __future__ import annotations

from typing import Any

from google.api_core.exceptions import (
    GoogleAPICallError,
    MethodNotImplemented,
    NotFound,
    PermissionDenied,
)
from google.cloud.tasks_v2 import CloudTasksAsyncClient, Queue

from forkjoin_gcp.config import VARIABLES
from forkjoin_gcp.errors import ConfigurationError
from forkjoin_gcp.gcp.cloud_tasks import connect_client
from forkjoin_gcp.gcp.doctor.findings import Finding, Status, Subject, one_line

NAME = "task queues"
SECONDS = 5.0
CREATE = "cloudtasks.tasks.create"


async def check_task_queues(subject: Subject) -> list[Finding]:
    """Each shard's queue, as Cloud Tasks has it."""
    services = subject.services
    if not (services.project and services.location):
        return [Finding(NAME, Status.SKIPPED, "the project or the location is not known")]
    if subject.local and services.cloud_tasks_emulator_host is None:
        return [Finding(NAME, Status.SKIPPED, "there is no emulator to ask")]
    if not subject.queues:
        fix = "Say --queue module:attribute, or set FORKJOIN_QUEUE"
        return [Finding(NAME, Status.WARNING, "it is not known which queues there are", fix)]
    try:
        client = connect_client(services)
    except ConfigurationError as error:
        return [Finding(NAME, Status.FAULT, str(error), "See the check of credentials")]
    parent = f"projects/{services.project}/locations/{services.location}/queues"
    found: list[Finding] = []
    try:
        for config in subject.queues:
            for shard in range(1, config.shards + 1):
                found += await _look_at(client, f"{parent}/{config.task_queue(shard)}")
    except GoogleAPICallError as error:
        host = services.cloud_tasks_emulator_host
        where = f"{VARIABLES['cloud_tasks_emulator_host']}={host}" if host else "Cloud Tasks"
        fix = "forkjoin local up" if host else "See whether cloudtasks.googleapis.com is enabled"
        found.append(Finding(NAME, Status.FAULT, f"{where}: {one_line(error)}", fix))
    finally:
        transport: Any = client.transport
        await transport.close()
    return found


async def _look_at(client: CloudTasksAsyncClient, name: str) -> list[Finding]:
    try:
        queue = await client.get_queue(name=name, timeout=SECONDS, retry=None)
    except NotFound:
        return [
            Finding(
                NAME,
                Status.FAULT,
                f"{name} does not exist",
                f"Create it, or correct the queue's name, shards, {VARIABLES['project']} or "
                f"{VARIABLES['location']}",
            )
        ]
    except PermissionDenied:
        text = f"{name} may not be looked at from here"
        fix = "For this check grant roles/cloudtasks.viewer; enqueuing does not need it"
        found = [Finding(NAME, Status.WARNING, text, fix)]
    else:
        found = _faults(queue) or [Finding(NAME, Status.OK, f"{name} is running")]
    return found + await _permission(client, name)


def _faults(queue: Queue) -> list[Finding]:
    found = []
    if queue.state != Queue.State.RUNNING:
        text = f"{queue.name} is {Queue.State(queue.state).name}: its tasks wait"
        fix = f"gcloud tasks queues resume {queue.name}"
        found.append(Finding(NAME, Status.FAULT, text, fix))
    retry = queue.retry_config
    if retry.max_attempts > 0 or retry.max_retry_duration.total_seconds() > 0:
        text = (
            f"{queue.name} gives a task up after {retry.max_attempts} attempts or "
            f"{retry.max_retry_duration.total_seconds():g} s: its batch then waits for a sweep"
        )
        fix = "Set its attempts and retry duration to unlimited"
        found.append(Finding(NAME, Status.WARNING, text, fix))
    return found


async def _permission(client: CloudTasksAsyncClient, name: str) -> list[Finding]:
    try:
        answer = await client.test_iam_permissions(
            request={"resource": name, "permissions": [CREATE]}, timeout=SECONDS
        )
    except (MethodNotImplemented, PermissionDenied):
        return []  # an emulator; or nobody may ask, which says nothing
    if CREATE in answer.permissions:
        return []
    text = f"this account may not create tasks in {name}"
    return [Finding(NAME, Status.FAULT, text, "Grant it roles/cloudtasks.enqueuer there")]
