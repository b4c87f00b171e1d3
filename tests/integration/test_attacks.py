"""Attacks on the join endpoint, as it is deployed, and what becomes of each.

The function runs under functions-framework with real queues on local services; its tokens are
verified with the JWKS of the local Cloud Tasks. Items lie in the store, and every request of the
table would have them handled if it were let in: it is the right request but for one thing. All are
refused with 4xx, nothing is handled, no traceback is answered or logged, and neither is a token.

What an attacker can do who has stolen a token is in ``test_a_stolen_token_...`` and after.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Iterator

import pytest

from forkjoin_gcp import ForkJoinQueue, Services
from forkjoin_gcp.emulators import LocalServices
from forkjoin_gcp.emulators.cloud_tasks.sqlite_journal import SqliteJournal
from forkjoin_gcp.emulators.cloud_tasks.tokens import TokenSigner
from forkjoin_gcp.emulators.processes import free_port
from forkjoin_gcp.names import MAX_INDEX, Batch, Lane
from forkjoin_gcp.tasks import ChunkTask, RootTask
from tests.integration.attacks import ATTACKS, Attack
from tests.integration.function_process import Function, running_function
from tests.integration.thief import DEAD_END, Thief

SECRET = "hunter2-the-payload"

# What a user puts beside main.py. `private` is not served.
QUEUES = """
import logging, os
from forkjoin_gcp import ForkJoinQueue

logging.basicConfig(level=logging.INFO)

def note(item):
    with open(os.environ["RECORD"], "a") as record:
        record.write(f"{item.id}\\n")

feeds, open_to_us, private = map(ForkJoinQueue, ("feeds", "open", "private"))
for each in (feeds, open_to_us, private):
    each.handler(note)
"""


@pytest.fixture(scope="module")
def issuer() -> TokenSigner:
    return TokenSigner(time.time)


@pytest.fixture(scope="module")
def local(issuer: TokenSigner, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServices]:
    """Local services whose Cloud Tasks signs with the issuer's key, which it finds in its data."""
    data = tmp_path_factory.mktemp("data")

    async def keep_key() -> None:
        journal = SqliteJournal(data / "cloud-tasks")
        journal.keep_secret("signing key", issuer.private_key)
        journal.close()

    asyncio.run(keep_key())
    with LocalServices.start(data=data) as local:
        for name in ("feeds", "open", "private"):
            local.create_queue(f"{name}-1", min_backoff=3_600)
        yield local


@pytest.fixture(scope="module")
def thief(
    local: LocalServices, issuer: TokenSigner, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Thief]:
    beside = tmp_path_factory.mktemp("function")
    (beside / "queues.py").write_text(QUEUES)
    variables = local.environment()
    port = free_port()
    variables["FORKJOIN_JOIN_URL"] = f"http://127.0.0.1:{port}/forkjoin"
    variables["FORKJOIN_QUEUE"] = "queues:feeds,queues:open_to_us"
    variables["THREADS"] = str(THREADS)
    with running_function(beside, port, **variables) as function:
        loot, _ = put(local, "feeds")
        audience = variables["FORKJOIN_JOIN_URL"]
        yield Thief(function, issuer, variables["FORKJOIN_INVOKER"], audience, loot)


def put(local: LocalServices, name: str) -> tuple[Batch, list[str]]:
    """Three items in a queue, by tasks that lead nowhere: whatever handles them was sent by us.
    Their batch and their ids."""
    services = Services.from_env({**local.environment(), "FORKJOIN_JOIN_URL": DEAD_END})
    with ForkJoinQueue(name, services=services) as queue:
        ids = queue.enqueue_many([{"secret": SECRET, "n": n} for n in range(3)])
    return Batch.parse(name, queue.config.version, ids[0].rpartition("-")[0]), ids


@contextlib.contextmanager
def nothing_happens(function: Function) -> Iterator[None]:
    """Nothing is handled, and nothing is logged that should not be, while the block lasts."""
    handled, logged = len(function.recorded()), function.log.stat().st_size
    yield
    assert function.recorded()[handled:] == []
    log = function.log.read_bytes()[logged:].decode()
    for text in ("Traceback", SECRET, "eyJ"):  # a token begins with the last
        assert text not in log


