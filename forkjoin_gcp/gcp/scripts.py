"""Lua scripts on a Valkey client, called by their digest."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from redis.exceptions import NoScriptError

from forkjoin_gcp.gcp.instance import Client


class Script:
    """Runs a script by its digest; a server that does not know it is sent the text, once.

    redis-py's own would load it on every node of a cluster first, and fail where one of them is
    down that has no part in the call.
    """

    def __init__(self, client: Client, text: str) -> None:
        self._client = client
        self.text = text
        self._digest = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()

    async def __call__(self, *, keys: Sequence[str], args: Sequence[Any]) -> Any:
        call: Any = self._client
        try:
            return await call.evalsha(self._digest, len(keys), *keys, *args)
        except NoScriptError:
            return await call.eval(self.text, len(keys), *keys, *args)
