"""Hypothesis sends the same random operations to the embedded Firestore and to Google's emulator.

Their answers must be the same: documents, order, codes. `Pair` says what is compared.
"""

from __future__ import annotations

import os
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from .test_firestore_embedded_pair import (  # noqa: F401
    DATABASE,
    Body,
    Operation,
    Pair,
    Ref,
    Time,
    aggregate,
    batch,
    commit,
    delete,
    embedded_address,
    get,
    get_all,
    query,
    update,
    value,
)

CI = os.environ.get("CI") == "true"
EXAMPLES = int(os.environ.get("FIRESTORE_COMPARED_EXAMPLES", "110" if CI else "20"))
STEPS = 25
AT_ONCE = 16

COLLECTIONS = ["c", "d", "c/a/c", "c/a/d", "d/é/c"]
IDS = ["a", "b", "é", "a-b", "a b", "__id7__", "__id10__", "__id-3__", "😀", "ｚ", "a/c/a", "x.y"]
FIELDS = ["x", "y", "m", "m.k", "m.l", "`a b`", "n"]
SIMPLE: list[Any] = [
    None, False, True, float("nan"), float("-inf"), -1, -1.5, 0, 0.0, -0.0, 1, 1.0, 2, 2.5, 3,
    2**53, float(2**53), 2**53 + 1, 2**63 - 1, -(2**63), 1e300, float("inf"),
    Time("1970-01-01T00:00:01Z"), Time("1970-01-01T00:00:01.000005Z"),
    "", "a", "b", "ab", "é", "ｚ", "😀", b"", b"a", b"\xff",
    Ref("c/a"), Ref("c/b"), Ref("c/a/c/a"), Ref("d/__id7__"), (1.0, 2.0), (1.0, -3.0), (-1.0, 3.0),
]  # fmt: skip

documents = st.builds("{}/{}".format, st.sampled_from(COLLECTIONS), st.sampled_from(IDS))
simple = st.sampled_from(SIMPLE)
small = st.sampled_from([0, 1, 2, 1.0, 2.5, "a", "b", None])
names = st.sampled_from(["k", "l", "a b"])
nested = st.one_of(
    st.lists(simple, max_size=3),
    st.dictionaries(names, simple, max_size=2),
    st.dictionaries(names, st.lists(small, max_size=2), max_size=2),
    st.lists(st.dictionaries(names, small, max_size=1), max_size=2),
)
values = st.one_of(small, simple, nested)
contents = st.dictionaries(st.sampled_from(["x", "y", "m", "a b"]), values, max_size=3)
preconditions: st.SearchStrategy[Body] = st.one_of(
    st.just({}),
    st.just({}),
    st.just({"exists": True}),
    st.just({"exists": False}),
    st.builds(lambda n: {"time": f"{{time {n}}}"}, st.integers(1, 40)),
)
masks = st.lists(st.sampled_from(FIELDS), max_size=3)
numbers = st.sampled_from([0, 1, -1, 2.5, 2**63 - 1, -(2**63), 1e300, float("nan")])
transforms = st.one_of(
    st.builds(
        lambda field, kind, number: {"fieldPath": field, kind: value(number)},
        st.sampled_from(["x", "m.k", "n"]),
        st.sampled_from(["increment", "maximum", "minimum"]),
        numbers,
    ),
    st.builds(
        lambda field, kind, items: {"fieldPath": field, kind: {"values": list(map(value, items))}},
        st.sampled_from(["x", "y", "m.l"]),
        st.sampled_from(["appendMissingElements", "removeAllFromArray"]),
        st.lists(st.one_of(small, simple), max_size=3),
    ),
    st.just({"fieldPath": "t", "setToServerValue": "REQUEST_TIME"}),
)