def test_the_right_request_is_let_in(local: LocalServices, thief: Thief) -> None:
    """So that each attack fails by what is wrong with it."""
    batch, ids = put(local, "open")
    body = ChunkTask(batch, 0, 100).body()
    answer = thief.try_raw("POST", body, thief.bearer, f"Content-Length: {len(body)}")
    assert (answer.status, answer.body) == (200, b"{}")
    assert sorted(thief.function.recorded()[-3:]) == ids


@pytest.mark.parametrize(("attack", "status", "says"), ATTACKS.values(), ids=ATTACKS)
def test_an_attack_is_refused(thief: Thief, attack: Attack, status: int, says: str | None) -> None:
    with nothing_happens(thief.function):
        answer = attack(thief)
    assert answer.status == status
    for text in (b"Traceback", SECRET.encode(), b"eyJ", thief.invoker.encode()):
        assert text not in answer.body
    if says is None:
        return
    assert answer.headers["Content-Type"] == "application/json"
    assert says in (answer.error or "")
    assert ("WWW-Authenticate" in answer.headers) == (status in (401, 403))


# Slow ones

THREADS = 4


def test_slow_bodies_without_a_token_keep_nobody_waiting(thief: Thief) -> None:
    """They are refused without a look at the body. The server then waits for some of it, so as to
    use the connection again, but gives up after seconds."""
    head = (
        "POST /forkjoin HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        "Content-Length: 400\r\n\r\n{"
    )
    with nothing_happens(thief.function), contextlib.ExitStack() as stack:
        sockets = []
        for _ in range(THREADS):
            one = socket.create_connection(("127.0.0.1", thief.function.port), 20)
            sockets.append(stack.enter_context(one))
            one.sendall(head.encode())
        for one in sockets:
            assert one.recv(65_536).startswith(b"HTTP/1.1 401 ")
        began = time.monotonic()
        assert thief.try_body(b"{}").status == 400
        assert time.monotonic() - began < 15


def test_a_slow_body_with_a_token_holds_one_thread_and_no_more(thief: Thief) -> None:
    with (
        nothing_happens(thief.function),
        socket.create_connection(("127.0.0.1", thief.function.port), 20) as slow,
    ):
        head = (
            f"POST /forkjoin HTTP/1.1\r\nHost: x\r\n{thief.bearer}\r\n"
            "Content-Type: application/json\r\nContent-Length: 400\r\n\r\n"
        )
        slow.sendall(head.encode())
        for _ in range(3):
            slow.sendall(b" ")
            assert thief.try_body(b"{}").status == 400
        slow.shutdown(socket.SHUT_WR)
        assert slow.recv(65_536).startswith(b"HTTP/1.1 400 ")


# What a stolen token is good for, until it expires. A token says who calls and whom, not what for:
# Cloud Tasks sends the same one with every task for up to an hour.


def test_a_stolen_token_has_served_queues_batches_run_and_nothing_else(
    local: LocalServices, thief: Thief
) -> None:
    private, _ = put(local, "private")
    for aimed in (
        thief.tasks(batch=private.key),  # under the name of a queue that is served
        thief.tasks(version="v2"),
        thief.tasks(batch=Batch(Lane("feeds", "v1", 999), thief.loot.index).key),
        thief.tasks(first=100, stop=10**8),
        thief.tasks(batch=Batch(Lane("feeds", "v1"), MAX_INDEX - 1).key),
        RootTask(Batch(Lane("feeds", "v2"), thief.loot.index)).body(),
    ):
        with nothing_happens(thief.function):
            assert thief.try_body(aimed).status == 200
    assert thief.try_body(thief.task, X_CloudTasks_TaskRetryCount="9" * 4_000).status == 200
    assert sorted(thief.function.recorded()[-3:]) == [thief.loot.item_id(n) for n in range(3)]


def test_a_replayed_request_does_no_more_than_deliver_at_least_once(
    local: LocalServices, thief: Thief
) -> None:
    """The whole request, word for word: it finds that what it asks for has been done."""
    batch, ids = put(local, "open")
    body = ChunkTask(batch, 0, 100).body()
    request = ("POST", body, thief.bearer, f"Content-Length: {len(body)}")
    assert thief.try_raw(*request).status == 200
    assert sorted(thief.function.recorded()[-3:]) == ids
    for _ in range(5):
        with nothing_happens(thief.function):
            assert thief.try_raw(*request).status == 200
