"""The HTTP side: health, figures, faults, certificates and token information."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from aiohttp import web

from .faults import Faults, FaultSettingError
from .tokens import TokenSigner

CERTS_PATH = "/oauth2/v3/certs"
CERTS_MAX_AGE = 3_600
RECENT_IN_STATS = 100


def application(
    faults: Faults, tokens: TokenSigner, stats: Callable[[int, int], dict[str, Any]]
) -> web.Application:
    """GET /health; GET /stats[?recent=N&tombstones=N]; GET, PUT and DELETE /faults (JSON, as
    `Faults.set` takes it; what is wrong with it is answered 400); GET /tokeninfo?access_token=T,
    which stands for https://oauth2.googleapis.com/tokeninfo; GET /oauth2/v3/certs."""
    side = _Side(faults, tokens, stats)
    app = web.Application()
    app.router.add_get("/health", side.health)
    app.router.add_get("/stats", side.stats)
    app.router.add_get("/faults", side.get_faults)
    app.router.add_put("/faults", side.put_faults)
    app.router.add_delete("/faults", side.delete_faults)
    app.router.add_get("/tokeninfo", side.token_info)
    app.router.add_get(CERTS_PATH, side.certs)
    return app


class _Side:
    def __init__(
        self, faults: Faults, tokens: TokenSigner, stats: Callable[[int, int], dict[str, Any]]
    ) -> None:
        self._faults = faults
        self._tokens = tokens
        self._stats = stats

    async def health(self, _: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def stats(self, request: web.Request) -> web.Response:
        recent = _number(request, "recent", RECENT_IN_STATS)
        return web.json_response(self._stats(recent, _number(request, "tombstones", 0)))

    async def get_faults(self, _: web.Request) -> web.Response:
        return web.json_response(self._faults.shown())

    async def put_faults(self, request: web.Request) -> web.Response:
        try:
            given = json.loads(await request.read())
        except (ValueError, RecursionError) as error:
            raise web.HTTPBadRequest(text=f"This is no JSON: {error}\n") from error
        if not isinstance(given, dict):
            raise web.HTTPBadRequest(text=f"Faults are a JSON object, not {given!r}.\n")
        try:
            self._faults.set(**given)
        except FaultSettingError as error:
            raise web.HTTPBadRequest(text=f"{error}\n") from error
        return web.json_response(self._faults.shown())

    async def delete_faults(self, _: web.Request) -> web.Response:
        self._faults.clear()
        return web.json_response(self._faults.shown())

    async def token_info(self, request: web.Request) -> web.Response:
        known = self._tokens.token_info(request.query.get("access_token", ""))
        if known is None:
            answer = {"error": "invalid_token", "error_description": "Invalid Value"}
            return web.json_response(answer, status=400)
        return web.json_response(known)

    async def certs(self, _: web.Request) -> web.Response:
        return web.json_response(
            self._tokens.jwks(), headers={"Cache-Control": f"public, max-age={CERTS_MAX_AGE}"}
        )


def _number(request: web.Request, name: str, default: int) -> int:
    text = request.query.get(name, str(default))
    if not (text.isascii() and text.isdigit()):
        raise web.HTTPBadRequest(text=f"{name} must be a whole number, not {text!r}\n")
    return int(text)
