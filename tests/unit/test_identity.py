"""Tokens signed here, keys served here, checked by google-auth itself."""

from __future__ import annotations

import base64
import datetime
import hashlib
import hmac
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jwt
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jwt.algorithms import RSAAlgorithm

from forkjoin_gcp.emulators.cloud_tasks.tokens import TokenSigner
from forkjoin_gcp.errors import ServiceError
from forkjoin_gcp.gcp import identity
from forkjoin_gcp.gcp.identity import TokenVerifier, WrongCaller, WrongToken

AUDIENCE = "https://join.example/forkjoin"
INVOKER = "tasks@p.iam.gserviceaccount.com"
KEYS = {name: rsa.generate_private_key(65_537, 2_048) for name in ("one", "two", "stranger")}
PUBLIC_PEM = (
    KEYS["one"]
    .public_key()
    .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
)


def jwks(*names: str) -> bytes:
    """Keys as https://www.googleapis.com/oauth2/v3/certs has them."""
    public = [(name, RSAAlgorithm.to_jwk(KEYS[name].public_key(), as_dict=True)) for name in names]
    keys = [{**key, "kid": name, "alg": "RS256", "use": "sig"} for name, key in public]
    return json.dumps({"keys": keys}).encode()


def certificates(*names: str) -> bytes:
    """Keys as https://www.googleapis.com/oauth2/v1/certs has them, the default."""
    now = datetime.datetime.now(datetime.UTC)
    issuer = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "federated-signon")])
    made = {}
    for name in names:
        certificate = (
            x509.CertificateBuilder(issuer, issuer, KEYS[name].public_key(), 1)
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=9))
            .sign(KEYS[name], hashes.SHA256())
        )
        made[name] = certificate.public_bytes(serialization.Encoding.PEM).decode()
    return json.dumps(made).encode()


FORMS = {"jwks": jwks, "x509": certificates}


