"""From the fields of a stored segment to its items, whatever state they are found in.

Nobody but this package writes them. Should one entry be wrong all the same, it costs its own item
its run (the item ends as a dead letter) and no other's.
"""

from __future__ import annotations

import json

from forkjoin_gcp.errors import ConfigurationError
from forkjoin_gcp.items import StoredItem
from forkjoin_gcp.names import Batch

UNREADABLE = "!not a payload: "
"""Begins the payload of an entry that cannot be one: no JSON text begins so, and none decodes."""


class DefectError(Exception):
    """What is stored does not have the shape of a segment."""


def restore_items(
    name: str, payloads: object, positions: object, attempts: object, due: object, first: int
) -> tuple[StoredItem, ...]:
    """The items in these lists, of which the first is called ``name`` and may not be None.

    Raises DefectError where the lists do not belong together.
    """
    if not isinstance(payloads, list):
        raise DefectError(f"{name} is no list")
    texts = [text if isinstance(text, str) else unreadable(text) for text in payloads]
    if positions is None and attempts is None and due is None:
        return tuple([StoredItem(place, text) for place, text in enumerate(texts, first)])
    places = _places(name, positions, texts, first)
    tries = _numbers(attempts, len(texts))
    times = _numbers(due, len(texts))
    return tuple(
        StoredItem(place, text, max(0, int(tried)), float(time))
        for place, text, tried, time in zip(places, texts, tries, times, strict=True)
    )


def unreadable(entry: object) -> str:
    """The payload text for an entry that is no string."""
    return UNREADABLE + json.dumps(entry, ensure_ascii=False)


def check_origin(origin: object, batch: Batch) -> str:
    """A batch key. Raises DefectError: items' ids, so dead letters' paths, are made of it."""
    try:
        return Batch.parse(batch.lane.queue, batch.lane.version, str(origin)).key
    except ConfigurationError as error:
        raise DefectError(f"origin: {error}") from None


def check_shift(shift: object, first: int) -> int:
    """A whole number that leads to no position below 0. Raises DefectError."""
    if isinstance(shift, bool) or not isinstance(shift, int) or shift + first < 0:
        raise DefectError(f"shift: {shift!r} leads to no position")
    return shift


def _places(name: str, positions: object, texts: list[str], first: int) -> list[int]:
    """The items' positions. Where one cannot be right, the item's text is marked unreadable.

    The id of such an item is lost with its position: it takes a free place behind its neighbours',
    so as not to be taken for one of them.
    """
    if positions is None:
        return list(range(first, first + len(texts)))
    if not isinstance(positions, list) or len(positions) != len(texts):
        raise DefectError(f"there is not one position for each of {name}")
    good: dict[int, int] = {}
    for n, place in enumerate(positions):
        if isinstance(place, int) and not isinstance(place, bool) and place >= first:
            good.setdefault(place, n)
    places = {n: place for place, n in good.items()}
    free = max(good, default=first - 1) + 1
    for n, place in enumerate(positions):
        if n not in places:
            texts[n] = f"{UNREADABLE}position {place!r} of {texts[n]}"
            places[n] = free
            free += 1
    return [places[n] for n in range(len(texts))]


def _numbers(entries: object, length: int) -> list[float]:
    """``length`` numbers; 0 for what is missing or no finite number."""
    found: list[float] = [0] * length
    for n, entry in enumerate(entries[:length] if isinstance(entries, list) else ()):
        if isinstance(entry, int | float) and not isinstance(entry, bool) and abs(entry) < 1e15:
            found[n] = entry
    return found


def clip(text: str, size: int) -> str:
    """At most ``size`` bytes of a text's UTF-8, saying so where it was cut.

    What UTF-8 cannot hold (lone surrogates, which an exception's text may have) becomes ``?``.
    """
    if text.isascii() and len(text) <= size:
        return text
    encoded = text.encode("utf-8", "replace")
    if len(encoded) <= size:
        return encoded.decode()
    note = f" … (cut: {len(encoded):,} bytes)"
    kept = encoded[: max(0, size - len(note.encode()))]
    return kept.decode("utf-8", "ignore") + note
