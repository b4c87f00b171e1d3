"""The table of attacks: what is sent, the status that it gets, and what the refusal says.

Each would have the loot handled but for the one thing that is wrong with it.
"""

from __future__ import annotations

import gzip
import time
from collections.abc import Callable, Iterator
from typing import Any

from forkjoin_gcp.endpoint.core import MAX_BODY_BYTES
from forkjoin_gcp.names import Batch, Lane
from forkjoin_gcp.tasks import ChunkTask, RootTask
from tests.integration.function_process import Answer
from tests.integration.thief import DEAD_END, STRANGERS_KEY, Thief


def chunked(body: bytes) -> Iterator[bytes]:
    for start in range(0, len(body), 4_096):
        yield body[start : start + 4_096]


Attack = Callable[[Thief], Answer]
SERVER = None
"""What says so is the web server, before the endpoint sees anything of it."""

TOKENS: dict[str, tuple[Attack, int, str | None]] = {
    "no token": (lambda t: t.function.post(t.task), 401, "no token"),
    "a password": (lambda t: t.try_headers("Authorization: Basic eDp5"), 401, "not a bearer"),
    "an empty token": (lambda t: t.try_headers("Authorization: Bearer "), 401, "not a bearer"),
    "garbage": (lambda t: t.try_token("garbage"), 401, "malformed"),
    "three parts of nothing": (lambda t: t.try_token(".."), 401, "malformed"),
    "expired": (lambda t: t.try_token(t.token(exp=int(time.time()) - 60)), 401, "expired"),
    "not yet valid": (
        lambda t: t.try_token(t.token(iat=int(time.time()) + 900)),
        401,
        "not valid yet",
    ),
    "wrong audience: another service's": (
        lambda t: t.try_token(t.token(aud="https://another.example/")),
        401,
        "another audience",
    ),
    "wrong audience: this one among others": (
        lambda t: t.try_token(t.token(aud=[t.audience, "https://another.example/"])),
        401,
        "another audience",
    ),
    "wrong audience: the local service's own token for another": (
        lambda t: t.try_token(t.issuer.token(t.invoker, DEAD_END)),
        401,
        "another audience",
    ),
    "wrong issuer": (
        lambda t: t.try_token(t.token(iss="https://accounts.example.com")),
        401,
        "issuer",
    ),
    "wrong service account": (
        lambda t: t.try_token(t.issuer.token("tasks@q.iam.gserviceaccount.com", t.audience)),
        403,
        "not the invoker's",
    ),
    "an address that nobody verified": (
        lambda t: t.try_token(t.token(email_verified=False)),
        403,
        "not the invoker's",
    ),
    "an access token in place of an ID token": (
        lambda t: t.try_token(t.issuer.access_token(t.invoker, "")),
        401,
        "malformed",
    ),
    "alg=none": (lambda t: t.try_token(t.unsigned("none")), 401, "not verify"),
    "alg=None": (lambda t: t.try_token(t.unsigned("None")), 401, "not verify"),
    "no signature": (lambda t: t.try_token(t.unsigned("RS256")), 401, "not verify"),
    "HS256 with the public key": (
        lambda t: t.try_token(t.signed_with_the_public_key()),
        401,
        "not verify",
    ),
    "a key of another JWKS": (lambda t: t.try_token(t.token(STRANGERS_KEY)), 401, "not verify"),
    "a key of another JWKS, by its own id": (
        lambda t: t.try_token(t.token(STRANGERS_KEY, {"kid": "strangers"})),
        401,
        "not verify",
    ),
    "a key that the token brings along": (
        lambda t: t.try_token(t.with_its_key_along()),
        401,
        "not verify",
    ),
    "another payload under a good signature": (
        lambda t: t.try_token(t.with_another_payload()),
        401,
        "not verify",
    ),
    "signature removed, as Cloud Run does": (
        lambda t: t.try_token(t.token().rpartition(".")[0] + ".SIGNATURE_REMOVED_BY_GOOGLE"),
        401,
        "Cloud Run",
    ),
    "a token of 100,000 bytes": (lambda t: t.try_token("x" * 100_000), 431, SERVER),
    "two tokens, one good": (
        lambda t: t.try_headers(t.bearer, "Authorization: Bearer bad"),
        401,
        "not a bearer",
    ),
    "the same token twice": (lambda t: t.try_headers(t.bearer, t.bearer), 401, "not a bearer"),
    "a good token where none belongs": (
        lambda t: t.function.post(
            t.tasks(access_token=t.token()),
            {"Cookie": f"token={t.token()}", "X-Serverless-Authorization": f"Bearer {t.token()}"},
            path=f"/forkjoin?access_token={t.token()}",
        ),
        401,
        "no token",
    ),
}

