"""A Cloud Run service on an event loop: it takes events, one or many a request, to deliver them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from pydantic import Field
from webhooks import Webhook, webhooks

from forkjoin_gcp import PayloadError, QueueClosed, QueueFull, ServiceError

logger = logging.getLogger("uvicorn.error")


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    """Connect before the first request, and finish what was handed in before the process ends."""
    await asyncio.to_thread(webhooks.start)
    yield
    await asyncio.to_thread(webhooks.close)


app = FastAPI(lifespan=lifespan)


@app.get("/healthz")
async def healthz() -> dict[str, str]:
    """For the start-up probe: this process answers."""
    return {"status": "ok"}


@app.post("/webhooks", status_code=202)
async def enqueue(webhook: Webhook) -> dict[str, str]:
    """Enqueue one event; it is durable when this is answered."""
    return {"id": await webhooks.aenqueue(webhook)}


@app.post("/webhooks/batch", status_code=202)
async def enqueue_many(
    batch: Annotated[list[Webhook], Field(min_length=1, max_length=1_000)],
) -> dict[str, list[str]]:
    """Enqueue up to a thousand; their ids, in order."""
    return {"ids": await webhooks.aenqueue_many(batch)}


@app.exception_handler(PayloadError)
async def refuse(_: Request, error: PayloadError) -> JSONResponse:
    """As an event that is too large."""
    return JSONResponse({"detail": str(error)}, 400)


@app.exception_handler(ServiceError)
@app.exception_handler(QueueFull)
@app.exception_handler(QueueClosed)
async def ask_again(_: Request, error: Exception) -> JSONResponse:
    """Not accepted, or nobody can tell: the caller is to send it again."""
    logger.warning("not enqueued: %s", error)
    return JSONResponse({"detail": "try again later"}, 503, {"Retry-After": "1"})
