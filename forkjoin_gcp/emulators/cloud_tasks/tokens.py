"""OIDC and OAuth tokens as Cloud Tasks sends them, signed by a key of the emulator's own."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from jwt.algorithms import RSAAlgorithm

from .state import Clock
from .targets import DEFAULT_SCOPE

ISSUER = "https://accounts.google.com"
TOKEN_LIFETIME = 3_600.0
# As long as Google's own have left when they are sent: never a token about to run out.
_RENEW_BEFORE_EXPIRY = 300.0
_ACCESS_PREFIX = "ya29.c."
# So that an ID token cannot pass for an access token.
_ACCESS_AUDIENCE = "access"


class TokenSigner:
    """Signs ID tokens (RS256, valid for one hour) and publishes the key that verifies them; makes
    access tokens and tells what they are.

    Without `private_key` (PEM, as the property has it) the key is made anew, so a token of one
    emulator means nothing to the next.
    """

    def __init__(self, clock: Clock, private_key: bytes | None = None) -> None:
        self._clock = clock
        if private_key is None:
            self._key = rsa.generate_private_key(public_exponent=65_537, key_size=2_048)
        else:
            loaded = serialization.load_pem_private_key(private_key, password=None)
            assert isinstance(loaded, rsa.RSAPrivateKey)
            self._key = loaded
        public = self._key.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        self._key_id = hashlib.sha256(public).hexdigest()[:40]
        self._tokens: dict[tuple[str, ...], tuple[str, float]] = {}

    @property
    def private_key(self) -> bytes:
        """The key in PEM, from which another signer makes tokens that verify alike."""
        return self._key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )

    def token(self, email: str, audience: str) -> str:
        """An ID token of the service account for the audience. Kept and given out again until
        shortly before it expires, as a signature costs about a millisecond."""
        return self._kept(
            ("id", email, audience), lambda now: self._signed(_claims(email, audience, now))
        )

    def access_token(self, email: str, scope: str) -> str:
        """An OAuth access token of the service account; "" is the scope the API documents as
        the default. To whoever receives it, it is opaque, as Google's are; `token_info` reads it.
        Kept as ID tokens are."""
        scope = scope or DEFAULT_SCOPE

        def make(now: int) -> str:
            expiry = now + int(TOKEN_LIFETIME)
            claims = {"email": email, "scope": scope, "exp": expiry, "aud": _ACCESS_AUDIENCE}
            return _ACCESS_PREFIX + self._signed(claims)

        return self._kept(("access", email, scope), make)

    def token_info(self, access_token: str) -> dict[str, Any] | None:
        """What https://oauth2.googleapis.com/tokeninfo says of an access token of this key: email,
        scope, exp, expires_in; None for any other and for one that has expired."""
        if not access_token.startswith(_ACCESS_PREFIX):
            return None
        try:
            claims: dict[str, Any] = jwt.decode(
                access_token.removeprefix(_ACCESS_PREFIX),
                self._key.public_key(),
                algorithms=["RS256"],
                audience=_ACCESS_AUDIENCE,
                options={"verify_exp": False},  # its clock is not this one's
            )
        except jwt.InvalidTokenError:
            return None
        left = claims["exp"] - int(self._clock())
        if left <= 0:
            return None
        return {
            "email": claims["email"],
            "email_verified": "true",
            "scope": claims["scope"],
            "exp": str(claims["exp"]),
            "expires_in": str(left),
        }

    def _kept(self, key: tuple[str, ...], make: Callable[[int], str]) -> str:
        now = self._clock()
        token, renew_at = self._tokens.get(key, ("", 0.0))
        if now >= renew_at:
            token = make(int(now))
            if len(self._tokens) >= 10_000:  # audiences default to URLs: do not grow for ever
                self._tokens.clear()
            self._tokens[key] = token, int(now) + TOKEN_LIFETIME - _RENEW_BEFORE_EXPIRY
        return token

    def _signed(self, claims: dict[str, Any]) -> str:
        headers = {"kid": self._key_id}
        return jwt.encode(claims, self._key, algorithm="RS256", headers=headers)

    def jwks(self) -> dict[str, Any]:
        """The public key as a JWK Set, as https://www.googleapis.com/oauth2/v3/certs has it."""
        key = RSAAlgorithm.to_jwk(self._key.public_key(), as_dict=True)
        return {
            "keys": [
                {"kty": "RSA", "alg": "RS256", "use": "sig", "kid": self._key_id}
                | {"n": key["n"], "e": key["e"]}
            ]
        }


def _claims(email: str, audience: str, now: int) -> dict[str, Any]:
    # Google's subject is the account's 21-digit id; any stable number of that shape will do.
    subject = str(10**20 + int(hashlib.sha256(email.encode()).hexdigest(), 16) % 10**20)
    return {
        "iss": ISSUER,
        "aud": audience,
        "azp": subject,
        "sub": subject,
        "email": email,
        "email_verified": True,
        "iat": now,
        "exp": now + int(TOKEN_LIFETIME),
    }
