"""Who we are, and whether that account may do what the others do not show."""

from __future__ import annotations

import asyncio
from typing import Any
from urllib.parse import quote

import google.auth
from google.auth.exceptions import GoogleAuthError
from google.auth.transport.requests import AuthorizedSession, Request

from forkjoin_gcp.config import VARIABLES
from forkjoin_gcp.gcp.doctor.findings import Finding, Status, Subject, one_line

SCOPES = ("https://www.googleapis.com/auth/cloud-platform",)
SECONDS = 10.0
ACT_AS = "iam.serviceAccounts.actAs"
IAM_URL = "https://iam.googleapis.com/v1/projects/-/serviceAccounts"


async def check_credentials(subject: Subject) -> list[Finding]:
    """Whether this process has credentials that give an access token, and of which account."""
    name = "credentials"
    if subject.local:
        return [Finding(name, Status.SKIPPED, "local services need none")]
    try:
        credentials, project = await asyncio.to_thread(google.auth.default, scopes=SCOPES)
        await asyncio.to_thread(credentials.refresh, Request())
    except GoogleAuthError as error:
        return [
            Finding(
                name,
                Status.FAULT,
                f"no access token: {one_line(error)}",
                "On Google Cloud give the service a service account; elsewhere run "
                "`gcloud auth application-default login`",
            )
        ]
    account = getattr(credentials, "service_account_email", None) or "a user's account"
    if project and subject.services.project and project != subject.services.project:
        text = f"{account}; its own project is {project}, not {subject.services.project}"
        fix = f"Correct {VARIABLES['project']}, unless that is meant"
        return [Finding(name, Status.WARNING, text, fix)]
    return [Finding(name, Status.OK, f"an access token for {account}")]


async def check_invoker(subject: Subject) -> list[Finding]:
    """Whether this account may have tasks carry the invoker's token: ``actAs``."""
    name, invoker = "invoker", subject.services.invoker
    if subject.local or invoker is None:
        why = "local services ask for no permission" if subject.local else "it is not known"
        return [Finding(name, Status.SKIPPED, why)]
    try:
        status, answer = await asyncio.to_thread(_ask_iam, invoker)
    except (GoogleAuthError, OSError) as error:
        return [_unknown(f"IAM gave no answer: {one_line(error)}")]
    if status == 404:
        text = f"there is no service account {invoker}"
        return [Finding(name, Status.FAULT, text, f"Create it, or correct {VARIABLES['invoker']}")]
    if status != 200:
        return [_unknown(f"IAM answered {status}")]
    if ACT_AS not in answer.get("permissions", []):
        text = f"this account may not act as {invoker}: Cloud Tasks will refuse every task"
        fix = f"Grant it roles/iam.serviceAccountUser on {invoker}"
        return [Finding(name, Status.FAULT, text, fix)]
    return [Finding(name, Status.OK, f"tasks may carry the token of {invoker}")]


def _unknown(text: str) -> Finding:
    fix = "Enable iam.googleapis.com for the doctor to see this; nothing else needs it"
    return Finding("invoker", Status.WARNING, text, fix)


def _ask_iam(invoker: str) -> tuple[int, dict[str, Any]]:
    credentials, _ = google.auth.default(scopes=SCOPES)
    session: Any = AuthorizedSession(credentials)  # type: ignore[no-untyped-call]
    with session:
        response = session.post(
            f"{IAM_URL}/{quote(invoker)}:testIamPermissions",
            json={"permissions": [ACT_AS]},
            timeout=SECONDS,
        )
        return response.status_code, response.json() if response.status_code == 200 else {}
