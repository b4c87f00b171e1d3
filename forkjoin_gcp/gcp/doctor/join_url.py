"""The join URL: somebody answers there, it is ours, and it asks for a token."""

from __future__ import annotations

import asyncio
import json

import requests

from forkjoin_gcp.config import VARIABLES
from forkjoin_gcp.gcp.doctor.findings import Finding, Status, Subject, one_line

NAME = "join URL"
SECONDS = 20.0
"""A cold start is waited for."""


async def check_join_url(subject: Subject) -> list[Finding]:
    """Posts to it without a token, which must be answered 401 by this package's endpoint."""
    url = subject.services.join_url
    if url is None:
        return [Finding(NAME, Status.SKIPPED, f"{VARIABLES['join_url']} is not set")]
    try:
        status, reason, ours = await asyncio.to_thread(_post, url)
    except (requests.RequestException, OSError) as error:
        fix = (
            "Start what serves the queue there"
            if subject.local
            else "See whether the service is deployed, and whether its ingress lets this one in"
        )
        return [Finding(NAME, Status.FAULT, f"{url}: {one_line(error)}", fix)]
    text = f"{url} answers {status} without a token" + (f" ({reason})" if reason else "")
    if status == 401 and ours:
        return [Finding(NAME, Status.OK, text)]
    if status == 400 and ours and subject.services.allow_unauthenticated and subject.local:
        return [Finding(NAME, Status.OK, f"{text}, as it takes anyone")]
    return [Finding(NAME, Status.FAULT, text, _fix(status, ours))]


def _fix(status: int, ours: bool) -> str:
    if (status == 400 and ours) or 200 <= status < 300:
        return f"Anyone can make it work: unset {VARIABLES['allow_unauthenticated']} there"
    if status in (401, 403):
        return (
            "Cloud Run's own check of callers is on, and takes the signature off tokens: let "
            "allUsers invoke the service, or switch the check off; the endpoint checks itself"
        )
    if status == 404:
        return (
            f"Correct the path in {VARIABLES['join_url']}; from outside, a service with internal "
            "ingress answers this as well"
        )
    if status == 503 and ours:
        return "Read the service's log: what its environment lacks is said there"
    return f"Something else answers there: correct {VARIABLES['join_url']}"


def _post(url: str) -> tuple[int, str, bool]:
    """The status, the reason it gives, and whether it is this package that answers."""
    # Cloud Tasks follows no redirect either.
    response = requests.post(
        url,
        data=b"{}",
        headers={"Content-Type": "application/json"},
        timeout=SECONDS,
        allow_redirects=False,
    )
    try:
        body = json.loads(response.content[:10_000])
    except ValueError:
        return response.status_code, "", False
    reason = body.get("error") if isinstance(body, dict) else None
    if isinstance(reason, str) and set(body) == {"error"}:
        return response.status_code, reason, True
    return response.status_code, "", False
