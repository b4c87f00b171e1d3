"""What holds terraform/ to the code: each check raises AssertionError where they differ."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import hcl2
from pydantic.fields import FieldInfo

from forkjoin_gcp import QueueConfig, Services
from forkjoin_gcp.config import ORDERED, SETTINGS_VARIABLE, VARIABLES
from forkjoin_gcp.gcp import firestore_documents
from tests.terraform.plan import Plan, read_plan
from tests.terraform.workspace import Workspace

LOCAL_ONLY = {
    "certs_url",
    "allow_unauthenticated",
    "firestore_emulator_host",
    "cloud_tasks_emulator_host",
}
"""Fields of Services that are for local services and tests: a deployment must not set them."""

OF_THE_SWEEPER = {"sweep_invoker", "sweep_audience"}
"""Fields of Services that only the sweep function reads."""

DATABASE = 'resource.name == "projects/test-project/databases/forkjoin"'
INSTANCE = 'resource.name == "projects/test-project/locations/us-central1/instances/forkjoin"'
AUTHORITY = INSTANCE.removesuffix('"') + '/certificateAuthority"'
IN_DATABASE = f'resource.type == "firestore.googleapis.com/Database" && {DATABASE}'


def check_valid(workspace: Workspace) -> None:
    """Terraform accepts the module, and it does what tests/plan.tftest.hcl asks of it."""
    done = workspace.terraform("validate", "-no-color")
    assert done.returncode == 0, done.stdout + done.stderr
    read_plan(workspace)


def check_settings(module: Path) -> None:
    """The table of settings, and the members of `queues`, are QueueConfig's."""
    with (module / "variables.tf").open(encoding="utf-8") as source:
        file = hcl2.load(source)
    (block,) = (one for one in file["locals"] if "queue_settings" in one)
    given = {name: _plain(setting) for name, setting in block["queue_settings"].items()}
    wanted = {
        name: _setting(field) for name, field in QueueConfig.model_fields.items() if name != "name"
    }
    assert given == wanted
    (queues,) = (one['"queues"'] for one in file["variable"] if '"queues"' in one)
    types = dict(re.findall(r"(\w+) = optional\((\w+)[,)]", queues["type"]))
    for name, setting in wanted.items():
        assert types[name] == ("number" if "max" in setting else "string"), name
    assert _plain(block["ordered"]) == ORDERED


def check_environment(plan: Plan) -> None:
    """The environment is every variable that is read, and no other."""
    environment: dict[str, str] = plan.outputs["environment"]
    assert set(environment) == _variables(LOCAL_ONLY | OF_THE_SWEEPER) | {SETTINGS_VARIABLE}
    queue = {"FORKJOIN_QUEUE": "feeds:feeds"}
    assert _environment_of(plan, "join") == environment | queue
    sweep = _environment_of(plan, "sweep")
    assert set(sweep) == _variables(LOCAL_ONLY) | {SETTINGS_VARIABLE, *queue}
    assert sweep == sweep | environment | queue
    services = Services.from_env(sweep)
    for field in Services.model_fields:
        if field not in LOCAL_ONLY:
            assert services.need(field) == sweep[VARIABLES[field]]
    settings = json.loads(environment[SETTINGS_VARIABLE])
    for name in ("feeds", "mails"):
        config = QueueConfig.deployed(name, {}, environment)
        assert config == QueueConfig(name, **settings.get(name, {}))
        for shard in range(1, config.shards + 1):
            assert f'google_cloud_tasks_queue.this["{config.task_queue(shard)}"]' in plan.resources


def _variables(without: set[str]) -> set[str]:
    return {variable for field, variable in VARIABLES.items() if field not in without}


def _environment_of(plan: Plan, function: str) -> dict[str, str]:
    (service,) = plan[f"google_cloudfunctions2_function.{function}"]["service_config"]
    given: dict[str, str] = service["environment_variables"]
    return {name: value for name, value in given.items() if name.startswith("FORKJOIN_")}


