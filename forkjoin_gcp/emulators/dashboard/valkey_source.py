"""What Valkey holds: the lanes' open work indexes, and the items of memory-only queues."""

from __future__ import annotations

import json
import re
from importlib import resources
from typing import Any

from redis import Redis

from .view import DeadLetterRow, IndexRow, ItemsView, SegmentRow, ValkeyView

_TIMEOUT = 2.0
_KEY = re.compile(r"fj:\{([^/{}]+)/([^/{}]+)/(\d+)\}(?::(batch|dead)(?::(.+))?)?")
_KEYS_READ = 5_000


class ValkeySource:
    """Reads one server, at a `redis://` URL."""

    def __init__(self, url: str) -> None:
        self._client: Any = Redis.from_url(
            url, socket_timeout=_TIMEOUT, socket_connect_timeout=_TIMEOUT
        )
        folder = resources.files("forkjoin_gcp.gcp") / "lua"
        names = ("segments_shared", "segments_listing")
        script = "\n".join((folder / f"{name}.lua").read_text("utf-8") for name in names)
        self._listing = self._client.register_script(script)

    def close(self) -> None:
        """Ends the connection."""
        self._client.close()

    def read(self, rows: int) -> ValkeyView:
        """`rows` segments and dead letters at most. Raises redis.RedisError, as the client does."""
        lanes = 0
        indexes: list[IndexRow] = []
        segments: list[SegmentRow] = []
        letters: list[DeadLetterRow] = []
        dead_total = 0
        for key in self._keys():
            match = _KEY.fullmatch(key)
            if match is None:
                continue
            queue, version, lane, kind, batch = match.groups()
            name = f"{queue}.{version}"
            if kind == "batch":
                segments += self._segments(key, name, batch)
            elif kind == "dead":
                dead_total += self._client.hlen(key)
                letters += self._letters(key, name, rows)
            else:
                lanes += 1
                indexes += open_indexes(f"{name} lane {lane}", self._client.hgetall(key))
        items = ItemsView(
            segments=segments[:rows],
            dead_letters=letters[:rows],
            segments_total=len(segments),
            items_total=sum(segment.items for segment in segments),
            dead_total=dead_total,
        )
        return ValkeyView(lanes, sorted(indexes, key=lambda row: (row.lane, row.index)), items)

    def _keys(self) -> list[str]:
        found = self._client.scan_iter(match="fj:*", count=1_000, _type="hash")
        return sorted({key.decode() for key, _ in zip(found, range(_KEYS_READ), strict=False)})

    def _segments(self, key: str, queue: str, batch: str) -> list[SegmentRow]:
        listed = self._listing(keys=[key], args=[0, 0])
        # A batch's work index begins as the time in µs, which is near enough here.
        written = int(batch.rpartition("-")[2]) / 1_000_000
        return [
            SegmentRow(queue, batch, first.decode(), int(count), written, "Valkey")
            for first, count in zip(listed[::2], listed[1::2], strict=True)
        ]

    def _letters(self, key: str, queue: str, rows: int) -> list[DeadLetterRow]:
        _, some = self._client.hscan(key, count=rows)
        return [_letter(queue, item, text) for item, text in some.items()]


def open_indexes(lane: str, state: dict[bytes, bytes]) -> list[IndexRow]:
    """The open or sealed work indexes in a lane's hash (see gcp/lua/lane.lua)."""
    fields = {name.decode(): value.decode() for name, value in state.items()}
    return [
        IndexRow(
            lane=lane,
            index=int(name[2:]),
            writers=int(writers),
            length=int(fields.get(f"n:{name[2:]}", 0)),
            batch_size=int(fields.get(f"s:{name[2:]}", 0)),
            scheduled=fields.get(f"t:{name[2:]}") == "1",
            sealed=fields.get(f"x:{name[2:]}") == "1",
        )
        for name, writers in fields.items()
        if name.startswith("w:")
    ]


def _letter(queue: str, item: bytes, text: bytes) -> DeadLetterRow:
    try:
        fields = json.loads(text)
        return DeadLetterRow(
            queue=queue,
            item=item.decode(),
            reason=str(fields["reason"]),
            error=str(fields["error"]),
            attempts=int(fields["attempts"]),
            dead_at=float(fields["dead_at"]),
        )
    except (ValueError, KeyError, TypeError) as error:
        return DeadLetterRow(queue, item.decode(errors="replace"), "", repr(error), 0, 0.0)
