"""Metrics and alarms count what the code says, in the words in which it says it."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import re
from typing import Any

import flask
import pytest

from forkjoin_gcp import Reject, Services
from forkjoin_gcp.endpoint import sweep_function
from forkjoin_gcp.errors import SchedulerUnavailable
from forkjoin_gcp.items import Item
from forkjoin_gcp.json_logs import JsonFormatter
from forkjoin_gcp.names import Batch
from forkjoin_gcp.sweeper import SweepReport
from forkjoin_gcp.testing.virtual_time import run_virtual
from tests.terraform.plan import Plan, read_plan
from tests.terraform.tools import REPOSITORY
from tests.terraform.workspace import Workspace
from tests.unit.outage import REFUSED, Outage
from tests.unit.rig import Rig

pytestmark = pytest.mark.timeout(600)

QUEUES = '("feeds" OR "mails")'
USER_METRIC = re.compile(r"logging_googleapis_com:user_forkjoin_(\w+)\{")


async def everything_that_is_counted() -> None:
    """A dead letter, a deferred root task, a late writer, Memorystore away and back, a sweep."""

    async def refuse_the_first(item: Item[Any]) -> None:
        if item.payload["n"] == 0:
            raise Reject("no")

    rig = Rig(refuse_the_first, writer_timeout=2)
    schedule, create = rig.scheduler.create, rig.store.create

    async def away(task: Any) -> bool:
        rig.scheduler.create = schedule  # type: ignore[method-assign]
        raise SchedulerUnavailable

    async def stalled(batch: Batch, segments: Any) -> Any:
        rig.store.create = create  # type: ignore[method-assign]
        await asyncio.sleep(60)
        return await create(batch, segments)

    rig.scheduler.create = away  # type: ignore[method-assign]
    await rig.put(0)
    await rig.put(1)
    rig.store.create = stalled  # type: ignore[method-assign]
    late = asyncio.ensure_future(rig.put(2))
    await asyncio.sleep(0.01)
    await rig.drain()
    await late
    outage = Outage(rig)
    outage.mode = REFUSED
    await rig.put(3)
    outage.mode = ""
    await asyncio.sleep(10)
    await asyncio.sleep(rig.config.sweep_after + 1)  # nobody delivers its root task
    await rig.sweeper.run()


class Swept:
    """A queue, as the sweep function sees it."""

    name = "rig"
    services = Services(allow_unauthenticated=True)

    def sweep(self, **options: Any) -> SweepReport:
        return SweepReport(self.name, False)


@pytest.fixture(scope="module")
def lines() -> list[dict[str, Any]]:
    """What Cloud Logging would have of it: the fields of each line."""
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    handler.setFormatter(JsonFormatter())
    ours = logging.getLogger("forkjoin_gcp")
    before = ours.level
    ours.addHandler(handler)
    ours.setLevel(logging.INFO)
    try:
        run_virtual(everything_that_is_counted())
        with flask.Flask("sweep").test_request_context("/", method="POST"):
            assert sweep_function(Swept())(flask.request).status_code == 200
    finally:
        ours.removeHandler(handler)
        ours.setLevel(before)
    entries = [json.loads(line) for line in written.getvalue().splitlines()]
    told = [entry for entry in entries if "forkjoin" in entry]
    for entry in told:
        assert entry["forkjoin"]["queue"] == "rig"
        entry["forkjoin"]["queue"] = "feeds"
    return told


def metrics(plan: Plan) -> dict[str, dict[str, Any]]:
    """The metrics by their last name."""
    return {one["name"].partition("/")[2]: one for one in plan.of_type("google_logging_metric")}


def matches(entry: dict[str, Any], condition: str) -> bool:
    """Whether an entry meets one line of a filter."""
    field, _, value = condition.partition("=")
    if field == "resource.type":
        return value == '"cloud_run_revision"'
    if value == QUEUES:
        return valued(entry, field) in ("feeds", "mails")
    return f'"{valued(entry, field)}"' == value


def valued(entry: dict[str, Any], field: str) -> Any:
    at: Any = {"jsonPayload": entry}
    for name in field.split("."):
        at = at[name]
    return at


def extracted(entry: dict[str, Any], extractor: str) -> Any:
    found = re.fullmatch(r"EXTRACT\((.*)\)", extractor)
    assert found
    return valued(entry, found[1])


def check_metrics(plan: Plan, lines: list[dict[str, Any]]) -> None:
    """Every metric counts lines that are written, by fields that they have."""
    for name, metric in metrics(plan).items():
        conditions = metric["filter"].split("\n")
        counted = [line for line in lines if all(matches(line, one) for one in conditions if one)]
        assert counted, f"{name} counts nothing"
        for line in counted:
            assert extracted(line, metric["label_extractors"]["queue"]) == "feeds"
            if metric["value_extractor"]:
                assert isinstance(extracted(line, metric["value_extractor"]), int)
    dead = metrics(plan)["dead_letters"]["value_extractor"]
    chunks = [line for line in lines if line["forkjoin"]["event"] == "chunk"]
    assert sum(extracted(line, dead) for line in chunks) == 1


def test_every_metric_counts_lines_that_the_code_writes(
    plan: Plan, lines: list[dict[str, Any]]
) -> None:
    check_metrics(plan, lines)


@pytest.mark.parametrize(
    ("old", "new"), [('value = "dead"', 'value = "deaths"'), ('event = "late"', 'event = "tardy"')]
)
def test_a_metric_of_what_nobody_writes_is_noticed(
    changed: Workspace, lines: list[dict[str, Any]], old: str, new: str
) -> None:
    changed.edit("monitoring.tf", old, new)
    with pytest.raises((AssertionError, KeyError)):
        check_metrics(read_plan(changed), lines)


def test_every_event_is_in_the_papers(lines: list[dict[str, Any]]) -> None:
    paper = (REPOSITORY / "docs" / "configuration.md").read_text("utf-8")
    _, _, table = paper.partition("| event | when | also has |")
    cells = [row.split("|")[1] for row in table.partition("\n\n")[0].splitlines()[2:]]
    documented = {event for cell in cells for event in re.findall(r"`(\w+)`", cell)}
    assert documented == {line["forkjoin"]["event"] for line in lines}


def queries(plan: Plan) -> list[str]:
    """All PromQL, of alarms and of the dashboard."""
    alarms = [
        condition["condition_prometheus_query_language"][0]["query"]
        for policy in plan.of_type("google_monitoring_alert_policy")
        for condition in policy["conditions"]
        if condition["condition_prometheus_query_language"]
    ]
    (dashboard,) = plan.of_type("google_monitoring_dashboard")
    tiles = json.loads(dashboard["dashboard_json"])["mosaicLayout"]["tiles"]
    charts = [
        data["timeSeriesQuery"]["prometheusQuery"]
        for tile in tiles
        for data in tile["widget"]["xyChart"]["dataSets"]
    ]
    return alarms + charts


def test_alarms_and_charts_ask_for_metrics_that_are_there(plan: Plan) -> None:
    kinds = {
        name: metric["metric_descriptor"][0]["value_type"] for name, metric in metrics(plan).items()
    }
    there = {f"{name}_sum" if kind == "DISTRIBUTION" else name for name, kind in kinds.items()}
    asked = {name for query in queries(plan) for name in USER_METRIC.findall(query)}
    assert asked == there, "each metric is used, and each that is used is there"
    for query in queries(plan):
        for opening, closing in ("()", "{}", "[]"):
            assert query.count(opening) == query.count(closing), query


def test_every_alarm_says_what_to_do(plan: Plan) -> None:
    policies = plan.of_type("google_monitoring_alert_policy")
    assert {policy["display_name"].removeprefix("forkjoin: ") for policy in policies} == {
        "Memorystore fills up",
        "Memorystore is away",
        "a queue dispatches nothing",
        "items are given up",
        "tasks are dispatched late",
        "the sweeper does not run",
        "the sweeper finds forgotten batches",
        "writers are late",
    }
    for policy in policies:
        assert len(policy["documentation"][0]["content"]) > 60