@st.composite
def writes(draw: Any) -> Body:
    path, condition = draw(documents), draw(preconditions)
    kind = draw(st.integers(0, 9))
    if kind <= 1:
        return delete(path, **condition)
    if kind <= 5:
        return update(path, draw(contents), **condition)
    if kind <= 7:
        return update(path, draw(contents), mask=draw(masks), **condition)
    more = {"transforms": draw(st.lists(transforms, min_size=1, max_size=3))}
    if kind == 8:
        more["mask"] = draw(masks)
    return update(path, draw(contents), **more, **condition)


references = documents.map(Ref)
fields = st.sampled_from(["x", "y", "m", "m.k", "`a b`", "nope"])
RANGES = ["LESS_THAN", "LESS_THAN_OR_EQUAL", "GREATER_THAN", "GREATER_THAN_OR_EQUAL"]
tests: st.SearchStrategy[tuple[Any, ...]] = st.one_of(
    st.tuples(fields, st.sampled_from([*RANGES, "EQUAL", "NOT_EQUAL", "ARRAY_CONTAINS"]), values),
    st.tuples(
        fields,
        st.sampled_from(["IN", "NOT_IN", "ARRAY_CONTAINS_ANY"]),
        st.lists(st.one_of(small, simple), max_size=3),
    ),
    st.tuples(fields, st.sampled_from(["IS_NAN", "IS_NULL", "IS_NOT_NAN", "IS_NOT_NULL"])),
    st.tuples(st.just("__name__"), st.sampled_from([*RANGES, "EQUAL", "NOT_EQUAL"]), references),
    st.tuples(
        st.just("__name__"), st.sampled_from(["IN", "NOT_IN"]), st.lists(references, max_size=3)
    ),
)
filters = st.one_of(
    tests,
    tests,
    st.builds(
        lambda kind, parts: (kind, *parts),
        st.sampled_from(["and", "and", "or"]),
        st.lists(
            st.one_of(
                tests,
                st.builds(
                    lambda kind, parts: (kind, *parts),
                    st.sampled_from(["and", "or"]),
                    st.lists(tests, min_size=1, max_size=2),
                ),
            ),
            max_size=3,
        ),
    ),
)
sorts = st.lists(
    st.sampled_from(["x", "-x", "y", "-y", "m.k", "__name__", "-__name__"]),
    max_size=2,
    unique_by=lambda field: field.removeprefix("-"),
)


@st.composite
def cursors(draw: Any, order: list[str]) -> tuple[list[Any], bool]:
    places = [
        draw(references if field.endswith("__name__") else values)
        for field in order[: draw(st.integers(0, len(order)))]
    ]
    return places, draw(st.booleans())


@st.composite
def queries(draw: Any) -> Body:
    """What `query` and `aggregate` take."""
    more: Body = {}
    if draw(st.booleans()):
        more["test"] = draw(filters)
    if draw(st.booleans()):
        order = more["order"] = draw(sorts)
        for key in ("start", "end"):
            if draw(st.integers(0, 3)) == 0:
                more[key] = draw(cursors(order))
    if draw(st.integers(0, 3)) == 0:
        more["limit"] = draw(st.integers(0, 3))
    if draw(st.integers(0, 4)) == 0:
        more["offset"] = draw(st.integers(0, 3))
    more["collection"] = draw(st.sampled_from(["c", "c", "d", "x", ""]))
    more["parent"] = draw(st.sampled_from(["", "", "", "c/a", "d/é"]))
    more["deep"] = draw(st.booleans())
    return more


@st.composite
def questions(draw: Any) -> Operation:
    kind = draw(st.integers(0, 9))
    if kind <= 5:
        more = draw(queries())
        if draw(st.integers(0, 3)) == 0:
            more["select"] = draw(
                st.lists(st.sampled_from([*FIELDS, "__name__"]), min_size=1, max_size=2)
            )
        return query(**more)
    if kind <= 7:
        figures = [("n", "count"), ("s", "sum", draw(fields)), ("a", "avg", draw(fields))]
        chosen = draw(st.lists(st.sampled_from(figures), min_size=1, max_size=2, unique=True))
        return aggregate(chosen, **draw(queries()))
    if kind == 8:
        mask = {"mask": {"fieldPaths": draw(masks)}} if draw(st.booleans()) else {}
        if draw(st.booleans()):
            return get(draw(documents), **mask)
        return get_all(*draw(st.lists(documents, max_size=4)), **mask)
    return draw(listings)


