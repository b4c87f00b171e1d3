"""OIDC tokens as Cloud Tasks sends them, signed by a key of the emulator's own."""

from __future__ import annotations

import hashlib
from typing import Any

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from jwt.algorithms import RSAAlgorithm

from .state import Clock

ISSUER = "https://accounts.google.com"
TOKEN_LIFETIME = 3_600.0
# As long as Google's own have left when they are sent: never a token about to run out.
_RENEW_BEFORE_EXPIRY = 300.0


class TokenSigner:
    """Signs ID tokens (RS256, valid for one hour) and publishes the key that verifies them.

    The key is made anew for each emulator, so a token of one run means nothing to the next.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._key = rsa.generate_private_key(public_exponent=65_537, key_size=2_048)
        public = self._key.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        self._key_id = hashlib.sha256(public).hexdigest()[:40]
        self._tokens: dict[tuple[str, str], tuple[str, float]] = {}

    def token(self, email: str, audience: str) -> str:
        """An ID token of the service account for the audience. Kept and given out again until
        shortly before it expires, as a signature costs about a millisecond."""
        now = self._clock()
        token, renew_at = self._tokens.get((email, audience), ("", 0.0))
        if now >= renew_at:
            token = jwt.encode(
                _claims(email, audience, int(now)),
                self._key,
                algorithm="RS256",
                headers={"kid": self._key_id},
            )
            if len(self._tokens) >= 10_000:  # audiences default to URLs: do not grow for ever
                self._tokens.clear()
            renew_at = int(now) + TOKEN_LIFETIME - _RENEW_BEFORE_EXPIRY
            self._tokens[email, audience] = token, renew_at
        return token

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
