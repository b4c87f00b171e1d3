"""The embedded Firestore's state: time, history and transactions, without a server."""

from __future__ import annotations

from typing import Any

import pytest
from google.cloud.firestore_v1 import types

from forkjoin_gcp.emulators.firestore_embedded import state as state_module
from forkjoin_gcp.emulators.firestore_embedded import transactions
from forkjoin_gcp.emulators.firestore_embedded.documents import Scope
from forkjoin_gcp.emulators.firestore_embedded.refusals import Refusal
from forkjoin_gcp.emulators.firestore_embedded.state import DatabaseState, FirestoreState
from forkjoin_gcp.emulators.firestore_embedded.transactions import deadlocked
from forkjoin_gcp.emulators.firestore_embedded.writes import document_size, plan

NAME = "projects/p/databases/d"


class Clock:
    now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def state(clock: Clock) -> FirestoreState:
    return FirestoreState(clock)


def put(state: FirestoreState, path: str, text: str) -> int:
    """When it was done, in µs."""
    database = state.database(NAME)
    write: Any = types.Write.pb()()
    write.update.name = f"{NAME}/documents/{path}"
    write.update.fields["x"].string_value = text
    now = state.tick()
    database.apply([plan(write, database.documents)], now)
    return now


def text_of(stored: Any) -> str:
    return str(stored.fill(types.Document.pb()()).fields["x"].string_value)


def test_times_ascend_whatever_the_clock_does(state: FirestoreState, clock: Clock) -> None:
    times = [state.tick(), state.tick()]
    clock.now -= 100
    times.append(state.tick())
    assert times == sorted(set(times))


def test_the_past_is_as_it_was(state: FirestoreState, clock: Clock) -> None:
    database = state.database(NAME)
    first = put(state, "c/a", "1")
    clock.now += 1
    second = put(state, "c/a", "2")
    put(state, "c/b", "3")
    assert text_of(database.past(first, state.tick()).get("c/a")) == "1"
    assert text_of(database.past(second, state.tick()).get("c/a")) == "2"
    assert database.past(second, state.tick()).get("c/b") is None
    assert database.past(first - 1, state.tick()).get("c/a") is None


@pytest.mark.parametrize(
    ("limit", "value"), [("HISTORY_VERSIONS", 3), ("HISTORY_BYTES", 500), ("HISTORY_SECONDS", 0)]
)
def test_a_past_that_is_forgotten_is_refused(
    state: FirestoreState, clock: Clock, monkeypatch: pytest.MonkeyPatch, limit: str, value: int
) -> None:
    monkeypatch.setattr(state_module, limit, value)
    first = put(state, "c/a", "x" * 100)
    for n in range(10):
        clock.now += 1
        last = put(state, "c/a", f"{n}" * 100)
    with pytest.raises(Refusal, match="too old"):
        state.database(NAME).past(first, state.tick())
    if value:
        state.database(NAME).past(last, state.tick())


def begin(database: DatabaseState, clock: Clock) -> transactions.Transaction:
    return database.transactions.begin(clock.now, read_only=False, read_time=0)


def test_a_transaction_ends_by_itself(state: FirestoreState, clock: Clock) -> None:
    database = state.database(NAME)
    idle, busy = begin(database, clock), begin(database, clock)
    idle.paths.add("c/a")
    busy.scopes.add(Scope("", "c", deep=False))
    held = database.transactions.holders(["c/a", "d/a"], None, clock.now)
    assert held == {"c/a": {idle, busy}}
    while clock.now < 1_800_000_000 + transactions.TOTAL_SECONDS:
        assert database.transactions.find(busy.id, clock.now) is busy
        clock.now += transactions.IDLE_SECONDS / 2
    assert not database.transactions.is_open(idle)
    clock.now += 1
    assert database.transactions.holders(["c/a"], None, clock.now) == {}
    for transaction in (idle, busy):
        database.transactions.check_known(transaction.id)
        with pytest.raises(Refusal, match="invalid or closed"):
            database.transactions.find(transaction.id, clock.now)


def test_a_deadlock_is_seen_through_others(state: FirestoreState, clock: Clock) -> None:
    first, second, third = (begin(state.database(NAME), clock) for _ in range(3))
    first.waits_for = {second}
    second.waits_for = {third}
    assert deadlocked(third, {first})
    assert not deadlocked(first, {third})
    second.waits_for = {first}
    assert not deadlocked(third, {first})


def test_the_size_of_a_document() -> None:
    """The example of Google's page on storage sizes: 44 bytes of name, 71 of fields, 32 more."""
    document: Any = types.Document.pb()()
    document.name = f"{NAME}/documents/users/jeff/tasks/my_task_id"
    document.fields["type"].string_value = "Personal"
    document.fields["done"].boolean_value = False
    document.fields["priority"].integer_value = 1
    document.fields["description"].string_value = "Learn Cloud Firestore"
    assert document_size(document) == 147
