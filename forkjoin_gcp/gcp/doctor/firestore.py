"""The database: there, readable, writable; what expires goes away, and no field is indexed."""

from __future__ import annotations

from typing import Any

from google.api_core.exceptions import GoogleAPICallError, NotFound, PermissionDenied
from google.auth.exceptions import GoogleAuthError
from google.cloud.firestore_admin_v1 import Field
from google.cloud.firestore_admin_v1.services.firestore_admin import FirestoreAdminAsyncClient
from google.cloud.firestore_v1 import types

from forkjoin_gcp.errors import ConfigurationError, StoreRefused, StoreUnavailable
from forkjoin_gcp.gcp.doctor.findings import Finding, Status, Subject, one_line
from forkjoin_gcp.gcp.firestore_client import NOT_FOUND, FirestoreCalls, UnmetError
from forkjoin_gcp.gcp.firestore_documents import DEAD_LETTERS, EXPIRE_AT, SEGMENTS
from forkjoin_gcp.gcp.firestore_scan import ROOT
from forkjoin_gcp.ports import Counters

SECONDS = 5.0
_Write: Any = types.Write.pb()


async def check_database(subject: Subject) -> list[Finding]:
    """Reads a document that is not there, and asks to change it, which is refused as such."""
    name = "database"
    if subject.services.project is None:
        return [Finding(name, Status.SKIPPED, "the project is not known")]
    if subject.local and subject.services.firestore_emulator_host is None:
        return [Finding(name, Status.SKIPPED, "there is no emulator to ask")]
    calls = FirestoreCalls(
        subject.services, Counters(), write_seconds=SECONDS, read_seconds=SECONDS
    )
    document = calls.name(f"{ROOT}/doctor")
    write = _Write(delete=document)
    write.current_document.exists = True
    try:
        await calls.get([document])
        await calls.commit([write])
    except UnmetError as error:
        if error.code != NOT_FOUND:
            raise
    except (ConfigurationError, StoreRefused) as error:
        return [Finding(name, Status.FAULT, one_line(error), "As it says")]
    except StoreUnavailable as error:
        fix = "forkjoin local up" if subject.local else "See whether this network reaches it"
        return [Finding(name, Status.FAULT, one_line(error), fix)]
    finally:
        await calls.close()
    return [Finding(name, Status.OK, f"{calls.database} may be read and written")]


async def check_expiry(subject: Subject) -> list[Finding]:
    """Whether a TTL policy deletes segments by ``expire_at``, and whether fields are indexed."""
    name = "expiry"
    if subject.local or subject.services.firestore_emulator_host:
        return [Finding(name, Status.SKIPPED, "an emulator has no TTL policies")]
    if subject.services.project is None:
        return [Finding(name, Status.SKIPPED, "the project is not known")]
    database = f"projects/{subject.services.project}/databases/{subject.services.database}"
    try:
        client = FirestoreAdminAsyncClient()
    except GoogleAuthError as error:
        return [Finding(name, Status.FAULT, one_line(error), "See the check of credentials")]
    try:
        found = [await _policy(client, database, SEGMENTS)]
        for group in (SEGMENTS, DEAD_LETTERS):
            found += await _indexes(client, database, group)
        return found
    finally:
        transport: Any = client.transport
        await transport.close()


async def _policy(client: FirestoreAdminAsyncClient, database: str, group: str) -> Finding:
    name = "expiry"
    field = f"{database}/collectionGroups/{group}/fields/{EXPIRE_AT}"
    try:
        found = await client.get_field(name=field, timeout=SECONDS, retry=None)
    except PermissionDenied:
        fix = "For this check grant roles/datastore.viewer; nothing else needs it"
        return Finding(name, Status.WARNING, f"{group}: its policy may not be looked at", fix)
    except NotFound as error:
        return Finding(name, Status.FAULT, one_line(error), "See the check of the database")
    except GoogleAPICallError as error:
        return Finding(name, Status.WARNING, f"{group}: {one_line(error)}", "Try again")
    state = found.ttl_config.state if "ttl_config" in found else None
    if state == Field.TtlConfig.State.ACTIVE:
        return Finding(name, Status.OK, f"{group}: deleted by {EXPIRE_AT}")
    if state == Field.TtlConfig.State.CREATING:
        text = f"{group}: its policy is being created"
        return Finding(name, Status.WARNING, text, "Wait; it takes ten minutes or more")
    fix = (
        f"gcloud firestore fields ttls update {EXPIRE_AT} --collection-group={group} "
        f"--database='{database.rpartition('/')[2]}' --enable-ttl"
    )
    text = f"{group}: nothing deletes what has expired; it is kept, and paid for, for ever"
    return Finding(name, Status.FAULT, text, fix)


async def _indexes(client: FirestoreAdminAsyncClient, database: str, group: str) -> list[Finding]:
    """Every query goes by document name: an index is paid for at each write, and one on a time that
    rises bounds how many writes there can be."""
    try:
        found = await client.get_field(
            name=f"{database}/collectionGroups/{group}/fields/*", timeout=SECONDS, retry=None
        )
    except GoogleAPICallError:
        return []  # what is wrong with the database is said by the other checks
    if not (found.index_config.uses_ancestor_config or found.index_config.indexes):
        return []
    text = f"{group}: every field is indexed, which each write pays for, and slows at 500 a second"
    fix = f"Exempt all fields (*) of {group} from indexes; terraform/firestore.tf does"
    return [Finding("expiry", Status.WARNING, text, fix)]
