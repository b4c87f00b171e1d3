"""`python docs/generate.py`: write the generated tables anew, from the code.

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

ROOT = Path(__file__).resolve().parents[1]
PAGES = (ROOT / "docs" / "configuration.md", ROOT / "terraform" / "README.md")

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


def inputs() -> str:
    """The variables of the Terraform module, an object's with its members."""
    rows = []
    for name, variable in _blocks("variables.tf", "variable").items():
        default = f"`{_hcl(variable['default'])}`" if "default" in variable else "required"
        kind = variable["type"].removeprefix("${").removesuffix("}")
        meaning = _text(variable["description"])
        members = _members(kind)
        if members:
            kind = "map of objects" if kind.startswith("map") else "object"
            listed = [
                f"`{member}` ({'' if given is None else f'`{given}`'})".replace("()", "(required)")
                for member, given in members.items()
                if name != "queues" or member not in QueueConfig.model_fields
            ]
            meaning = f"{meaning}<br>Members: {', '.join(listed)}"
        rows.append((f"`{name}`", kind, default, meaning))
    return _table(("variable", "type", "default", "meaning"), rows)


def outputs() -> str:
    """The outputs of the Terraform module."""
    rows = [
        (f"`{name}`", _text(output["description"]))
        for name, output in _blocks("outputs.tf", "output").items()
    ]
    return _table(("output", "meaning"), rows)


TABLES: dict[str, Callable[[], str]] = {
    "settings": settings,
    "variables": variables,
    "inputs": inputs,
    "outputs": outputs,
}


def render(page: str) -> str:
    """The page with its tables as the code has them now."""
    return _TABLE.sub(lambda found: found[1] + TABLES[found[2]]() + found[3], page)


def _blocks(file: str, kind: str) -> dict[str, dict[str, Any]]:
    """The blocks of a kind in a file of the Terraform module, by name."""
    import hcl2  # for these two tables alone

    with (ROOT / "terraform" / file).open(encoding="utf-8") as source:
        blocks = hcl2.load(source)[kind]
    return {name.strip('"'): block for one in blocks for name, block in one.items()}


def _members(kind: str) -> dict[str, str | None]:
    """The members of an object type, each with its default: "null" where it is optional, None where
    it is required."""
    found = re.fullmatch(r"(?:map\()?object\(\{(.*?)\}\)\)?", kind)
    members: dict[str, str | None] = {}
    for part in re.split(r", (?=\w+ = )", found[1] if found else ""):
        if part:
            member, _, given = part.partition(" = ")
            optional = re.fullmatch(r"optional\((\w+(?:\(\w+\))?)(?:, (.*))?\)", given)
            members[member] = (optional[2] or "null") if optional else None
    return members


def _hcl(value: Any) -> str:
    """A default as HCL writes it."""
    if isinstance(value, bool):
        return str(value).lower()
    return "null" if value is None else str(value)


def _text(literal: str) -> str:
    return literal.strip('"').replace('\\"', '"').replace("|", "\\|")


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
    for page in PAGES:
        before = page.read_text("utf-8")
        written = render(before)
        page.write_text(written, "utf-8")
        state = "up to date" if written == before else "written anew"
        sys.stdout.write(f"{page.name}: {state}\n")
