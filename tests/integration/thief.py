"""Whoever would get into the join endpoint: what can be made of tokens, and of tasks."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from dataclasses import dataclass
from typing import Any

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from jwt.algorithms import RSAAlgorithm

from forkjoin_gcp.emulators.cloud_tasks.tokens import TokenSigner
from forkjoin_gcp.names import Batch
from forkjoin_gcp.tasks import ChunkTask
from tests.integration.function_process import Answer, Function

DEAD_END = "http://127.0.0.1:9/"
"""Nobody listens there."""

STRANGERS_KEY = rsa.generate_private_key(65_537, 2_048)


@dataclass
class Thief:
    """Attacks ``function``. ``issuer`` has the key that the function's JWKS publishes, so that each
    forgery is wrong in one thing alone; ``loot`` is a batch whose items wait in the store."""

    function: Function
    issuer: TokenSigner
    invoker: str
    audience: str
    loot: Batch

    @property
    def task(self) -> bytes:
        """A task that would have the loot handled."""
        return ChunkTask(self.loot, 0, 100).body()

    def tasks(self, **changes: Any) -> bytes:
        """The same, as JSON, with fields changed; one set to ... is left out."""
        fields = json.loads(self.task) | changes
        return json.dumps({name: v for name, v in fields.items() if v is not ...}).encode()

    def try_token(self, token: str) -> Answer:
        return self.function.post(self.task, token=token)

    def try_body(self, body: Any, **headers: str | None) -> Answer:
        """With a token that is good."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.function.post(body, named, token=self.token())

    def try_task(self, **changes: Any) -> Answer:
        return self.try_body(self.tasks(**changes))

    def try_headers(self, *headers: str) -> Answer:
        """Raw header lines in the place of the token's, before a good body."""
        return self.try_raw("POST", self.task, f"Content-Length: {len(self.task)}", *headers)

    def try_raw(self, method: str, body: bytes, *headers: str, end: bool = False) -> Answer:
        lines = [
            f"{method} /forkjoin HTTP/1.1",
            "Host: join.example",
            "Content-Type: application/json",
            *headers,
            "",
            "",
        ]
        return self.function.send("\r\n".join(lines).encode() + body, end=end)

    @property
    def bearer(self) -> str:
        """The header line that is right."""
        return f"Authorization: Bearer {self.token()}"

    def token(self, key: Any = None, header: dict[str, Any] | None = None, **changes: Any) -> str:
        """As Cloud Tasks makes it, but for what is said; signed by the issuer's key unless by
        ``key``."""
        named = {"kid": self.key_id, **(header or {})}
        return jwt.encode(self.claims(**changes), key or self._key, "RS256", headers=named)

    def claims(self, **changes: Any) -> dict[str, Any]:
        now = int(time.time())
        full = {
            "iss": "https://accounts.google.com",
            "aud": self.audience,
            "azp": "100000000000000000001",
            "sub": "100000000000000000001",
            "email": self.invoker,
            "email_verified": True,
            "iat": now,
            "exp": now + 3_600,
        }
        return full | changes

    def unsigned(self, algorithm: str) -> str:
        header = {"alg": algorithm, "typ": "JWT", "kid": self.key_id}
        return f"{_part(header)}.{_part(self.claims())}."

    def signed_with_the_public_key(self) -> str:
        """HS256, the secret being what everybody may read: a verifier that lets the token choose
        the algorithm takes it."""
        public = self._key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        header = {"alg": "HS256", "typ": "JWT", "kid": self.key_id}
        text = f"{_part(header)}.{_part(self.claims())}"
        return f"{text}.{_base64(hmac.digest(public, text.encode(), hashlib.sha256))}"

    def with_another_payload(self) -> str:
        head, _, signature = self.token(email="nobody@p.iam.gserviceaccount.com").split(".")
        return f"{head}.{_part(self.claims())}.{signature}"

    def with_its_key_along(self) -> str:
        """Signed by a stranger, whose public key is in the token's own header."""
        key = RSAAlgorithm.to_jwk(STRANGERS_KEY.public_key(), as_dict=True)
        header = {"jwk": {**key, "kid": self.key_id}, "jku": "http://127.0.0.1:9/certs"}
        return self.token(STRANGERS_KEY, header)

    @property
    def key_id(self) -> str:
        return str(self.issuer.jwks()["keys"][0]["kid"])

    @property
    def _key(self) -> Any:
        return serialization.load_pem_private_key(self.issuer.private_key, None)


def _part(value: Any) -> str:
    return _base64(json.dumps(value).encode())


def _base64(value: bytes) -> str:
    return base64.urlsafe_b64encode(value).rstrip(b"=").decode()
