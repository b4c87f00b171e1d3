"""What the queues of the Cloud Tasks emulator put in the place of their tasks' settings."""

import asyncio
from typing import Any
from urllib.parse import urlsplit

import jwt
import pytest
from google.cloud import tasks_v2
from google.protobuf import field_mask_pb2

from .cloud_tasks import INVOKER, PARENT, QUEUE, rig, running, said_by, task_for


def overriding(**target: Any) -> tasks_v2.Queue:
    return tasks_v2.Queue(name=QUEUE, http_target=tasks_v2.HttpTarget(**target))


def test_a_queue_overrides_what_its_tasks_ask_for() -> None:
    async def scenario() -> None:
        async with rig() as (_, client, target):
            port = urlsplit(target.url).port
            override = overriding(
                uri_override={
                    "scheme": "HTTP",
                    "host": "127.0.0.1",
                    "port": port,
                    "path_override": {"path": "/other"},
                    "query_override": {"query_params": "a=1"},
                },
                http_method="PUT",
                header_overrides=[{"header": {"key": "x-mine", "value": "the queue's"}}],
                oidc_token={"service_account_email": INVOKER, "audience": "https://join.example"},
            )
            shown = await client.update_queue(queue=override)
            always = tasks_v2.UriOverride.UriOverrideEnforceMode.ALWAYS
            assert shown.http_target.uri_override.uri_override_enforce_mode == always
            assert shown.http_target.header_overrides[0].header.key == "x-mine"
            request = {"headers": {"X-Mine": "the task's", "X-Kept": "kept"}, "body": b"body"}
            task = task_for("https://nowhere.invalid/path?b=2", "t", request=request)
            created = await client.create_task(parent=QUEUE, task=task)
            assert created.http_request.url == "https://nowhere.invalid/path?b=2"  # as submitted
            sent, body, _ = await target.next()
            assert (sent.method, sent.path_qs, body) == ("PUT", "/other?a=1", b"body")
            assert sent.headers.getall("X-Mine") == ["the queue's"]
            assert sent.headers["X-Kept"] == "kept"
            token = sent.headers["Authorization"].removeprefix("Bearer ")
            claims = jwt.decode(token, options={"verify_signature": False})
            assert (claims["aud"], claims["email"]) == ("https://join.example", INVOKER)

    asyncio.run(scenario())


def test_a_body_does_not_go_with_an_overriding_get() -> None:
    async def scenario() -> None:
        async with rig() as (_, client, target):
            await client.update_queue(queue=overriding(http_method="GET"))
            task = task_for(target.url, request={"body": b"body"})
            await client.create_task(parent=QUEUE, task=task)
            sent, body, _ = await target.next()
            assert (sent.method, body) == ("GET", b"")

    asyncio.run(scenario())


def test_an_override_is_changed_field_by_field_and_taken_away() -> None:
    async def scenario() -> None:
        async with rig() as (_, client, _target):
            first = overriding(
                uri_override={"host": "a.example", "port": 1},
                header_overrides=[{"header": {"key": "a", "value": "1"}}],
            )
            first.retry_config.max_attempts = 7
            await client.update_queue(queue=first)

            async def update(path: str, **target: Any) -> tasks_v2.HttpTarget:
                mask = field_mask_pb2.FieldMask(paths=[path])
                changed = await client.update_queue(queue=overriding(**target), update_mask=mask)
                assert changed.retry_config.max_attempts == 7  # left alone
                return changed.http_target

            shown = await update("http_target.uri_override.host", uri_override={"host": "b.c"})
            assert (shown.uri_override.host, shown.uri_override.port) == ("b.c", 1)
            shown = await update("http_target.uri_override.port")
            assert "port" not in shown.uri_override
            shown = await update("http_target.header_overrides")
            assert list(shown.header_overrides) == []
            assert shown.uri_override.host == "b.c"
            mask = field_mask_pb2.FieldMask(paths=["http_target", "state", "name"])
            bare = tasks_v2.Queue(name=QUEUE, state=tasks_v2.Queue.State.PAUSED)
            changed = await client.update_queue(queue=bare, update_mask=mask)
            assert "http_target" not in changed
            assert changed.state == tasks_v2.Queue.State.RUNNING
            for path in (
                "nothing",
                "rate_limits.nothing",
                "name.x",
                "http_target.header_overrides.x",
            ):
                mask = field_mask_pb2.FieldMask(paths=[path])
                said = await said_by(client.update_queue(queue=bare, update_mask=mask))
                assert said == ("INVALID_ARGUMENT", f"Invalid field mask path: {path}")

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ({"uri_override": {"host": ""}}, "UriOverride.host must be a host name"),
        ({"uri_override": {"host": "a/b"}}, "UriOverride.host must be a host name"),
        ({"uri_override": {"port": -1}}, "UriOverride.port must be between 0 and 65535."),
        ({"uri_override": {"port": 65_536}}, "UriOverride.port must be between 0 and 65535."),
        ({"http_method": 99}, "The HTTP method 99 does not exist."),
        (
            {"oidc_token": {"service_account_email": INVOKER}},
            "OidcToken.audience is required in a queue-level override.",
        ),
        (
            {"oauth_token": {"service_account_email": INVOKER}},
            "OAuthToken.scope is required in a queue-level override.",
        ),
        ({"oauth_token": {"scope": "s"}}, "OAuthToken.service_account_email is required."),
        (
            {"header_overrides": [{"header": {"key": "a b", "value": "c"}}]},
            "HttpTarget.headerOverrides has an invalid header name: 'a b'",
        ),
        (
            {"header_overrides": [{"header": {"key": "a", "value": "b" * 81_920}}]},
            "The size of HttpTarget.headerOverrides must be less than 80KB.",
        ),
    ],
)
def test_what_is_wrong_with_an_override_is_said(target: dict[str, Any], message: str) -> None:
    async def scenario() -> None:
        async with running() as (_, client):
            code, said = await said_by(
                client.create_queue(parent=PARENT, queue=overriding(**target))
            )
            assert code == "INVALID_ARGUMENT"
            assert message in said

    asyncio.run(scenario())
