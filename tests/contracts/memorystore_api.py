"""A Memorystore API on loopback: it answers get calls with the real message types over gRPC.

No emulator of Google's serves that API.
"""

from __future__ import annotations

from typing import Any

import grpc.aio
import pytest
from google.auth.credentials import AnonymousCredentials
from google.cloud.memorystore_v1 import MemorystoreAsyncClient, types
from google.cloud.memorystore_v1.services.memorystore.transports import (
    MemorystoreGrpcAsyncIOTransport,
)

from forkjoin_gcp.gcp import instance_lookup

NAME = "projects/p/locations/l/instances/i"
GETS: dict[str, Any] = {
    "GetInstance": types.GetInstanceRequest,
    "GetCertificateAuthority": types.GetCertificateAuthorityRequest,
    "GetSharedRegionalCertificateAuthority": types.GetSharedRegionalCertificateAuthorityRequest,
}


class MemorystoreApi:
    """Answers what it ``has`` by name: a message, or a status code and text to refuse with.

    To be entered on the loop whose look-ups it is to answer.
    """

    def __init__(self, has: dict[str, Any]) -> None:
        self.has = has
        self.asked: list[str] = []

    async def __aenter__(self) -> MemorystoreApi:
        self._server = grpc.aio.server()
        handlers = {
            method: grpc.unary_unary_rpc_method_handler(
                self._answer,
                request_deserializer=request.pb().FromString,
                response_serializer=lambda message: message.SerializeToString(),
            )
            for method, request in GETS.items()
        }
        service = "google.cloud.memorystore.v1.Memorystore"
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(service, handlers),)
        )
        self._port = self._server.add_insecure_port("127.0.0.1:0")
        await self._server.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._server.stop(None)

    def replace_googles(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Look-ups ask this one, without credentials."""

        def client(**_: Any) -> MemorystoreAsyncClient:
            channel = grpc.aio.insecure_channel(f"127.0.0.1:{self._port}")
            return MemorystoreAsyncClient(
                transport=MemorystoreGrpcAsyncIOTransport(channel=channel)
            )

        monkeypatch.setattr(instance_lookup, "MemorystoreAsyncClient", client)
        monkeypatch.setattr("google.auth.default", lambda **_: (AnonymousCredentials(), "p"))

    async def _answer(self, request: Any, context: Any) -> Any:
        self.asked.append(request.name)
        found = self.has.get(request.name, (grpc.StatusCode.NOT_FOUND, "no such resource"))
        if isinstance(found, tuple):
            await context.abort(*found)
        return type(found).pb(found)