def check_stored_fields(plan: Plan) -> None:
    """Expiry is on the field that the code writes, and nothing that it writes has an index."""
    fields = plan.of_type("google_firestore_field")
    expiring = [(one["collection"], one["field"]) for one in fields if one["ttl_config"]]
    assert expiring == [(firestore_documents.SEGMENTS, firestore_documents.EXPIRE_AT)]
    exempt = {(one["collection"], one["field"]) for one in fields if one["index_config"]}
    assert all(not one["indexes"] for field in fields for one in field["index_config"])
    wholly = {collection for collection, field in exempt if field == "*"}
    assert wholly == {firestore_documents.SEGMENTS, firestore_documents.DEAD_LETTERS}
    assert set(expiring) <= exempt  # a field that expires does not take after "*"


def check_roles(plan: Plan) -> None:
    """Who may do what: these, and nothing else."""
    queues = ("feeds-1", "feeds-2", "feeds-3", "mails-1")
    wanted = {
        ("service join", "roles/run.invoker", "allUsers", None),
        ("service sweep", "roles/run.invoker", "allUsers", None),
        ("source", "roles/storage.objectViewer", "builder", None),
        ("images", "roles/artifactregistry.writer", "builder", None),
        ("project", "roles/logging.logWriter", "builder", None),
    }
    for who in ("enqueuer", "join", "sweeper"):
        database = "roles/datastore.viewer" if who == "sweeper" else "roles/datastore.user"
        wanted |= {
            *((f"queue {queue}", "roles/cloudtasks.enqueuer", who, None) for queue in queues),
            ("account invoker", "roles/iam.serviceAccountUser", who, None),
            ("project", database, who, IN_DATABASE),
            ("project", "roles/memorystore.dbConnectionUser", who, INSTANCE),
            ("project", "roles/memorystore.viewer", who, f"{INSTANCE} || {AUTHORITY}"),
        }
    given = [
        (_place(kind, values), values["role"], _who(values["member"]), _condition(values))
        for kind, values in plan.resources.values()
        if "_iam_" in kind
    ]
    assert len(given) == len(set(given))
    assert set(given) == wanted
    # Whatever else gives roles, as a policy or a binding, would take others' away.
    kinds = {kind for kind, _ in plan.resources.values() if "_iam" in kind}
    assert all(kind.endswith("_iam_member") for kind in kinds), kinds


def _place(kind: str, values: dict[str, Any]) -> str:
    match kind:
        case "google_cloud_tasks_queue_iam_member":
            return f"queue {values['name']}"
        case "google_service_account_iam_member":
            return f"account {values['service_account_id'].removeprefix('sa/')}"
        case "google_cloud_run_service_iam_member":
            return f"service {values['service'].removeprefix('forkjoin-')}"
        case "google_storage_bucket_iam_member":
            return {"test-project-forkjoin-functions": "source"}[values["bucket"]]
        case "google_artifact_registry_repository_iam_member":
            return "images"
        case "google_project_iam_member":
            return {"test-project": "project"}[values["project"]]
    raise AssertionError(f"{kind} is not expected")


def _who(member: str) -> str:
    return member.removeprefix("serviceAccount:").removesuffix("@test")


def _condition(values: dict[str, Any]) -> str | None:
    conditions = values.get("condition") or []
    return conditions[0]["expression"] if conditions else None


def _setting(field: FieldInfo) -> dict[str, Any]:
    setting: dict[str, Any] = {"default": field.default}
    limits = {type(limit).__name__: limit for limit in field.metadata}
    if isinstance(field.json_schema_extra, dict):
        low, high = limits["Ge"].ge, limits["Le"].le  # type: ignore[attr-defined]
        setting |= {"min": low, "max": high, "unit": field.json_schema_extra["unit"]}
    elif choices := getattr(field.annotation, "__args__", None):
        setting["choices"] = list(choices)
    return setting


def _plain(value: Any) -> Any:
    """A value that hcl2 read, with its strings as they are meant."""
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items() if key != "__is_block__"}
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return value.strip('"') if isinstance(value, str) else value
