"""The same service on an event loop: ``python -m tests.chaos.loop_service PORT``."""

from __future__ import annotations

import sys

from aiohttp import web

from forkjoin_gcp import ForkJoinError
from tests.chaos.pieces import Piece, pieces


async def ready(_: web.Request) -> web.Response:
    return web.Response(text="ready")


async def enqueue(request: web.Request) -> web.Response:
    payloads = [Piece(**one) for one in await request.json()]
    try:
        if len(payloads) == 1:
            ids = [await pieces.aenqueue(payloads[0])]
        else:
            ids = await pieces.aenqueue_many(payloads)
    except ForkJoinError as error:
        return web.json_response({"error": type(error).__name__}, status=503)
    return web.json_response({"ids": ids}, status=202)


def main() -> None:
    pieces.start()
    app = web.Application()
    app.add_routes([web.get("/", ready), web.post("/", enqueue)])
    web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), print=None, access_log=None)


if __name__ == "__main__":
    main()
