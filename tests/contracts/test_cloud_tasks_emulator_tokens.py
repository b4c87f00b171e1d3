"""The tokens that the Cloud Tasks emulator sends, and who can verify them."""

import asyncio
import time
from typing import Any

import aiohttp
import jwt
import pytest
from google.auth.transport.requests import Request
from google.oauth2 import id_token

from forkjoin_gcp.emulators.cloud_tasks.targets import DEFAULT_SCOPE
from forkjoin_gcp.emulators.cloud_tasks.tokens import TokenSigner

from .cloud_tasks import INVOKER, QUEUE, rig, task_for

NOW = 1_700_000_000.0


def test_the_token_is_one_that_googles_library_verifies() -> None:
    async def scenario() -> None:
        async with rig() as (emulator, client, target):
            tokens = []
            for audience in ("https://join.example", "https://join.example", ""):
                oidc = {"service_account_email": INVOKER, "audience": audience}
                request = {"oidc_token": oidc, "headers": {"Authorization": "replaced"}}
                await client.create_task(parent=QUEUE, task=task_for(target.url, request=request))
                sent, _, _ = await target.next()
                scheme, _, token = sent.headers["Authorization"].partition(" ")
                assert scheme == "Bearer"
                tokens.append(token)
            assert tokens[0] == tokens[1]  # signed once

            def verify(token: str, audience: str) -> Any:
                certs_url = emulator.certs_url
                return id_token.verify_token(token, Request(), audience, certs_url)

            claims = await asyncio.to_thread(verify, tokens[0], "https://join.example")
            assert claims["iss"] == "https://accounts.google.com"
            assert (claims["email"], claims["email_verified"]) == (INVOKER, True)
            assert claims["exp"] - claims["iat"] == 3_600
            assert abs(claims["iat"] - time.time()) < 60
            assert claims["sub"].isdigit()
            # Without an audience, the target's URI is it.
            claims = await asyncio.to_thread(verify, tokens[2], target.url)
            assert claims["aud"] == target.url
            with pytest.raises(jwt.InvalidAudienceError):
                await asyncio.to_thread(verify, tokens[0], "https://other.example")

    asyncio.run(scenario())


def test_a_token_is_renewed_before_it_expires() -> None:
    now = NOW
    signer = TokenSigner(lambda: now)
    first = signer.token(INVOKER, "a")
    now += 3_299
    assert signer.token(INVOKER, "a") == first
    now += 1
    assert signer.token(INVOKER, "a") != first
    assert signer.token(INVOKER, "b") != signer.token("other@p", "b")


def test_an_oauth_token_goes_along_and_can_be_asked_about() -> None:
    async def scenario() -> None:
        async with rig() as (emulator, client, target), aiohttp.ClientSession() as session:
            oauth = {"oauth_token": {"service_account_email": INVOKER}}
            created = await client.create_task(
                parent=QUEUE, task=task_for(target.url, request=oauth)
            )
            assert created.http_request.oauth_token.scope == DEFAULT_SCOPE
            sent, _, _ = await target.next()
            token = sent.headers["Authorization"].removeprefix("Bearer ")
            assert token.startswith("ya29.")
            about = emulator.http_url + "/tokeninfo"
            async with session.get(about, params={"access_token": token}) as response:
                known = await response.json()
            assert (known["email"], known["scope"]) == (INVOKER, DEFAULT_SCOPE)
            assert 3_590 <= int(known["expires_in"]) <= 3_600
            for wrong in ("", token[:-2], "ya29.c.x"):
                async with session.get(about, params={"access_token": wrong}) as response:
                    assert response.status == 400
                    assert (await response.json())["error"] == "invalid_token"

    asyncio.run(scenario())


def test_tokens_of_a_key_that_was_kept_are_still_good_until_they_expire() -> None:
    now = NOW
    first = TokenSigner(lambda: now)
    token = first.access_token(INVOKER, "scope")
    second = TokenSigner(lambda: now, first.private_key)
    assert second.jwks() == first.jwks()
    known = second.token_info(token)
    assert known is not None
    assert (known["scope"], known["expires_in"]) == ("scope", "3600")
    # An ID token is no access token.
    assert second.token_info("ya29.c." + first.token(INVOKER, "a")) is None
    now += 3_600
    assert second.token_info(token) is None
