"""Checks a deployment from where it runs, and says what to put right. One check a function.

Nothing is written, but for what a commit or a task that cannot succeed tells of permissions.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from forkjoin_gcp.gcp.doctor.environment import check_environment
from forkjoin_gcp.gcp.doctor.findings import Finding, Status, Subject
from forkjoin_gcp.gcp.doctor.firestore import check_database, check_expiry
from forkjoin_gcp.gcp.doctor.join_url import check_join_url
from forkjoin_gcp.gcp.doctor.permissions import check_credentials, check_invoker
from forkjoin_gcp.gcp.doctor.task_queues import check_task_queues
from forkjoin_gcp.gcp.doctor.valkey import check_valkey

__all__ = ["CHECKS", "Finding", "Status", "Subject", "examine"]

CHECK_SECONDS = 30.0
"""Limit of one check. What it asks has shorter limits of its own."""

Check = Callable[[Subject], Awaitable[list[Finding]]]

CHECKS: dict[str, Check] = {
    "environment": check_environment,
    "credentials": check_credentials,
    "invoker": check_invoker,
    "task queues": check_task_queues,
    "database": check_database,
    "expiry": check_expiry,
    "valkey": check_valkey,
    "join URL": check_join_url,
}
"""Each check by its name. All run at once; each gives at least one finding."""


async def examine(subject: Subject) -> list[Finding]:
    """What all checks found, in the order of CHECKS."""
    found = await asyncio.gather(*(_bounded(name, subject) for name in CHECKS))
    return [finding for findings in found for finding in findings]


async def _bounded(name: str, subject: Subject) -> list[Finding]:
    try:
        async with asyncio.timeout(CHECK_SECONDS):
            return await CHECKS[name](subject)
    except TimeoutError:
        text = f"no answer within {CHECK_SECONDS:g} s"
        return [Finding(name, Status.FAULT, text, "See whether this network reaches it")]
    except Exception as error:
        # Whatever it is, the other checks are to be seen.
        text = f"the check itself failed: {type(error).__name__}: {error}"
        return [Finding(name, Status.FAULT, text, "Report this")]