def asked_in_transactions(operation: Operation) -> bool:
    """Google's emulator breaks (UNKNOWN) on what is left out."""
    method, body = operation
    inner = body.get("structuredAggregationQuery", body).get("structuredQuery", {})
    kindless = method.startswith("Run") and not inner["from"][0]["collectionId"]
    nothing = method == "BatchGetDocuments" and not body["documents"]
    return not (kindless or nothing or method.startswith("List"))


parents = st.sampled_from(["", "c/a", "d/é", "c/zz"])
listings: st.SearchStrategy[Operation] = st.one_of(
    st.builds(
        lambda parent, collection, missing: (
            "ListDocuments",
            {
                "parent": f"{DATABASE}/documents" + (f"/{parent}" if parent else ""),
                "collectionId": collection,
                "showMissing": missing,
            },
        ),
        parents,
        st.sampled_from(["c", "d"]),
        st.booleans(),
    ),
    st.builds(
        lambda parent: (
            "ListCollectionIds",
            {"parent": f"{DATABASE}/documents" + (f"/{parent}" if parent else "")},
        ),
        parents,
    ),
)


class Compared(RuleBasedStateMachine):
    """The two servers, with a project of this example's own."""

    addresses: tuple[str, str]
    asked = 0

    @initialize()
    def begin(self) -> None:
        self.questions: list[Operation] = []
        self.pair = Pair(*self.addresses, f"random-{os.urandom(6).hex()}")

    @rule(some=st.lists(writes(), min_size=1, max_size=4))
    def commit(self, some: list[Body]) -> None:
        self.pair.ask(*commit(*some))
        self.ask_again()

    @rule(some=st.lists(writes(), min_size=1, max_size=6))
    def batch_write(self, some: list[Body]) -> None:
        self.pair.ask(*batch(*some))
        self.ask_again()

    def ask_again(self) -> None:
        """What was asked before: of other documents now, and cheaper than to draw anew."""
        self.pair.ask_all(self.questions[-AT_ONCE:])

    @rule(asked=st.lists(questions(), min_size=10, max_size=AT_ONCE))
    def read(self, asked: list[Operation]) -> None:
        self.pair.ask_all(asked)
        self.questions += asked

    @rule(
        asked=st.lists(questions().filter(asked_in_transactions), max_size=3),
        some=st.lists(writes(), max_size=3),
        rolled_back=st.booleans(),
    )
    def transact(self, asked: list[Operation], some: list[Body], rolled_back: bool) -> None:
        begun = self.pair.ask("BeginTransaction", {"database": DATABASE})
        within = {"transaction": f"{{transaction {int(begun[0]['transaction']) - 1}}}"}
        for method, body in asked:
            self.pair.ask(method, {**body, **within})
        if rolled_back:
            self.pair.ask("Rollback", {"database": DATABASE, **within})
        self.pair.ask(*commit(*some, **within))
        self.pair.ask(*get_all("c/a", **within))
        self.pair.ask("Rollback", {"database": DATABASE, **within})

    def teardown(self) -> None:
        Compared.asked += self.pair.asked
        self.pair.close()


@pytest.mark.timeout(600)
def test_random_operations(
    embedded_address: str,  # noqa: F811
    googles_address: str,
    record_property: Any,
) -> None:
    Compared.addresses = embedded_address, googles_address
    Compared.asked = 0
    run_state_machine_as_test(
        Compared,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=STEPS,
            suppress_health_check=list(HealthCheck),
        ),
    )
    record_property("operations", Compared.asked)
    print(f"{Compared.asked} operations")
    if CI:
        assert Compared.asked >= 10_000


if __name__ == "__main__":
    pytest.main([__file__, "-s"])
