"""Pages of lists, and the tokens that lead from one to the next."""

from __future__ import annotations

import base64
import binascii
import hashlib
import heapq
from collections.abc import Iterable

from . import refusals

_DIGEST_BYTES = 8


def page(keys: Iterable[str], size: int, after: str) -> tuple[list[str], str]:
    """Up to `size` of the keys that come after `after`, in order, and the last one if there are
    more (else ""). As the place is a key, pages survive inserts and deletes."""
    found = heapq.nsmallest(size + 1, (key for key in keys if key > after))
    more = len(found) > size
    found = found[:size]
    return found, found[-1] if more else ""


def token_for(last_key: str, question: str) -> str:
    """The token of the page after `last_key`; "" if there is none. `question` is what must stay
    the same from page to page (the parent, the filter)."""
    if not last_key:
        return ""
    return base64.urlsafe_b64encode(_digest(question) + last_key.encode()).decode()


def place_of(token: str, question: str) -> str:
    """The key after which the page begins.

    Raises Refusal INVALID_ARGUMENT for a token that is none, or is that of another question.
    """
    if not token:
        return ""
    try:
        content = base64.b64decode(token.encode(), altchars=b"-_", validate=True)
        digest, key = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:].decode()
    except (binascii.Error, UnicodeError):
        digest, key = b"", ""
    if digest != _digest(question) or not key:
        raise refusals.invalid("The page token is not valid for this request.")
    return key


def page_size(asked: int, most: int) -> int:
    """The size of the page asked for; 0 asks for the largest. Raises Refusal INVALID_ARGUMENT."""
    if asked < 0:
        raise refusals.invalid("The page size cannot be negative.")
    return min(asked or most, most)


def _digest(question: str) -> bytes:
    return hashlib.sha256(question.encode()).digest()[:_DIGEST_BYTES]