class Publisher:
    """Serves the keys over HTTP, and counts how often they were asked for."""

    def __init__(self) -> None:
        self.body = jwks("one")
        self.status = 200
        self.max_age = 3_600
        self.delay = 0.0
        self.fetches = 0
        publisher = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                publisher.fetches += 1
                time.sleep(publisher.delay)
                self.send_response(publisher.status)
                self.send_header("Cache-Control", f"public, max-age={publisher.max_age}")
                self.send_header("Content-Length", str(len(publisher.body)))
                self.end_headers()
                self.wfile.write(publisher.body)

            def log_message(self, *_args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/certs"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))

    def __enter__(self) -> Publisher:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def publisher() -> Iterator[Publisher]:
    with Publisher() as publisher:
        yield publisher


@pytest.fixture(params=FORMS)
def verifier(request: pytest.FixtureRequest, publisher: Publisher) -> TokenVerifier:
    publisher.body = FORMS[request.param]("one", "two")
    return TokenVerifier(AUDIENCE, INVOKER, publisher.url)


def claims(**changes: Any) -> dict[str, Any]:
    """What Google says of a service account; a claim set to None is left out."""
    now = int(time.time())
    full = {
        "iss": "https://accounts.google.com",
        "aud": AUDIENCE,
        "azp": "100000000000000000001",
        "sub": "100000000000000000001",
        "email": INVOKER,
        "email_verified": True,
        "iat": now,
        "exp": now + 3_600,
    }
    return {name: value for name, value in {**full, **changes}.items() if value is not None}


def sign(payload: Any, key: str = "one", **header: Any) -> str:
    """An RS256 token, whatever the payload: PyJWT would not sign some of the odd ones."""
    full = {"alg": "RS256", "typ": "JWT", "kid": key, **header}
    named = {name: value for name, value in full.items() if value is not None}
    signed = f"{_part(named)}.{_part(payload)}"
    algorithm = jwt.get_algorithm_by_name("RS256")
    return f"{signed}.{_base64(algorithm.sign(signed.encode(), KEYS[key]))}"


def _part(value: Any) -> str:
    return _base64(value if isinstance(value, bytes) else json.dumps(value).encode())


def _base64(value: bytes) -> str:
    return base64.urlsafe_b64encode(value).rstrip(b"=").decode()


def hs256(secret: bytes, payload: Any) -> str:
    signed = f"{_part({'alg': 'HS256', 'kid': 'one'})}.{_part(payload)}"
    return f"{signed}.{_base64(hmac.digest(secret, signed.encode(), hashlib.sha256))}"


@pytest.mark.parametrize("key", ["one", "two"])
@pytest.mark.parametrize("issuer", ["https://accounts.google.com", "accounts.google.com"])
def test_a_good_token_passes(verifier: TokenVerifier, key: str, issuer: str) -> None:
    verifier.verify(sign(claims(iss=issuer), key))


def test_a_token_of_pyjwt_passes(verifier: TokenVerifier) -> None:
    """The forgeries here are made by hand: that the hand can do it right is shown by another's."""
    verifier.verify(jwt.encode(claims(), KEYS["one"], "RS256", headers={"kid": "one"}))


def test_a_token_of_the_local_service_passes(publisher: Publisher) -> None:
    signer = TokenSigner(time.time)
    publisher.body = json.dumps(signer.jwks()).encode()
    verifier = TokenVerifier(AUDIENCE, INVOKER, publisher.url)
    verifier.verify(signer.token(INVOKER, AUDIENCE))
    with pytest.raises(WrongCaller):
        verifier.verify(signer.token("another@p.iam.gserviceaccount.com", AUDIENCE))


NOW = int(time.time())
GOOD = sign(claims())
HEAD, PAYLOAD, SIGNATURE = GOOD.split(".")
ATTACKS: dict[str, tuple[str, str]] = {
    "empty": ("", "malformed"),
    "garbage": ("garbage", "malformed"),
    "dots": ("..", "malformed"),
    "two parts": (f"{HEAD}.{PAYLOAD}", "malformed"),
    "five parts": (f"{GOOD}.{HEAD}.{PAYLOAD}", "malformed"),
    "no base64": ("!!!.???.***", "malformed"),
    "header is a list": (f"{_part([])}.{PAYLOAD}.{SIGNATURE}", "malformed"),
    "header of deep JSON": (f"{_part(b'[' * 5_000)}.{PAYLOAD}.{SIGNATURE}", "malformed"),
    "header not UTF-8": (f"{_part(bytes([255, 254]))}.{PAYLOAD}.{SIGNATURE}", "malformed"),
    "no key id": (sign(claims(), kid=None), "name its key"),
    "key id no text": (sign(claims(), kid=["one"]), "malformed"),
    "key id unknown": (sign(claims(), kid="three"), "not verify"),
    "key of another set": (sign(claims(), "stranger"), "not verify"),
    "key of another set, known id": (sign(claims(), "stranger", kid="one"), "not verify"),
    "the other key's id": (sign(claims(), "one", kid="two"), "not verify"),
    "key in the header": (
        sign(claims(), "stranger", kid="one", jwk=json.loads(jwks("stranger"))["keys"][0]),
        "not verify",
    ),
    "key at a URL": (
        sign(claims(), "stranger", kid="one", jku="https://evil.example"),
        "not verify",
    ),
    "alg none": (f"{_part({'alg': 'none', 'kid': 'one'})}.{PAYLOAD}.", "not verify"),
    "alg None": (f"{_part({'alg': 'None', 'kid': 'one'})}.{PAYLOAD}.{SIGNATURE}", "not verify"),
    "alg missing": (f"{_part({'kid': 'one'})}.{PAYLOAD}.{SIGNATURE}", "not verify"),
    "alg a list": (
        f"{_part({'alg': ['RS256'], 'kid': 'one'})}.{PAYLOAD}.{SIGNATURE}",
        "not verify",
    ),
    "alg ES256": (f"{_part({'alg': 'ES256', 'kid': 'one'})}.{PAYLOAD}.{SIGNATURE}", "not verify"),
    "HS256 with the public key": (hs256(PUBLIC_PEM, claims()), "not verify"),
    "HS256 with the certificates": (hs256(jwks("one", "two"), claims()), "not verify"),
    "HS256 with nothing": (hs256(b"", claims()), "not verify"),
    "no signature": (f"{HEAD}.{PAYLOAD}.", "not verify"),
    "signature of another": (
        f"{HEAD}.{PAYLOAD}.{sign(claims(sub='2')).split('.')[2]}",
        "not verify",
    ),
    "payload changed": (f"{HEAD}.{_part(claims(sub='2'))}.{SIGNATURE}", "not verify"),
    "header changed": (
        f"{_part({'alg': 'RS256', 'kid': 'one'})}.{PAYLOAD}.{SIGNATURE}",
        "not verify",
    ),
    "critical extension": (sign(claims(), crit=["exp"], exp=1), "token"),
    "payload is a list": (sign([]), "token"),
    "payload is no JSON": (sign(b"{"), "token"),
    "payload of deep JSON": (sign(b"[" * 5_000), "token"),
    "expired": (sign(claims(iat=NOW - 7_200, exp=NOW - 60)), "expired"),
    "no expiry": (sign(claims(exp=None)), "token"),
    "expiry as text": (sign(claims(exp="never")), "token"),
    "expiry a list": (sign(claims(exp=[])), "token"),
    "expiry true": (sign(claims(exp=True)), "token"),
    "expiry not a number": (sign(claims(exp=float("nan"))), "token"),
    "not yet valid": (sign(claims(iat=NOW + 600)), "not valid yet"),
    "issued at a time of text": (sign(claims(iat="now")), "token"),
    "other audience": (sign(claims(aud="https://other.example")), "audience"),
    "audience, and more": (sign(claims(aud=AUDIENCE + "/")), "audience"),
    "audience among others": (sign(claims(aud=[AUDIENCE, "https://other.example"])), "audience"),
    "audience in other case": (sign(claims(aud=AUDIENCE.upper())), "audience"),
    "no audience": (sign(claims(aud=None)), "audience"),
    "empty audience": (sign(claims(aud="")), "audience"),
    "other issuer": (sign(claims(iss="https://accounts.example.com")), "issuer"),
    "Firebase": (sign(claims(iss="https://securetoken.google.com/p")), "issuer"),
    "issuer, and more": (sign(claims(iss="https://accounts.google.com/")), "issuer"),
    "issuers": (sign(claims(iss=["https://accounts.google.com"])), "token"),
    "no issuer": (sign(claims(iss=None)), "issuer"),
    "signature taken off": (f"{HEAD}.{PAYLOAD}.SIGNATURE_REMOVED_BY_GOOGLE", "Cloud Run"),
}


@pytest.mark.parametrize(("token", "says"), ATTACKS.values(), ids=ATTACKS)
def test_a_wrong_token_is_refused(verifier: TokenVerifier, token: str, says: str) -> None:
    with pytest.raises(WrongToken, match=says) as refused:
        verifier.verify(token)
    # What is answered and logged is a sentence of this package's own, never the token's text.
    assert len(str(refused.value)) < 200
    assert HEAD[:20] not in str(refused.value)
    with pytest.raises(WrongToken):
        verifier.verify(token)


STRANGERS = {
    "another account": claims(email="tasks@q.iam.gserviceaccount.com"),
    "other case": claims(email=INVOKER.upper()),
    "a list": claims(email=[INVOKER]),
    "no account": claims(email=None),
    "not verified": claims(email_verified=False),
    "verified as text": claims(email_verified="true"),
    "verified as one": claims(email_verified=1),
    "verified unsaid": claims(email_verified=None),
}


@pytest.mark.parametrize("payload", STRANGERS.values(), ids=STRANGERS)
def test_a_good_token_of_somebody_else_is_refused(
    verifier: TokenVerifier, payload: dict[str, Any]
) -> None:
    for _ in range(2):
        with pytest.raises(WrongCaller, match="not the invoker"):
            verifier.verify(sign(payload))


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=80))
@example("\ud800")
@example("é.é.é")
def test_no_text_makes_it_raise_anything_else(text: str) -> None:
    verifier = TokenVerifier(AUDIENCE, INVOKER, "http://127.0.0.1:9/")
    with pytest.raises((WrongToken, ServiceError)):
        verifier.verify(text)


