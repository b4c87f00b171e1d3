from __future__ import annotations

import logging
import re
from typing import Any

import pytest

from forkjoin_gcp import ConfigurationError, ForkJoinQueue, QueueConfig, Services
from forkjoin_gcp.config import VARIABLES, Settings


def test_defaults_are_the_documented_ones() -> None:
    config = QueueConfig("feeds")
    assert config.batch_period == 0.5
    assert config.batch_size == 100
    assert config.max_batch_items == 10_000
    assert (config.shards, config.lanes) == (1, 1)
    assert (config.writer_timeout, config.acquire_timeout, config.acquire_attempts) == (10, 1, 3)
    assert (config.max_attempts, config.retry_min_backoff, config.retry_max_backoff) == (5, 10, 600)
    assert (config.dispatch_deadline, config.concurrency) == (600, 50)
    assert (config.on_success, config.version, config.storage) == ("delete", "v1", "firestore")
    assert (config.expire_after, config.sweep_after) == (604_800, 1_800)


def test_keyword_arguments_and_settings_are_the_same_list() -> None:
    assert set(Settings.__annotations__) == set(QueueConfig.model_fields) - {"name"}


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("batch_period", 500, r"batch_period=500: must be seconds, from 0 to 60"),
        ("batch_period", -1, r"batch_period=-1"),
        ("batch_period", float("nan"), r"batch_period=nan"),
        ("batch_period", "0.5", r"batch_period='0.5': must be seconds"),
        ("batch_size", 0, r"batch_size=0: must be a whole number \(items\), from 1 to 1,000"),
        ("batch_size", 2.5, r"batch_size=2.5: must be a whole number"),
        ("batch_size", True, r"batch_size=True"),
        ("shards", 101, r"shards=101: must be a whole number \(queues\), from 1 to 100"),
        ("lanes", 0, r"lanes=0"),
        ("dispatch_deadline", 14, r"from 15 to 1,800"),
        ("on_success", "drop", r"on_success='drop': must be 'delete' or 'keep'"),
        ("storage", "redis", r"must be 'firestore' or 'memorystore'"),
        ("version", "V1", r"version 'V1'"),
        ("batch_periods", 1, r"unknown setting 'batch_periods'; did you mean 'batch_period'"),
        ("sync_timeout_ms", 250, r"unknown setting 'sync_timeout_ms'"),
        ("max_batch_items", 99, r"batch_size=100 is more than max_batch_items=99"),
        ("retry_min_backoff", 601, r"retry_min_backoff=601 is more than retry_max_backoff=600"),
        ("writer_timeout", 299.0, None),
        ("expire_after", 60, r"expire_after=60"),
    ],
)
def test_settings_out_of_range_name_value_and_limits(
    setting: str, value: Any, message: str | None
) -> None:
    if message is None:
        assert getattr(QueueConfig("feeds", **{setting: value}), setting) == value
        return
    with pytest.raises(ConfigurationError, match=message):
        QueueConfig("feeds", **{setting: value})


def test_several_wrong_settings_are_all_named() -> None:
    with pytest.raises(ConfigurationError, match=r"lanes=0.*shards=0|shards=0.*lanes=0"):
        QueueConfig("feeds", lanes=0, shards=0)


@pytest.mark.parametrize("name", ["", "Feeds", "feeds_1", 7])
def test_bad_queue_names(name: Any) -> None:
    with pytest.raises(ConfigurationError, match="name"):
        QueueConfig(name)


