"""The embedded Firestore's documents in key order, beside a plain dictionary."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import given
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from forkjoin_gcp.emulators.firestore_embedded.documents import (
    Database,
    Scope,
    SortedKeys,
    Stored,
)
from forkjoin_gcp.emulators.firestore_embedded.paths import id_order, path_order
from forkjoin_gcp.emulators.firestore_embedded.transactions import Past

IDS = ["a", "b", "a-b", "a b", "é", "😀", "__id7__", "__id10__", "__id-3__"]
COLLECTIONS = ["c", "d", "c/a/c", "c/a/c/b/c", "d/é/c", "d/é/e"]
paths = st.builds("{}/{}".format, st.sampled_from(COLLECTIONS), st.sampled_from(IDS))
scopes = st.builds(
    Scope, st.sampled_from(["", "c/a", "d/é"]), st.sampled_from(["", "c", "d"]), st.booleans()
)


def test_ids_are_in_order_of_numbers_then_bytes() -> None:
    expected = [
        "__id-3__",
        "__id7__",
        "__id10__",
        "A",
        "__id07__",
        "a",
        "a b",
        "a-b",
        "é",
        "ｚ",
        "😀",
    ]
    assert sorted(set(expected), key=id_order) == expected


@given(st.lists(st.text(min_size=1), unique=True), st.text(), st.data())
def test_sorted_keys(keys: list[str], since: str, data: st.DataObject) -> None:
    index = SortedKeys()
    for key in keys:
        index.add(key)
    gone = set(data.draw(st.lists(st.sampled_from(keys), unique=True))) if keys else set()
    for key in gone:
        index.remove(key)
    assert list(index.since(since)) == sorted(k for k in keys if k not in gone and k >= since)


def test_sorted_keys_in_many_buckets() -> None:
    for keys in (
        range(5_000),
        reversed(range(5_000)),
        (n * 2_654_435_761 % 5_003 for n in range(5_003)),
    ):
        index, there = SortedKeys(), []
        for number in keys:
            index.add(f"{number:05}")
            there.append(f"{number:05}")
        assert list(index.since("")) == sorted(there)
        for key in there[::3]:
            index.remove(key)
        assert list(index.since("02500")) == sorted(
            k for k in set(there) - set(there[::3]) if k >= "02500"
        )


class Documents(RuleBasedStateMachine):
    """A database, and one view of how it was at some time, beside dictionaries."""

    @initialize()
    def begin(self) -> None:
        self.database = Database("projects/p/databases/d")
        self.model: dict[str, Stored] = {}
        self.look_back()
        self.versions = 0

    @rule()
    def look_back(self) -> None:
        self.past = Past(self.database)
        self.as_it_was = dict(self.model)

    @rule(path=paths)
    def put(self, path: str) -> None:
        self.versions += 1
        self.past.before.setdefault(path, self.model.get(path))
        stored = self.model[path] = Stored(path, b"%d" % self.versions, 1, self.versions)
        self.database.put(stored)

    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        if self.model:
            path = data.draw(st.sampled_from(sorted(self.model)))
            self.past.before.setdefault(path, self.model[path])
            del self.model[path]
            self.database.remove(path)

    @rule(scope=scopes, since=st.one_of(st.just(()), paths.map(path_order)))
    def scan(self, scope: Scope, since: tuple[str, ...]) -> None:
        for view, model in ((self.database, self.model), (self.past, self.as_it_was)):
            found = [stored.path for stored in view.scan(scope, since)]
            assert found == [
                path
                for path in sorted(model, key=path_order)
                if scope.holds(path.rpartition("/")[0]) and path_order(path) >= since
            ]

    @invariant()
    def documents_are_found(self) -> None:
        for collection in COLLECTIONS:
            path = f"{collection}/a"
            assert self.database.get(path) is self.model.get(path)
            assert self.past.get(path) is self.as_it_was.get(path)


TestDocuments = Documents.TestCase
