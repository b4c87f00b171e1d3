"""Google's APIs on loopback: a few calls of theirs over gRPC, with the real message types.

For APIs that no emulator serves: Memorystore, Firestore's admin, IAM checks of Cloud Tasks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc.aio

Answer = Any
"""A message; or a status code and text to refuse with; or a function of the request to either."""


class GoogleApi:
    """Serves ``calls`` of one gRPC ``service``: the request type of each, by the method's name.

    Answers what it ``has`` by the resource's name. To be entered on the loop of its callers.
    """

    def __init__(self, service: str, calls: dict[str, Any], has: dict[str, Answer]) -> None:
        self._service = service
        self._calls = calls
        self.has = has
        self.asked: list[str] = []

    async def __aenter__(self) -> GoogleApi:
        self._server = grpc.aio.server()
        handlers = {
            method: grpc.unary_unary_rpc_method_handler(
                self._answer,
                request_deserializer=_raw(request).FromString,
                response_serializer=lambda message: message.SerializeToString(),
            )
            for method, request in self._calls.items()
        }
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(self._service, handlers),)
        )
        self._port = self._server.add_insecure_port("127.0.0.1:0")
        await self._server.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._server.stop(None)

    def client(self, client: Callable[..., Any], transport: Callable[..., Any]) -> Any:
        """One of Google's clients that calls this; whatever else it would be given is ignored."""

        def make(**_: Any) -> Any:
            channel = grpc.aio.insecure_channel(f"127.0.0.1:{self._port}")
            return client(transport=transport(channel=channel))

        return make

    async def _answer(self, request: Any, context: Any) -> Any:
        name = getattr(request, "name", "") or request.resource
        self.asked.append(name)
        found = self.has.get(name, (grpc.StatusCode.NOT_FOUND, "no such resource"))
        found = found(request) if callable(found) else found
        if isinstance(found, tuple):
            await context.abort(*found)
        return type(found).pb(found) if hasattr(type(found), "pb") else found


def _raw(message: Any) -> Any:
    return message.pb() if hasattr(message, "pb") else message