def test_services_from_the_environment() -> None:
    values = {
        "project": "p",
        "location": "us-central1",
        "database": "fork",
        "memorystore": "redis://127.0.0.1:6379",
        "join_url": "https://join.example/forkjoin",
        "invoker": "invoker@p.iam.gserviceaccount.com",
        "audience": "https://join.example",
        "sweep_invoker": "scheduler@p.iam.gserviceaccount.com",
        "sweep_audience": "https://sweep.example",
        "certs_url": "http://127.0.0.1:1/certs",
        "allow_unauthenticated": "true",
        "firestore_emulator_host": "127.0.0.1:1",
        "cloud_tasks_emulator_host": "127.0.0.1:2",
    }
    assert set(values) == set(VARIABLES) == set(Services.model_fields)
    services = Services.from_env({VARIABLES[field]: value for field, value in values.items()})
    given = services.model_dump()
    assert given.pop("allow_unauthenticated") is True
    assert given == {field: v for field, v in values.items() if field != "allow_unauthenticated"}


def test_google_cloud_project_stands_in_and_empty_is_unset() -> None:
    services = Services.from_env({"GOOGLE_CLOUD_PROJECT": "g", "FORKJOIN_PROJECT": ""})
    assert services.project == "g"


def test_unknown_variables_are_reported(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        Services.from_env({"FORKJOIN_PROJCT": "p", "FORKJOIN_QUEUE": "feeds:feeds"})
    (record,) = caplog.records
    assert "FORKJOIN_PROJCT" in record.message
    assert "FORKJOIN_PROJECT" in record.message


@pytest.mark.parametrize("field", ["project", "location", "memorystore", "join_url", "invoker"])
def test_what_is_missing_is_named_with_how_to_get_it(field: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"{VARIABLES[field]}.*forkjoin local up"):
        Services().need(field)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("memorystore", "localhost:6379"),
        ("memorystore", "projects/p/instances/i"),
        ("join_url", "join.example"),
        ("invoker", "somebody"),
        ("firestore_emulator_host", "http://127.0.0.1:1"),
        ("allow_unauthenticated", "perhaps"),
        ("project", ""),
    ],
)
def test_bad_services_name_variable_value_and_form(field: str, value: str) -> None:
    with pytest.raises(ConfigurationError, match=VARIABLES[field]) as caught:
        Services(**{field: value})
    assert repr(value) in str(caught.value)


def test_audience_is_the_join_url_unless_set() -> None:
    assert Services(join_url="https://a/b").token_audience() == "https://a/b"
    assert Services(join_url="https://a/b", audience="x").token_audience() == "x"


def test_settings_of_the_deployment_count_for_more_than_the_codes() -> None:
    environ = {"FORKJOIN_SETTINGS": '{"feeds": {"shards": 4, "batch_period": 2}, "mails": {}}'}
    config = QueueConfig.deployed("feeds", {"shards": 2, "batch_size": 10}, environ)
    assert (config.shards, config.batch_period, config.batch_size) == (4, 2, 10)
    assert QueueConfig.deployed("mails", {"shards": 2}, environ).shards == 2
    assert QueueConfig.deployed("other", {}, environ) == QueueConfig("other")
    assert QueueConfig.deployed("feeds", {}, {"FORKJOIN_SETTINGS": ""}) == QueueConfig("feeds")


def test_a_queue_takes_its_deployments_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORKJOIN_SETTINGS", '{"feeds": {"shards": 4}}')
    assert ForkJoinQueue("feeds", shards=2, batch_size=10).config == QueueConfig(
        "feeds", shards=4, batch_size=10
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("shards=4", "FORKJOIN_SETTINGS is not JSON"),
        ('["feeds"]', "FORKJOIN_SETTINGS must be settings by queue"),
        ('{"feeds": 4}', "FORKJOIN_SETTINGS must be settings by queue"),
        ('{"feeds": {"name": "x"}}', "FORKJOIN_SETTINGS, queue 'feeds': unknown setting 'name'"),
        (
            '{"feeds": {"shard": 4}}',
            "queue 'feeds': unknown setting 'shard'; did you mean",
        ),
        ('{"feeds": {"shards": 0}}', "FORKJOIN_SETTINGS, queue 'feeds': shards=0: must be a whole"),
    ],
)
def test_wrong_settings_of_the_deployment_are_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(message)):
        QueueConfig.deployed("feeds", {}, {"FORKJOIN_SETTINGS": text})
