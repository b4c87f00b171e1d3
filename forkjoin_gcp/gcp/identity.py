"""Checks the OIDC tokens that Cloud Tasks sends, with google-auth and Google's certificates."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import cachecontrol
import google.auth.exceptions
import jwt
import requests
from google.auth.transport.requests import Request
from google.oauth2 import id_token

from forkjoin_gcp.errors import ServiceError

logger = logging.getLogger(__name__)

GOOGLE_CERTS_URL = "https://www.googleapis.com/oauth2/v1/certs"
ISSUERS = ("https://accounts.google.com", "accounts.google.com")

CLOCK_SKEW = 10
"""Seconds that this machine's clock may be off the issuer's."""

FETCH_TIMEOUT = 10.0
"""Seconds for one fetch of the certificates; others who need them wait for the same fetch."""

REFETCH_AFTER = 10.0
"""Seconds, at least, between two fetches for the sake of a key id that the cached set lacks."""

REMEMBERED_TOKENS = 256

_REMOVED_SIGNATURE = ".SIGNATURE_REMOVED_BY_GOOGLE"

# What the two libraries raise for a token that is not right, and what Python does for one that is
# made to be odd: claims of another type, JSON nested deeper than the stack.
_NOT_VERIFIED = (
    google.auth.exceptions.GoogleAuthError,
    jwt.PyJWTError,
    ValueError,
    TypeError,
    AttributeError,
    KeyError,
    ArithmeticError,
    RecursionError,
)


class WrongToken(Exception):
    """The token proves nothing. The message is fit for an answer."""


class WrongCaller(Exception):
    """The token proves who calls, and that is not who may."""


class TokenVerifier:
    """Tells whether a token is Google's word that ``invoker`` is calling ``audience``.

    The certificates are kept for as long as their HTTP answer allows. Tokens that passed are
    remembered until they expire, as Cloud Tasks sends one for up to an hour: a check then takes
    microseconds. Safe from many threads.
    """

    def __init__(
        self,
        audience: str,
        invoker: str,
        certs_url: str | None = None,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._audience = audience
        self._invoker = invoker
        self._certificates = _Certificates(certs_url or GOOGLE_CERTS_URL)
        self._clock = clock
        self._passed: dict[bytes, float] = {}
        self._lock = threading.Lock()

    def verify(self, token: str) -> None:
        """Return if the token is good; raise WrongToken or WrongCaller if not.

        Raises ServiceError where the certificates cannot be had: the token may be good.
        """
        digest = hashlib.sha256(token.encode(errors="surrogatepass")).digest()
        if self._clock() < self._passed.get(digest, 0.0):
            return
        claims = self._verified_claims(token)
        self._check_claims(claims)
        self._remember(digest, float(claims["exp"]))

    def _verified_claims(self, token: str) -> Mapping[str, Any]:
        if token.endswith(_REMOVED_SIGNATURE):
            raise WrongToken(
                "Cloud Run checked this token and removed its signature: let everyone invoke the "
                "service in IAM, as this endpoint checks tokens itself"
            )
        try:
            key_id = jwt.get_unverified_header(token)["kid"]
        except _NOT_VERIFIED:
            raise WrongToken("the token is malformed, or does not name its key") from None
        # Fetched before, so that whatever verify_token raises is about the token.
        certificates = self._certificates.holding(key_id)
        fetched: Any = lambda *_args, **_kwargs: certificates  # noqa: E731
        try:
            claims: Mapping[str, Any] = id_token.verify_token(
                token,
                fetched,
                audience=self._audience,
                certs_url=self._certificates.url,
                clock_skew_in_seconds=CLOCK_SKEW,
            )
        except _NOT_VERIFIED as error:
            raise WrongToken(_reason(error, self._audience)) from None
        return claims

    def _check_claims(self, claims: Mapping[str, Any]) -> None:
        # For keys in JWK form google-auth asks for no expiry, and takes an audience among others.
        expires: Any = claims.get("exp")
        if type(expires) not in (int, float) or not expires > self._clock() - CLOCK_SKEW:
            raise WrongToken("the token has expired, or does not say when it will")
        if claims.get("aud") != self._audience:
            raise WrongToken(f"the token is for another audience than {self._audience}")
        if claims.get("iss") not in ISSUERS:
            raise WrongToken("the token is of another issuer")
        if claims.get("email") != self._invoker or claims.get("email_verified") is not True:
            logger.warning(
                "a verified token of %.200r, not of %r", claims.get("email"), self._invoker
            )
            raise WrongCaller("the token is not the invoker's")

    def _remember(self, digest: bytes, expires: float) -> None:
        with self._lock:
            while len(self._passed) >= REMEMBERED_TOKENS:
                del self._passed[next(iter(self._passed))]
            self._passed[digest] = expires


class _Response:
    """As much of a google.auth.transport.Response as google-auth reads."""

    status = 200

    def __init__(self, data: bytes) -> None:
        self.data = data
        certs = json.loads(data)
        if not isinstance(certs, dict):
            raise ValueError("not a JSON object")  # noqa: TRY004
        listed = certs["keys"] if "keys" in certs else [{"kid": key_id} for key_id in certs]
        self.key_ids = frozenset(str(key["kid"]) for key in listed)
        if not self.key_ids:
            raise ValueError("no key in it")


class _Certificates:
    """The keys published at ``url``, cached as HTTP says."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._lock = threading.Lock()
        self._request = Request(session=cachecontrol.CacheControl(requests.Session()))
        self._failed: tuple[float, str] | None = None
        self._refetch_at = 0.0

    def holding(self, key_id: object) -> _Response:
        """The present set. One that lacks ``key_id`` is fetched anew, though not at every call."""
        asked = time.monotonic()
        with self._lock:  # a requests.Session is not for many threads, and one fetch is enough
            if self._failed is not None and self._failed[0] >= asked:
                raise ServiceError(self._failed[1])
            try:
                response = self._fetch({})
            except ServiceError as error:
                self._failed = (time.monotonic(), str(error))
                raise
            if key_id not in response.key_ids and time.monotonic() >= self._refetch_at:
                self._refetch_at = time.monotonic() + REFETCH_AFTER
                with contextlib.suppress(ServiceError):
                    response = self._fetch({"Cache-Control": "no-cache"})
            return response

    def _fetch(self, headers: Mapping[str, str]) -> _Response:
        try:
            answer = self._request(self.url, headers=dict(headers), timeout=FETCH_TIMEOUT)
            if answer.status != 200:
                raise ServiceError(f"the certificates at {self.url}: HTTP status {answer.status}")
            return _Response(answer.data)
        except (google.auth.exceptions.TransportError, ValueError, KeyError, TypeError) as error:
            raise ServiceError(f"the certificates at {self.url}: {error}") from error


def _reason(error: BaseException, audience: str) -> str:
    """Which check failed. Never the library's own text: it quotes the token."""
    text = str(error)
    if "expired" in text:
        return "the token has expired"
    if "too early" in text or "not yet valid" in text:
        return "the token is not valid yet"
    if "udience" in text or '"aud"' in text:
        return f"the token is for another audience than {audience}"
    return "the token does not verify"
