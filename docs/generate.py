"""`python docs/generate.py`: write the tables of configuration.md anew, from the code.

A table stands between two comments, `<!-- table: NAME -->` and `<!-- end -->`. What is between them
is replaced; the rest of the page is written by hand.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from forkjoin_gcp.config import VARIABLES, QueueConfig, Services

PAGE = Path(__file__).with_name("configuration.md")

IN_2010 = {
    "name": "`queue_name`, model kind",
    "version": "major version, in task names",
    "storage": "`MemcacheForkJoinQueue`",
    "batch_period": "`batch_period_ms`",
    "batch_size": "`batch_size`",
    "shards": "`shard_count`",
    "lanes": "a TODO",
    "writer_timeout": "`lock_timeout_ms`",
    "acquire_timeout": "`acquire_timeout_ms` (slept between tries)",
    "acquire_attempts": "`acquire_attempts`",
    "on_success": "entities were kept",
    "expire_after": "`expiration_seconds` (memcache)",
}
"""What fork_join_queue.py called a setting; the others are new."""

_TABLE = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def settings() -> str:
    """The fields of QueueConfig."""
    rows = []
    for name, field in QueueConfig.model_fields.items():
        limits = _unit(field), _default(field), _range(name, field)
        rows.append((f"`{name}`", *limits, IN_2010.get(name, "–"), _sentence(field)))
    return _table(("setting", "unit", "default", "range", "2010", "meaning"), rows)


def variables() -> str:
    """The environment variables, and the fields of Services that they give."""
    fields = Services.model_fields
    rows = [
        (f"`{variable}`", f"`{name}`", _default(fields[name]), _sentence(fields[name]))
        for name, variable in VARIABLES.items()
    ]
    return _table(("variable", "field of `Services`", "default", "meaning"), rows)


TABLES: dict[str, Callable[[], str]] = {"settings": settings, "variables": variables}


def render(page: str) -> str:
    """The page with its tables as the code has them now."""
    return _TABLE.sub(lambda found: found[1] + TABLES[found[2]]() + found[3], page)


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _unit(field: FieldInfo) -> str:
    extra = field.json_schema_extra
    return str(extra["unit"]) if isinstance(extra, dict) else ""


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    return "–" if field.default is None else f"`{_shown(field.default)}`"


def _range(name: str, field: FieldInfo) -> str:
    if get_origin(field.annotation) is Literal:
        return ", ".join(f"`{choice}`" for choice in get_args(field.annotation))
    limits = {type(limit).__name__: limit for limit in field.metadata}
    if "Ge" in limits:
        return f"{_shown(limits['Ge'].ge)} – {_shown(limits['Le'].le)}"
    characters = {"name": 63, "version": 31}[name]
    return f"1 – {characters} of `a-z 0-9 -`"


def _shown(value: Any) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"{value:,}"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _sentence(field: FieldInfo) -> str:
    return str(field.description).replace("|", "\\|")


if __name__ == "__main__":
    written = render(PAGE.read_text("utf-8"))
    changed = written != PAGE.read_text("utf-8")
    PAGE.write_text(written, "utf-8")
    sys.stdout.write(f"{PAGE.name}: {'written anew' if changed else 'up to date'}\n")
