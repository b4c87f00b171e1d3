"""The module does what the code needs of it; and the checks notice where it does not."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.terraform import checks
from tests.terraform.plan import Plan, read_plan
from tests.terraform.workspace import Workspace


def test_the_environment_is_what_services_read(plan: Plan) -> None:
    checks.check_environment(plan)


def test_expiry_and_exemptions_are_those_of_what_is_stored(plan: Plan) -> None:
    checks.check_stored_fields(plan)


def test_roles_are_these_and_no_others(plan: Plan) -> None:
    checks.check_roles(plan)


# Terraform takes seconds, and minutes on a busy machine.
pytestmark = pytest.mark.timeout(600)


def planned(check: Callable[[Plan], None]) -> Callable[[Workspace], None]:
    return lambda workspace: check(read_plan(workspace))


def settings(workspace: Workspace) -> None:
    checks.check_settings(workspace.module)


SPOILT: dict[str, tuple[str, str, str, Callable[[Workspace], None]]] = {
    "a renamed attribute": (
        "queues.tf",
        "max_attempts       = -1",
        "max_attempt        = -1",
        checks.check_valid,
    ),
    "a renamed resource type": (
        "scheduler.tf",
        'resource "google_cloud_scheduler_job"',
        'resource "google_scheduler_job"',
        checks.check_valid,
    ),
    "attempts that end": ("queues.tf", "= -1", "= 100", checks.check_valid),
    "a function that anybody reaches": (
        "functions.tf",
        """google_service_account.this["join"].email
    ingress_settings      = "ALLOW_INTERNAL_ONLY\"""",
        """google_service_account.this["join"].email
    ingress_settings      = "ALLOW_ALL\"""",
        checks.check_valid,
    ),
    "a missing role": (
        "iam.tf",
        'for name in ["enqueuer", "join", "sweeper"]',
        'for name in ["enqueuer", "join"]',
        planned(checks.check_roles),
    ),
    "a role too many": (
        "iam.tf",
        'role   = "roles/storage.objectViewer"',
        'role   = "roles/storage.objectAdmin"',
        planned(checks.check_roles),
    ),
    "a role on everything": (
        "iam.tf",
        "expression  = local.memorystore_condition\n",
        'expression  = "true"\n',
        planned(checks.check_roles),
    ),
    "a wrong range": (
        "variables.tf",
        "max = 1000, unit",
        "max = 2000, unit",
        settings,
    ),
    "a wrong default": (
        "variables.tf",
        "default = 1800, min",
        "default = 900, min",
        settings,
    ),
    "a setting of another type": (
        "variables.tf",
        "lanes                     = optional(number)",
        "lanes                     = optional(string)",
        settings,
    ),
    "a missing variable": (
        "functions.tf",
        "FORKJOIN_INVOKER ",
        "FORKJOIN_INVOKERS",
        planned(checks.check_environment),
    ),
    "expiry of another field": (
        "firestore.tf",
        '= "expire_at"',
        '= "enqueued_at"',
        planned(checks.check_stored_fields),
    ),
    "an index": (
        "firestore.tf",
        "toset([local.segments, local.dead_letters])",
        "toset([local.segments])",
        planned(checks.check_stored_fields),
    ),
}


@pytest.mark.parametrize("what", SPOILT)
def test_what_is_spoilt_is_noticed(changed: Workspace, what: str) -> None:
    file, old, new, check = SPOILT[what]
    changed.edit(file, old, new)
    with pytest.raises(AssertionError):
        check(changed)
