"""The environment: everything set that is needed, nothing that nobody reads, nothing of a test."""

from __future__ import annotations

from forkjoin_gcp.config import VARIABLES, Services, unknown_variables
from forkjoin_gcp.gcp.doctor.findings import Finding, Status, Subject

NAME = "environment"
NEEDED = ("project", "location", "memorystore", "join_url")
EMULATORS = ("firestore_emulator_host", "cloud_tasks_emulator_host")
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")


async def check_environment(subject: Subject) -> list[Finding]:
    """The variables, by themselves and together."""
    services = subject.services
    found = [
        Finding(
            NAME,
            Status.FAULT,
            f"{VARIABLES[field]} is not set",
            f"Set it: {Services.model_fields[field].description}",
        )
        for field in NEEDED
        if getattr(services, field) is None
    ]
    found += [
        Finding(NAME, Status.WARNING, f"{name} is set, and nothing reads it{nearest}", "Unset it")
        for name, nearest in unknown_variables(subject.environ).items()
    ]
    found += _callers(subject) + _emulators(subject)
    return found or [Finding(NAME, Status.OK, "all variables are set")]


def _callers(subject: Subject) -> list[Finding]:
    services = subject.services
    found = []
    if services.allow_unauthenticated:
        found.append(
            Finding(
                NAME,
                Status.WARNING if subject.local else Status.FAULT,
                f"{VARIABLES['allow_unauthenticated']} is true: anyone may call the join URL",
                f"Unset it, and set {VARIABLES['invoker']}",
            )
        )
    elif services.invoker is None:
        found.append(
            Finding(
                NAME,
                Status.FAULT,
                f"{VARIABLES['invoker']} is not set",
                "Set it to the service account whose token the tasks carry",
            )
        )
    if subject.local:
        return found
    if services.join_url is not None and not services.join_url.startswith("https://"):
        found.append(
            Finding(
                NAME,
                Status.FAULT,
                f"{VARIABLES['join_url']}={services.join_url} is not https: tokens would be read",
                "Set it to the https:// URL of the join service",
            )
        )
    if services.certs_url is not None:
        found.append(
            Finding(
                NAME,
                Status.FAULT,
                f"{VARIABLES['certs_url']} is set: tokens of others than Google are believed",
                "Unset it; it is for local services",
            )
        )
    return found


def _emulators(subject: Subject) -> list[Finding]:
    found = []
    for field in EMULATORS:
        address = getattr(subject.services, field)
        if subject.local and address is None:
            text = f"{VARIABLES[field]} is not set: Google Cloud would be called"
            fix = 'eval "$(forkjoin local env)"'
        elif not subject.local and address is not None:
            text = f"{VARIABLES[field]}={address}: an emulator would be called, not Google Cloud"
            fix = "Unset it, or say --local"
        else:
            continue
        found.append(Finding(NAME, Status.FAULT, text, fix))
    return found
