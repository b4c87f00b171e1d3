"""One suite of cases, asked of the embedded Firestore and of Google's emulator: the same answers.

What is known to differ is not asked here; docs/firestore-differences.md lists it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

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
    pair,
    query,
    structured,
    update,
    value,
)

NAMES = [
    "c", "c/", "c//x", "/c/x", "c/a/d", "c/.", "c/..", "./a", "c/__x__", "__c__/x", "c/__id7__",
    "c/__id07__", "c/__id-7__", "c/__id__", "c/é", "c/ a", "c/__x", "c/a?b", "c/.a", "c/____",
    "c/" + "x" * 1500, "c/" + "x" * 1501, "c/" + "é" * 751, "a/b/" * 99 + "a/b",
    "a/b/" * 100 + "a/b", "projects/p", "projects/p/databases/d",
    "projects//databases/d/documents/c/a",
    "projects/p/databases/d/docs/c/a", "x",
]  # fmt: skip


@pytest.mark.parametrize("path", NAMES, ids=lambda path: path[:12] + f"…{len(path)}")
def test_names(pair: Pair, path: str) -> None:  # noqa: F811
    pair.ask(*get(path))
    if not path.startswith("projects/"):  # those of other databases are a listed difference
        pair.ask(*commit(update(path, {"x": 1})))
        pair.ask(*batch(delete(path)))
        pair.ask(*get_all(path))
    pair.ask("ListDocuments", {"parent": f"{DATABASE}/documents/{path}", "collectionId": "c"})
    pair.ask(*query(parent=path))
    pair.ask("ListCollectionIds", {"parent": f"{DATABASE}/documents/{path}"})


@pytest.mark.parametrize(
    "database", ["", "x", "projects/p", "projects/p/databases/", "projects/p/databases/d/documents"]
)
def test_names_of_databases(pair: Pair, database: str) -> None:  # noqa: F811
    for method in ("Commit", "BatchWrite", "BatchGetDocuments", "BeginTransaction", "Rollback"):
        pair.ask(method, {"database": database})


FIELD_PATHS = [
    "", "a.", "a..b", "`a", "`a`b", "a b", "1a", "`a.b`", "__x__", "`__x__`", "a`b", r"`a\`b`", "é",
    "`é`", "a-b", r"`a\b`", "``", "____", "a.__x__", "__name__", "a.b.c", "x",
]  # fmt: skip


@pytest.mark.parametrize("path", FIELD_PATHS)
def test_field_paths(pair: Pair, path: str) -> None:  # noqa: F811
    pair.ask(*commit(update("c/a", {"a": {"b": 1}, "x": 2})))
    pair.ask(*commit(update("c/a", {"a": {"b": 3}}, mask=[path])))
    pair.ask(*get("c/a"))
    pair.ask(*get("c/a", mask={"fieldPaths": [path]}))
    pair.ask(*query(test=(path, "EQUAL", Ref("c/a"))))
    pair.ask(*query(order=[path]))
    pair.ask(*query(select=[path]))
    pair.ask(*aggregate([("s", "sum", path)]))


def nested(depth: int) -> Any:
    return {"m": nested(depth - 1)} if depth else 1


FIELDS: list[Body] = [
    {"__x__": 1}, {"": 1}, {"____": 1}, {"m": {"____": 1}}, {"m": {"": 1}}, {"m": {"__x__": 1}},
    {"a" * 1500: 1}, {"a" * 1501: 1},
    {"x": [[1]]}, {"x": [{"y": [1]}]}, {"x": nested(19)}, {"x": nested(20)}, {"x": nested(21)},
    {"x": (91.0, 0.0)}, {"x": (0.0, 181.0)}, {"x": (-90.0, -180.0)},
    {"x": Time("9999-12-31T23:59:59.999999999Z")}, {"x": Time("0001-01-01T00:00:00Z")},
    {"x": Time("1970-01-01T00:00:01.123456789Z")},
    {"x": Ref("c/a")}, {"x": Ref("c")}, {"x": Ref("c/__x__")}, {"x": Ref("projects/p")},
    {"x": "x" * 1_048_487}, {"x": "x" * 1_048_488}, {"x": b"x" * 1_048_487},
    {"x": "x" * 600_000, "y": "y" * 600_000}, {"x": "x" * 524_000, "y": "y" * 524_000},
    {"x": {"y": "x" * 1_048_300}},
]  # fmt: skip


@pytest.mark.parametrize("fields", FIELDS, ids=lambda fields: str(fields)[:30])
def test_what_a_document_may_hold(pair: Pair, fields: Body) -> None:  # noqa: F811
    pair.ask(*commit(update("c/a", fields)))
    pair.ask(*get("c/a"))


UNWRITABLE: list[Body] = [
    {},
    {"update": {"name": f"{DATABASE}/documents/c/a", "fields": {"x": {}}}},
    {**delete("c/a"), "updateMask": {"fieldPaths": ["x"]}},
    {**delete("c/a"), "updateTransforms": [{"fieldPath": "x", "increment": value(1)}]},
    {"transform": {"document": f"{DATABASE}/documents/c/a"}},
    {**update("c/a", {"x": 1}), "currentDocument": {}},
    update("c/a", {}, time="1970-01-01T00:00:01.000000005Z"),
    update("c/a", {}, time="1960-01-01T00:00:00Z"),
    update("c/a", {}, transforms=[{"fieldPath": "x"}]),
    update("c/a", {}, transforms=[{"fieldPath": "x", "increment": value("1")}]),
    update("c/a", {}, transforms=[{"fieldPath": "x", "setToServerValue": 0}]),
    update(
        "c/a",
        {},
        transforms=[{"fieldPath": path, "increment": value(1)} for path in ("x", "x.y")],
    ),
]


@pytest.mark.parametrize("write", UNWRITABLE, ids=lambda write: str(list(write)))
def test_writes_that_are_wrong(pair: Pair, write: Body) -> None:  # noqa: F811
    pair.ask(*commit(update("c/a", {"x": 1})))
    pair.ask(*commit(write))
    pair.ask(*batch(update("c/b", {"x": 1}), write))
    pair.ask(*get_all("c/a", "c/b"))


KINDS: dict[str, Body] = {
    "set": update("c/a", {"x": 9}),
    "create": update("c/a", {"x": 9}, exists=False),
    "update": update("c/a", {"x": 9}, exists=True),
    "unchanged": update("c/a", {"x": 9}, time="{time 1}"),
    "delete": delete("c/a"),
    "delete existing": delete("c/a", exists=True),
    "delete missing": delete("c/a", exists=False),
    "mask": update("c/a", {"z": 1}, mask=["z"]),
    "increment": update("c/a", {}, mask=[], transforms=[{"fieldPath": "k", "increment": value(1)}]),
    "same": update("c/a", {"x": 1}),
}


@pytest.mark.parametrize("first", KINDS)
def test_a_document_written_twice_in_a_commit(pair: Pair, first: str) -> None:  # noqa: F811
    for second in KINDS.values():
        for before in (update("c/a", {"x": 1}), delete("c/a")):
            pair.ask(*commit(delete("c/a"), update("c/e", {"x": 1})))
            pair.ask(*commit(before))
            pair.ask(*commit(KINDS[first], second, update("c/b", {"x": 1})))
            pair.ask(*get_all("c/a", "c/b"))
            pair.ask(*batch(KINDS[first], second))


def test_documents_one_by_one(pair: Pair) -> None:  # noqa: F811
    root = f"{DATABASE}/documents"
    new: Body = {"parent": root, "collectionId": "c", "documentId": "a"}
    fields = {"fields": {"x": value(1), "y": value(2)}}
    for more in (
        {"document": fields},
        {},
        {"documentId": "b", "mask": {"fieldPaths": ["x"]}, "document": fields},
        {"documentId": "c", "document": {"name": "x"}},
        {"documentId": "a/b"},
        {"documentId": "__x__"},
        {"collectionId": ""},
        {"collectionId": "a/b"},
        {"parent": root + "/c"},
        {"parent": root + "/c/a", "collectionId": "d"},
    ):
        pair.ask("CreateDocument", {**new, **more})
    changed = {"name": f"{root}/c/a", "fields": {"x": value(5)}}
    for more in (
        {},
        {"updateMask": {"fieldPaths": ["y"]}},
        {"currentDocument": {"exists": False}},
        {"mask": {"fieldPaths": ["y"]}},
        {"document": {**changed, "name": f"{root}/c/zz"}, "currentDocument": {"exists": True}},
    ):
        pair.ask("UpdateDocument", {"document": changed, **more})
        pair.ask(*get("c/a"))
    for more in (
        {"currentDocument": {"exists": False}},
        {},
        {},
        {"currentDocument": {"exists": True}},
    ):
        pair.ask("DeleteDocument", {"name": f"{root}/c/a", **more})


VALUES: list[Any] = [
    None, False, True, float("nan"), float("-inf"), -1, -1.5, 0, 0.0, -0.0, 1, 1.0, 2**53,
    float(2**53), 2**53 + 1, 2**63 - 1, float(2**63), float("inf"), Time("1970-01-01T00:00:01Z"),
    Time("1970-01-01T00:00:01.000005Z"), "", "a", "b", "é", "ｚ", "😀", b"", b"a", Ref("c/a"),
    Ref("c/a/d/b"), Ref("c/b"), Ref("projects/zz/databases/(default)/documents/a/a"), (1.0, 2.0),
    (1.0, 3.0), [], [1], [1, 2], [2], [None], [float("nan")], {}, {"a": 1}, {"a": 1, "b": 0},
    {"a": 2}, {"b": 0},
]  # fmt: skip
COMPARISONS = [
    "LESS_THAN", "LESS_THAN_OR_EQUAL", "GREATER_THAN", "GREATER_THAN_OR_EQUAL", "EQUAL",
    "NOT_EQUAL", "ARRAY_CONTAINS",
]  # fmt: skip


def test_every_value_against_every_other(pair: Pair) -> None:  # noqa: F811
    pair.ask(*commit(*(update(f"c/{n:02}", {"x": each}) for n, each in enumerate(VALUES))))
    pair.ask_all([query(order=["x"]), query(order=["-x"]), query(order=["-x"], start=([1], False))])
    for each in VALUES:
        asked = [query(test=("x", operator, each)) for operator in COMPARISONS]
        asked += [query(test=("x", operator, [each])) for operator in ("IN", "NOT_IN")]
        asked += [query(order=["x"], start=([each], True)), query(order=["-x"], end=([each], True))]
        pair.ask_all(asked)


MANY = list(range(31))
QUERIES: list[Operation] = [
    query(limit=-1), query(offset=-1), query(limit=0), query(offset=100), query(limit=2, offset=1),
    query(order=["x", "x"]), query(order=["__name__", "x"]), query(order=["-__name__"]),
    query(order=["-__name__"], test=("x", "EQUAL", 1)), query(order=["-__name__"], limit=1),
    query(order=["-__name__"], deep=True), query(order=["x", "-__name__"]),
    query(order=["x"], start=([1, 2], True)), query(start=([1], True)), query(start=([], True)),
    query(order=["__name__"], start=(["a"], True)),
    query(order=["__name__"], start=([Ref("d/a")], True)),
    query(order=["__name__"], start=([Ref("c/b")], False), end=([Ref("c/e")], True)),
    query(order=["x", "__name__"], start=([1, Ref("c/b")], False)),
    query(test=("x", "IN", [])), query(test=("x", "IN", 3)), query(test=("x", "IN", MANY)),
    query(test=("x", "NOT_IN", MANY[:11])), query(test=("x", "NOT_IN", MANY[:10])),
    query(test=("x", "ARRAY_CONTAINS_ANY", MANY)), query(test=("and",)), query(test=("or",)),
    query(test=("and", ("x", "IN", MANY[:6]), ("y", "IN", MANY[:6]))),
    query(test=("and", ("x", "IN", MANY[:5]), ("y", "IN", MANY[:6]))),
    query(test=("or", *(("x", "EQUAL", n) for n in MANY))),
    query(test=("and", ("x", "NOT_IN", [1]), ("y", "NOT_EQUAL", 1))),
    query(test=("and", ("x", "NOT_IN", [1]), ("y", "IN", [1]))),
    query(test=("and", ("x", "ARRAY_CONTAINS", 1), ("y", "ARRAY_CONTAINS", 1))),
    query(test=("or", ("x", "ARRAY_CONTAINS", 1), ("y", "ARRAY_CONTAINS_ANY", [1]))),
    query(test=("and", ("x", "GREATER_THAN", 0), ("y", "GREATER_THAN", 0))),
    query(test=("x", "GREATER_THAN", 0), order=["-y"]),
    query(test=("x", "OPERATOR_UNSPECIFIED", 1)),
    query(test=("__name__", "GREATER_THAN", "a")), query(test=("__name__", "IS_NULL")),
    query(test=("__name__", "ARRAY_CONTAINS", Ref("c/a"))), query(test=("__name__", "IN", ["a"])),
    query(test=("__name__", "EQUAL", Ref("projects/q/databases/(default)/documents/c/a"))),
    query(test=("__name__", "GREATER_THAN", Ref("c/a")), order=["__name__"]),
    query(deep=True), query(deep=True, order=["x"]), query(deep=True, parent="c/a"),
    query(deep=True, parent="c/a", order=["x"]), query(None), query(None, parent="c/a"),
    query(""), query("", deep=True), query("a/b"), query("__a__"), query(parent="c"),
    query("", order=["x"]), query("", test=("x", "EQUAL", 1)), query(select=["x", "m.k"]),
    query(select=["__name__"]), query(select=[]), query(select=["x", "x", "nope.k"]),
    ("RunQuery", {"parent": f"{DATABASE}/documents"}),
    ("RunQuery", {"parent": DATABASE, "structuredQuery": structured()}),
    query(at={"transaction": "anVuaw=="}), query(at={"readTime": "1970-01-01T00:00:05Z"}),
    query(at={"readTime": "2200-01-01T00:00:00Z"}),
    query(at={"readTime": "2020-01-01T00:00:00.000000005Z"}),
    query(at={"readTime": "{time 1}"}), query(at={"readTime": "{time 2}"}),
    aggregate([("n", "count")]), aggregate([("", "count"), ("", "sum", "x")]), aggregate([]),
    aggregate([("n", "count", 2)]), aggregate([("n", "count", 0)]), aggregate([("n", "count", -1)]),
    aggregate([("n", "count"), ("n", "count")]), aggregate([("__a__", "count")]),
    aggregate([("a b", "count")]),
    aggregate([("s", "sum", "x"), ("a", "avg", "x"), ("n", "count")]),
    aggregate([("s", "sum", "nope"), ("a", "avg", "nope")]), aggregate([("s", "sum", "__name__")]),
    aggregate([("s", "sum", "x")], select=["y"]), aggregate([("s", "sum", "x")], limit=2),
    aggregate([("n", "count")], offset=2), aggregate([("s", "sum", "big"), ("a", "avg", "big")]),
    aggregate([("s", "sum", "x")], order=["y"]), aggregate([("n", "count")], order=["-__name__"]),
]  # fmt: skip


def test_queries(pair: Pair) -> None:  # noqa: F811
    stored: dict[str, Body] = {
        "c/a": {"x": 1, "y": 1, "big": 2**63 - 1},
        "c/b": {"x": 1, "y": 2, "big": 1},
        "c/c": {"x": 2, "y": 1, "big": -5},
        "c/d": {"x": 2.5},
        "c/e": {"y": 5},
        "c/f": {"x": [1, 2], "m": {"k": 1, "l": 2}},
        "c/__id7__": {"x": 1},
        "c/__id10__": {"x": 0},
        "c/a/c/x": {"x": 9},
        "c/a/d/x": {"x": 9},
        "d/q/c/y": {"x": 10},
    }
    pair.ask(*commit(*(update(path, fields) for path, fields in stored.items())))
    pair.ask(*commit(update("c/a", {"x": 3})))
    for asked in QUERIES:
        pair.ask(*asked)


def listing(collection: str, parent: str = "", **more: Any) -> Operation:
    where = f"{DATABASE}/documents" + (f"/{parent}" if parent else "")
    return "ListDocuments", {"parent": where, "collectionId": collection, **more}


def collections(parent: str = "", **more: Any) -> Operation:
    return "ListCollectionIds", {
        "parent": f"{DATABASE}/documents" + (f"/{parent}" if parent else ""),
        **more,
    }


def test_listings(pair: Pair) -> None:  # noqa: F811
    paths = [*(f"c/d{n}" for n in range(5)), "c/m/s/x", "c/d9/s/x/t/y", "c/d1/s/x", "e/f", "g/h"]
    pair.ask(*commit(*(update(path, {"x": n}) for n, path in enumerate(paths))))
    for asked in (
        listing("c"), listing("c", showMissing=True), listing("c", showMissing=True, orderBy="x"),
        listing("c", orderBy="x desc"), listing("c", orderBy="x desc, __name__ desc"),
        listing("c", orderBy="__name__ desc"), listing("c", orderBy="no such thing"),
        listing("c", pageSize=-1), listing("c", pageToken="junk"), listing("a/b"), listing(""),
        listing("c", mask={"fieldPaths": ["y"]}), listing("s", "c/d1"), listing("s", "c"),
        listing("nothing"), listing("c", pageSize=5), listing("", "c/d1"),
        collections(), collections("c/d1"), collections("c/m"), collections("c/d9"),
        collections("c/d2"), collections("c"), collections(pageSize=-2),
        collections(pageToken="junk"),
    ):  # fmt: skip
        pair.ask(*asked)


@pytest.mark.parametrize(
    "first",
    [
        listing("c", pageSize=2),
        listing("c", pageSize=2, showMissing=True),
        collections(pageSize=1),
    ],
    ids=["plain", "missing", "collections"],
)
def test_pages(pair: Pair, first: Operation) -> None:  # noqa: F811
    pair.ask(*commit(*(update(f"c/d{n}", {"x": n}) for n in range(5)), update("c/m/s/x", {})))
    pair.ask(*commit(*(update(f"{name}/a", {}) for name in "defg")))
    method, body = first
    answer = pair.ask(method, body)
    pages = 1
    while "nextPageToken" in answer[0]:
        token = f"{{token {int(answer[0]['nextPageToken']) - 1}}}"
        answer = pair.ask(method, {**body, "pageToken": token})
        pages += 1
    assert pages > 2


def begin(pair: Pair, **options: Any) -> Body:  # noqa: F811
    answer = pair.ask("BeginTransaction", {"database": DATABASE, "options": options})
    return {"transaction": f"{{transaction {int(answer[0]['transaction']) - 1}}}"}


def rollback(within: Body) -> Operation:
    return "Rollback", {"database": DATABASE, **within}


def test_a_transaction_ends_once(pair: Pair) -> None:  # noqa: F811
    pair.ask(*commit(update("c/a", {"x": 1})))
    wrong = update("c/a", {}, exists=False)
    ends: Sequence[Operation] = (
        commit(update("c/a", {"x": 2})), commit(), commit(wrong), commit(update("c//a", {})),
        commit({}), commit(update("c/a", {}), wrong), ("Rollback", {"database": DATABASE}),
    )  # fmt: skip
    for method, body in ends:
        within = begin(pair)
        pair.ask(*get_all("c/a", **within))
        pair.ask(method, {**body, **within})
        pair.ask(*get("c/a", **within))
        pair.ask(*query(at=within))
        pair.ask(*commit(update("c/b", {"x": 1}), **within))
        pair.ask(*rollback(within))
    junk = {"transaction": "anVuaw=="}
    for asked in (rollback({}), rollback(junk), commit(**junk), get("c/a", **junk)):
        pair.ask(*asked)


def test_kinds_of_transactions(pair: Pair) -> None:  # noqa: F811
    pair.ask(*commit(update("c/a", {"x": 1})))
    within = begin(pair, readOnly={})
    pair.ask(*get("c/a", **within))
    pair.ask(*commit(update("c/b", {"x": 2}), **within))
    pair.ask(*commit(**begin(pair, readOnly={})))
    pair.ask(*get("c/a", **begin(pair, readOnly={"readTime": "{time 1}"})))
    again = begin(pair)
    pair.ask(*rollback(again))
    again = begin(pair, readWrite={"retryTransaction": again["transaction"]})
    pair.ask(*commit(update("c/a", {"x": 3}), **again))
    for options in (
        {"readWrite": {"retryTransaction": "anVuaw=="}},
        {"readOnly": {"readTime": "1970-01-01T00:00:05Z"}},
    ):
        pair.ask("BeginTransaction", {"database": DATABASE, "options": options})
    for new in ({"readWrite": {}}, {"readOnly": {}}):
        pair.ask(*get_all("c/a", newTransaction=new))
        pair.ask(*query("d", at={"newTransaction": new}))


def test_what_a_transaction_has_read_is_held(pair: Pair) -> None:  # noqa: F811
    """Each of these waits for two seconds, in both."""
    pair.ask(*commit(update("c/a", {"x": 1}), update("c/b", {"x": 1}), update("d/a", {"x": 1})))
    within = begin(pair)
    pair.ask(*get_all("c/a", "c/new", **within))
    pair.ask(*query("d", test=("x", "GREATER_THAN", 5), at=within))
    pair.ask(*commit(update("c/b", {"x": 2}), update("e/a", {})))
    pair.ask_all(
        [
            commit(update("c/a", {"x": 2})),
            commit(delete("c/new")),
            commit(update("d/new", {"x": 9})),
            commit(update("d/a", {"x": 9})),
            batch(update("c/a", {"x": 3}), update("f/a", {"x": 3})),
            ("DeleteDocument", {"name": f"{DATABASE}/documents/c/a"}),
        ]
    )
    pair.ask(*commit(update("c/a", {"x": 7}), **within))
    pair.ask(*commit(update("c/new", {"x": 8})))
    pair.ask(*query(""))
    pair.ask(*query("", deep=True))


def test_two_transactions_do_not_wait_for_what_none_has_read(pair: Pair) -> None:  # noqa: F811
    first, second = begin(pair), begin(pair)
    pair.ask(*commit(update("c/a", {"x": 1}), **first))
    pair.ask(*commit(update("c/a", {"x": 2}), **second))
    pair.ask(*get("c/a"))
