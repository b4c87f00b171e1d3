"""`python -m examples.demo.origin`: a web site of any number of pages, each slow to come.

Page n always has the same content, of 200 bytes to 20 kB, and takes 50 to 300 ms.
"""

from __future__ import annotations

import asyncio
import json
import random
import signal

from aiohttp import web

LOOPBACK = "127.0.0.1"
SECONDS_MIN, SECONDS_MAX = 0.050, 0.300
BYTES_MIN, BYTES_MAX = 200, 20_000


def content(number: int) -> bytes:
    """What page ``number`` holds."""
    dice = random.Random(number)
    head = f"page {number}\n".encode()
    return head + dice.randbytes(dice.randint(BYTES_MIN, BYTES_MAX) - len(head))


class Origin:
    """Answers, and counts: pages served, the seconds they were made to take, and how many at most
    were being waited for at once."""

    def __init__(self) -> None:
        self.served = self.waiting = self.waiting_max = 0
        self.seconds = 0.0

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/page/{number:[0-9]{1,9}}", self._page)
        app.router.add_get("/stats", self._stats)
        return app

    async def _page(self, request: web.Request) -> web.Response:
        self.waiting += 1
        self.waiting_max = max(self.waiting_max, self.waiting)
        try:
            seconds = random.uniform(SECONDS_MIN, SECONDS_MAX)
            await asyncio.sleep(seconds)
            self.seconds += seconds
        finally:
            self.waiting -= 1
        self.served += 1
        return web.Response(body=content(int(request.match_info["number"])))

    async def _stats(self, _: web.Request) -> web.Response:
        return web.json_response(
            {"served": self.served, "seconds": self.seconds, "waiting_max": self.waiting_max}
        )


async def serve() -> None:
    """Serve on a free port until SIGTERM; print one line of JSON with the address when ready."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    runner = web.AppRunner(Origin().app(), access_log=None, shutdown_timeout=0.5)
    await runner.setup()
    try:
        await web.TCPSite(runner, LOOPBACK, 0, backlog=1_024).start()
        print(json.dumps({"address": f"{LOOPBACK}:{runner.addresses[0][1]}"}), flush=True)
        await stop.wait()
    finally:
        await runner.cleanup()


if __name__ == "__main__":
    asyncio.run(serve())