SPOOFED: dict[str, tuple[Attack, int, str | None]] = {
    "Cloud Tasks' headers from outside": (
        lambda t: t.function.post(
            t.task,
            {
                "User-Agent": "Google-Cloud-Tasks",
                "X-CloudTasks-QueueName": "feeds-1",
                "X-CloudTasks-TaskName": ChunkTask(t.loot, 0, 100).task_id,
                "X-CloudTasks-TaskRetryCount": "0",
                "X-CloudTasks-TaskExecutionCount": "0",
                "X-CloudTasks-TaskETA": "1700000000.0",
            },
        ),
        401,
        "no token",
    ),
    "App Engine's and a proxy's": (
        lambda t: t.function.post(
            t.task,
            {
                "X-AppEngine-QueueName": "feeds-1",
                "X-Google-Internal-SkipAdminCheck": "1",
                "X-Goog-Authenticated-User-Email": f"accounts.google.com:{t.invoker}",
                "X-Forwarded-Authorization": f"Bearer {t.token()}",
                "Proxy-Authorization": f"Bearer {t.token()}",
                "X-Forwarded-For": "127.0.0.1",
            },
        ),
        401,
        "no token",
    ),
    "a header spelt as a variable": (
        lambda t: t.try_headers(f"Authorization_: Bearer {t.token()}"),
        401,
        "no token",
    ),
    "another method behind POST's back": (
        lambda t: t.function.post(
            t.task, {"X-HTTP-Method-Override": "POST"}, method="PUT", token=t.token()
        ),
        405,
        "only POST",
    ),
    "a preflight": (
        lambda t: t.function.post(
            None, {"Origin": "https://e.example"}, method="OPTIONS", token=t.token()
        ),
        405,
        "only POST",
    ),
    "a method that is none": (
        lambda t: t.function.post(t.task, method="PROPFIND", token=t.token()),
        405,
        "only POST",
    ),
    "a form, which a browser may send from anywhere": (
        lambda t: t.try_body(t.task, Content_Type="text/plain"),
        415,
        "application/json",
    ),
    "two content types": (
        lambda t: t.try_headers(t.bearer, "Content-Type: text/plain"),
        400,
        SERVER,
    ),
}

BODIES: dict[str, tuple[Attack, int, str | None]] = {
    "oversized": (lambda t: t.try_body(b" " * (MAX_BODY_BYTES + 1)), 413, "65,536"),
    "oversized, in chunks without a length": (
        lambda t: t.try_body(chunked(t.task.ljust(MAX_BODY_BYTES + 1))),
        413,
        "65,536",
    ),
    "oversized by its header, of which nothing comes": (
        lambda t: t.try_raw("POST", b"", t.bearer, "Content-Length: 10000000000"),
        413,
        "65,536",
    ),
    "a small gzip of much": (
        lambda t: t.try_body(gzip.compress(t.task.ljust(10**7)), Content_Encoding="gzip"),
        400,
        "Invalid JSON",
    ),
    "lists in lists": (lambda t: t.try_body(b"[" * MAX_BODY_BYTES), 400, "recursion limit"),
    "objects in objects": (lambda t: t.try_body(b'{"kind":' * 8_000), 400, "recursion limit"),
    "lists in lists, closed": (
        lambda t: t.try_body(b"[" * 30_000 + b"]" * 30_000),
        400,
        "recursion limit",
    ),
    "a number of 60,000 digits": (lambda t: t.try_body(b"9" * 60_000), 400, "body"),
    "nothing": (lambda t: t.try_body(b""), 400, "Invalid JSON"),
    "not UTF-8": (lambda t: t.try_body(b'{"kind": "\xff\xfe"}'), 400, "Invalid JSON"),
    "UTF-16": (lambda t: t.try_body(t.task.decode().encode("utf-16")), 400, "Invalid JSON"),
    "a list of tasks": (lambda t: t.try_body(b"[" + t.task + b"]"), 400, "body"),
    "two tasks": (lambda t: t.try_body(t.task + t.task), 400, "Invalid JSON"),
    "a field more": (lambda t: t.try_task(handler="os.system"), 400, "handler"),
    "breaks off": (
        lambda t: t.try_raw("POST", t.task[:20], t.bearer, "Content-Length: 500", end=True),
        400,
        None,
    ),
    "a chunk whose size is none": (
        lambda t: t.try_raw("POST", b"xyz\r\n{}\r\n", t.bearer, "Transfer-Encoding: chunked"),
        400,
        None,
    ),
    "a chunk that is never ended": (
        lambda t: t.try_raw(
            "POST", b"ffff\r\n" + t.task, t.bearer, "Transfer-Encoding: chunked", end=True
        ),
        400,
        None,
    ),
    "length and chunks: one request or two?": (
        lambda t: t.try_raw(
            "POST",
            b"0\r\n\r\nPOST /forkjoin HTTP/1.1\r\n",
            *(t.bearer, "Content-Length: 5", "Transfer-Encoding: chunked"),
        ),
        400,
        None,
    ),
    "two lengths": (
        lambda t: t.try_headers(t.bearer, "Content-Length: 5"),
        400,
        SERVER,
    ),
    "a length below nothing": (
        lambda t: t.try_raw("POST", t.task, t.bearer, "Content-Length: -1"),
        400,
        SERVER,
    ),
    "a header folded into the next": (
        lambda t: t.try_headers(t.bearer, "X-CloudTasks-TaskName: a", " b: c"),
        400,
        SERVER,
    ),
}