@settings(max_examples=200, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["exp", "iat", "nbf", "aud", "iss", "email", "email_verified", "jti"]),
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats()
        | st.text(max_size=5)
        | st.lists(st.integers(), max_size=2)
        | st.just({}),
        min_size=1,
    )
)
@pytest.mark.parametrize("form", FORMS)
def test_no_claims_make_it_raise_anything_else(form: str, changes: dict[str, Any]) -> None:
    """Google would sign none of these. If it did, each is refused, or is right after all."""
    verifier = TokenVerifier(AUDIENCE, INVOKER, "http://unused.example/")
    response = identity._Response(FORMS[form]("one"))
    verifier._certificates.holding = lambda _key_id: response  # type: ignore[method-assign]
    try:
        verifier.verify(sign({**claims(), **changes}))
    except (WrongToken, WrongCaller):
        return
    assert not {"aud", "iss", "email", "email_verified"} & {
        name for name, value in changes.items() if claims().get(name) is not value
    }


# The certificates


def test_certificates_are_fetched_once(publisher: Publisher, verifier: TokenVerifier) -> None:
    for number in range(5):
        verifier.verify(sign(claims(sub=str(number))))
    assert publisher.fetches == 1


def test_certificates_are_fetched_again_when_they_are_old(publisher: Publisher) -> None:
    publisher.max_age = 0
    verifier = TokenVerifier(AUDIENCE, INVOKER, publisher.url)
    for number in range(3):
        verifier.verify(sign(claims(sub=str(number))))
    assert publisher.fetches == 3


