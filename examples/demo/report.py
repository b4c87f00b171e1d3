"""The table at the end."""

from __future__ import annotations

from rich import box
from rich.table import Table

from .figures import Figures
from .wording import count


def table(figures: Figures) -> Table:
    """The figures of a run, one a row, with what each one means."""
    rows = Table(box=box.SIMPLE_HEAD, show_header=False, pad_edge=False)
    rows.add_column("what", style="bold")
    rows.add_column("how much", justify="right")
    rows.add_column("note", style="dim")
    for name, value, note in (
        *_items(figures),
        *_fan_in(figures),
        *_calls(figures),
        *_times(figures),
    ):
        rows.add_row(name, value, note)
    return rows


def headings(f: Figures) -> tuple[str, str]:
    """The run in two lines."""
    items, batches = count(f.handled, "item"), count(f.batches, "batch")
    share = f"{_per(f.tasks_created, f.handled):.1%} of the items"
    return (
        f"{items} in {batches}, by {count(f.requests, 'request')}",
        f"{count(f.tasks_created, 'task')} created ({share}); {f.wall_seconds:.1f} s, "
        f"where one at a time would take {f.one_at_a_time_seconds:,.0f} s",
    )


Row = tuple[str, str, str]


def _items(f: Figures) -> list[Row]:
    verdict = "each exactly once" if f.complete else "[bold red]NOT each exactly once[/]"
    again = f.delivered_again + f.posted_again
    rows = [
        ("lines in", f"{f.lines:,}", ""),
        ("results out", f"{f.lines_out:,}", f"{verdict}; {again} came again and were dropped"),
    ]
    if f.not_accepted:
        rows.append(("  not enqueued", f"{f.not_accepted:,}", "their results say why"))
    if f.failed:
        rows.append(("  fetched in vain", f"{f.failed:,}", "their results say why"))
    if f.lost:
        rows.append(("  lost", f"{f.lost:,}", "enqueued, and no result came"))
    return rows


def _fan_in(f: Figures) -> list[Row]:
    per_request = f"{_per(f.handled, f.requests):,.0f} items a request"
    if f.requests_failed:
        per_request += f"; {f.requests_failed} failed and were made again"
    tasks = f"{_per(f.tasks_created, f.handled):.1%} of the items"
    if f.tasks_deduplicated:
        tasks += f"; {f.tasks_deduplicated} more refused, their names being taken"
    rows = [
        ("batches", f"{f.batches:,}", f"{_per(f.handled, f.batches):,.0f} items a batch"),
        ("tasks created", f"{f.tasks_created:,}", tasks),
        ("requests to the join function", f"{f.requests:,}", per_request),
    ]
    if f.origin_served:
        most = f"{f.origin_waiting_max:,}"
        rows.append(("pages waited for at once", most, "at most, as the origin saw it"))
    return rows


def _calls(f: Figures) -> list[Row]:
    documents = [
        f"{n:,} {name.removeprefix('documents_')}"
        for name, n in f.firestore.items()
        if name.startswith("documents_")
    ]
    calls = (
        ("Firestore", f.firestore_calls, f"; documents: {', '.join(documents)}"),
        ("Memorystore", f.memorystore, ""),
        ("Cloud Tasks", f.cloud_tasks, ""),
    )
    return [
        (f"{name} calls an item", f"{_per(n, f.handled):.3f}", f"{n:,} in all{note}")
        for name, n, note in calls
    ]


def _times(f: Figures) -> list[Row]:
    faster = _per(f.one_at_a_time_seconds, f.wall_seconds)
    alone = "the origin's waits" if f.one_at_a_time_seconds == f.origin_seconds else "all fetches"
    return [
        (
            "enqueue to handled, p50 / p99",
            f"{f.latency_p50:.2f} / {f.latency_p99:.2f} s",
            "from the client's request on",
        ),
        (
            "enqueue to accepted, p50 / p99",
            f"{f.post_p50 * 1_000:.0f} / {f.post_p99 * 1_000:.0f} ms",
            "the HTTP request to the service",
        ),
        ("wall time", f"{f.wall_seconds:.1f} s", "first request to last result"),
        (
            "one at a time",
            f"{f.one_at_a_time_seconds:,.0f} s",
            f"computed: {alone} in a row; {faster:.0f} times as long",
        ),
    ]


def _per(count: float, of: float) -> float:
    return count / of if of else 0.0