ODD_QUEUES = ("", ".", "..", "feeds/../private", "feeds.v1", "private\0", "FEEDS", "f" * 64, "{x}")
ODD_VERSIONS = ("", "..", "../v1", "v1/batches/x", "v1/0}:batch:{", "v1_", "v" * 32, "v\u0661")
ODD_KEYS = (
    "",
    "0",
    "..",
    "../../private.v1",
    "00000000-0-1700000000000",  # not the hash of that index
    "00000000-0-0/fj_segments/00000000",
    "00000000-00-0",
    "00000000-0-00",
    "00000000-1000-0",
    "00000000-0-0\n",
    "0000000G-0-0",
    "00000000-0--1",
    "٠٠٠٠٠٠٠٠-0-0",
)
ODD_FIELDS: tuple[tuple[str, Any], ...] = (
    ("kind", "sweep"),
    ("kind", None),
    ("first", -1),
    ("first", 100),  # not before stop
    ("first", "0"),
    ("first", 0.5),
    ("first", True),
    ("first", [0]),
    ("stop", 0),
    ("stop", 10**8 + 1),
    ("stop", 10**400),
    ("stop", ...),
    ("generation", -1),
    ("generation", 10**400),
    ("generation", {}),
    ("due", -1),
    ("due", 1e300),
    ("due", "NaN"),
    ("full", True),
    ("full", "yes"),
)


def _odd(field: str, value: Any) -> tuple[Attack, int, str | None]:
    return lambda t: t.try_task(**{field: value}), 400, ""


AIMS: dict[str, tuple[Attack, int, str | None]] = {
    "a queue that is not served here": (lambda t: t.try_task(queue="private"), 404, "'private'"),
    "its root": (
        lambda t: t.try_body(RootTask(Batch(Lane("private", "v1"), t.loot.index)).body()),
        404,
        "'private'",
    ),
    "not a number, spelt out": (
        lambda t: t.try_body(t.task[:-1] + b', "due": NaN}'),
        400,
        "due",
    ),
    **{f"queue {value!r:.30}": _odd("queue", value) for value in ODD_QUEUES},
    **{f"version {value!r:.30}": _odd("version", value) for value in ODD_VERSIONS},
    **{f"batch {value!r:.30}": _odd("batch", value) for value in ODD_KEYS},
    **{f"{field} {value!r:.30}": _odd(field, value) for field, value in ODD_FIELDS},
}

ATTACKS = {
    f"{kind}: {name}": attack
    for kind, table in {
        "token": TOKENS,
        "spoofed": SPOOFED,
        "body": BODIES,
        "aim": AIMS,
    }.items()
    for name, attack in table.items()
}