def test_a_new_key_is_fetched_past_the_cache(
    publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when local services are started anew while a function runs on."""
    monkeypatch.setattr(identity, "REFETCH_AFTER", 0.0)
    verifier = TokenVerifier(AUDIENCE, INVOKER, publisher.url)
    verifier.verify(sign(claims()))
    publisher.body = jwks("two")
    verifier.verify(sign(claims(), "two"))
    assert publisher.fetches == 2
    verifier.verify(sign(claims(sub="2"), "two"))
    assert publisher.fetches == 2, "the new set is kept in its turn"
    with pytest.raises(WrongToken):
        verifier.verify(sign(claims(sub="2"), "one"))


def test_unknown_keys_do_not_cause_a_fetch_each(publisher: Publisher) -> None:
    verifier = TokenVerifier(AUDIENCE, INVOKER, publisher.url)
    for number in range(20):
        with pytest.raises(WrongToken):
            verifier.verify(sign(claims(), kid=f"unknown-{number}"))
    assert publisher.fetches == 2
    publisher.status = 500
    verifier.verify(GOOD)


def test_a_set_that_cannot_be_fetched_anew_is_used_as_it_was(
    publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(identity, "REFETCH_AFTER", 0.0)
    verifier = TokenVerifier(AUDIENCE, INVOKER, publisher.url)
    verifier.verify(GOOD)
    publisher.status = 500
    with pytest.raises(WrongToken):
        verifier.verify(sign(claims(), "two"))
    verifier.verify(sign(claims(sub="2")))


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (500, b"oops"),
        (404, b"{}"),
        (200, b"<html>captive portal</html>"),
        (200, b"\xff"),
        (200, b"{}"),
        (200, b"[]"),
        (200, b'{"keys": []}'),
        (200, b'{"keys": [{}]}'),
        (200, b'{"keys": 7}'),
        (200, b"null"),
    ],
)
def test_no_certificates_is_a_failure_and_no_verdict(
    publisher: Publisher, status: int, body: bytes
) -> None:
    good_body = publisher.body
    publisher.status, publisher.body, publisher.max_age = status, body, 0
    verifier = TokenVerifier(AUDIENCE, INVOKER, publisher.url)
    with pytest.raises(ServiceError, match="certificates at http"):
        verifier.verify(GOOD)
    publisher.status, publisher.body = 200, good_body
    verifier.verify(GOOD)


def test_nobody_at_the_address_is_a_failure_too() -> None:
    with Publisher() as gone:
        url = gone.url
    with pytest.raises(ServiceError, match="certificates at http"):
        TokenVerifier(AUDIENCE, INVOKER, url).verify(GOOD)


def test_those_who_wait_for_a_fetch_share_how_it_ends(publisher: Publisher) -> None:
    publisher.status, publisher.delay = 503, 0.3
    verifier = TokenVerifier(AUDIENCE, INVOKER, publisher.url)
    failures: list[ServiceError] = []

    def verify() -> None:
        try:
            verifier.verify(GOOD)
        except ServiceError as error:
            failures.append(error)

    threads = [threading.Thread(target=verify) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(failures) == 16
    assert publisher.fetches <= 2  # a thread may be so late that it asks for itself


def test_many_threads_at_once_fetch_once(publisher: Publisher, verifier: TokenVerifier) -> None:
    publisher.delay = 0.1
    wrong: list[BaseException] = []

    def verify(number: int) -> None:
        try:
            verifier.verify(sign(claims(sub=str(number % 4))))
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=verify, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert publisher.fetches == 1


# What is remembered


def test_a_token_that_passed_is_remembered_until_it_expires(publisher: Publisher) -> None:
    now = [time.time()]
    verifier = TokenVerifier(AUDIENCE, INVOKER, publisher.url, clock=lambda: now[0])
    token = sign(claims())
    verifier.verify(token)
    publisher.body = jwks("stranger")
    verifier._certificates = identity._Certificates(publisher.url)
    verifier.verify(token)
    assert publisher.fetches == 1, "it is not looked at again"
    now[0] += 3_601
    with pytest.raises(WrongToken, match="not verify"):
        verifier.verify(token)


def test_what_is_remembered_has_a_limit(
    publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(identity, "REMEMBERED_TOKENS", 3)
    verifier = TokenVerifier(AUDIENCE, INVOKER, publisher.url)
    for number in range(10):
        verifier.verify(sign(claims(sub=str(number))))
    assert len(verifier._passed) == 3
    assert all(GOOD.encode() not in kept for kept in verifier._passed), "digests, not tokens"
