"""The provider's process, started by terraform: `python -m …schema_provider.server SCHEMA.json`.

Beside the schema lies the answer to GetSchema, ready to be sent.
"""

from __future__ import annotations

import base64
import datetime
import functools
import json
import os
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import msgpack
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.terraform.schema_provider import wire

COOKIE = "d602bf8f470bc67ca7faa0386276bbdd4330efaf76d1a219cb4d6991ca9872b2"
"""What go-plugin's hosts set, so that a plugin run by hand can say that it is one."""

REFUSAL = (
    "This is a schema-only stand-in for the provider: it serves 'terraform validate' and, with "
    "mock_provider, 'terraform test'. It cannot plan, apply, import or read anything."
)

_REFUSED = {  # method: the field that its response keeps diagnostics in
    "UpgradeResourceState": 2,
    "Configure": 1,
    "ReadResource": 2,
    "PlanResourceChange": 4,
    "ApplyResourceChange": 3,
    "ImportResourceState": 2,
    "ReadDataSource": 2,
}

Handler = Callable[[bytes, grpc.ServicerContext], bytes]


def faults(
    block: dict[str, Any], value: dict[str, Any], path: str = ""
) -> Iterator[tuple[int, str]]:
    """What a real provider refuses on top of the schema: a severity and a sentence for each."""
    for name, attribute in block.get("attributes", {}).items():
        got, where = value.get(name), path + name
        if got is None:
            if attribute.get("required"):
                yield wire.ERROR, f'The argument "{where}" is required, but it is null.'
            continue
        if not (attribute.get("required") or attribute.get("optional")):
            yield wire.ERROR, f'"{where}" cannot be set: its value is decided by the provider.'
        for kind, severity in (("enum", wire.ERROR), ("listed", wire.WARNING)):
            allowed = attribute.get(kind)
            if allowed and isinstance(got, str) and got and got not in allowed:
                yield severity, f"expected {where} to be one of {', '.join(allowed)}, got {got}"
    for name, nested in block.get("block_types", {}).items():
        got = value.get(name)
        if isinstance(got, dict):
            got = list(got.values()) if nested["nesting_mode"] == "map" else [got]
        for item in got if isinstance(got, list) else []:
            if isinstance(item, dict):
                yield from faults(nested["block"], item, f"{path}{name}.")


def methods(schema_file: Path) -> dict[str, Handler]:
    """The provider's methods by name."""

    @functools.cache
    def schema() -> dict[str, Any]:
        read: dict[str, Any] = json.loads(schema_file.read_text("utf-8"))
        return read

    def validate(part: str) -> Handler:
        def handler(request: bytes, context: grpc.ServicerContext) -> bytes:
            given = wire.fields(request)
            # Unknown values come as extension types: neither null nor a string.
            config = msgpack.unpackb(wire.fields(given[2])[1], strict_map_key=False) or {}
            block = schema()[part][given[1].decode()]["block"]
            detail = "Found in the provider's schema."
            return b"".join(
                wire.diagnostic(1, severity, summary, detail)
                for severity, summary in faults(block, config)
            )

        return handler

    def refuse(field: int) -> Handler:
        answer = wire.diagnostic(field, wire.ERROR, "Schema-only provider", REFUSAL)
        return lambda request, context: answer

    served = schema_file.with_suffix(".answer").read_bytes()
    return {
        "GetSchema": lambda request, context: served,
        "PrepareProviderConfig": lambda request, context: wire.text(
            1, wire.fields(request).get(1, b"")
        ),
        "ValidateResourceTypeConfig": validate("resource_schemas"),
        "ValidateDataSourceConfig": validate("data_source_schemas"),
        "Stop": lambda request, context: b"",
        **{name: refuse(field) for name, field in _REFUSED.items()},
    }


def certificate() -> tuple[grpc.ServerCredentials, str]:
    """Credentials for this process, and the certificate for the line that terraform reads.

    Terraform pins it. Its own (P-521) is not asked for, as grpcio's TLS library does not know that
    curve; the socket lies in a folder that only this user can open.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    encoding, none = serialization.Encoding.PEM, serialization.NoEncryption()
    private = key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, none)
    credentials = grpc.ssl_server_credentials([(private, made.public_bytes(encoding))])
    der = made.public_bytes(serialization.Encoding.DER)
    return credentials, base64.b64encode(der).decode().rstrip("=")


def serve(schema_file: Path) -> None:
    """Serve until terraform says to stop, or is gone."""
    stopped = threading.Event()

    def shut_down(request: bytes, context: grpc.ServicerContext) -> bytes:
        stopped.set()
        return b""

    credentials, pinned = certificate()
    folder = tempfile.mkdtemp(prefix="schema-provider-")  # mode 0700
    try:
        server = grpc.server(ThreadPoolExecutor(8))
        server.add_generic_rpc_handlers(
            [
                _service("tfplugin5.Provider", methods(schema_file)),
                _service("plugin.GRPCController", {"Shutdown": shut_down}),
            ]
        )
        address = f"{folder}/provider.sock"
        server.add_secure_port(f"unix:{address}", credentials)
        server.start()
        signal.signal(signal.SIGTERM, lambda *_: stopped.set())
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # terraform decides when to stop
        sys.stdout.write(f"1|5|unix|{address}|grpc|{pinned}\n")
        sys.stdout.flush()
        parent = os.getppid()
        while not stopped.wait(1.0) and os.getppid() == parent:
            pass
        server.stop(0.2).wait()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _service(name: str, handlers: dict[str, Handler]) -> grpc.GenericRpcHandler:
    return grpc.method_handlers_generic_handler(
        name,
        {method: grpc.unary_unary_rpc_method_handler(one) for method, one in handlers.items()},
    )


if __name__ == "__main__":
    if os.environ.get("TF_PLUGIN_MAGIC_COOKIE") != COOKIE:
        sys.exit("This is a Terraform provider: terraform starts it, it is not run by hand.")
    serve(Path(sys.argv[1]))
