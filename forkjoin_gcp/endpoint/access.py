"""Who may call an endpoint: the service account whose tokens Cloud Tasks or Cloud Scheduler sends.

Each door has a caller and an audience of its own, so a token for one does not open another.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from forkjoin_gcp.config import VARIABLES, Services
from forkjoin_gcp.importing import one_at_a_time

if TYPE_CHECKING:
    from forkjoin_gcp.gcp.identity import TokenVerifier

logger = logging.getLogger(__name__)

_BEARER = re.compile(r"bearer +([\w.~+/=-]+) *", re.ASCII | re.IGNORECASE)

_warned = threading.Lock()  # taken by the first warning of the process, and never given back


class AccessRefused(Exception):
    """The caller may not; ``challenge`` is the value of WWW-Authenticate (RFC 6750)."""

    def __init__(self, status: int, reason: str, challenge: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason
        self.challenge = challenge


@dataclass(frozen=True, slots=True)
class Policy:
    """Whose token opens a door. Queues with the same one share a verifier, and its certificates."""

    audience: str
    invoker: str
    certs_url: str | None


class Access:
    """Admits the bearer of a token to what some Services protect. Safe from many threads.

    ``policy`` reads from them who that is; it raises ConfigurationError where they do not say.
    """

    def __init__(self, policy: Callable[[Services], Policy]) -> None:
        self._policy = policy
        self._verifiers: dict[Policy, TokenVerifier] = {}
        self._lock = threading.Lock()

    def check(self, services: Services) -> None:
        """Raise ConfigurationError where it is not known who may call; warn where anyone may."""
        if services.allow_unauthenticated:
            _warn_once()
        else:
            self._policy(services)

    def admit(self, services: Services, authorization: str) -> None:
        """Return if the header ``authorization`` opens the door.

        Raises AccessRefused if not, ServiceError where the certificates cannot be had, and
        ConfigurationError where the caller or the audience is not set.
        """
        if services.allow_unauthenticated:
            _warn_once()
            return
        policy = self._policy(services)
        if not authorization:
            raise AccessRefused(401, "no token", "Bearer")
        match = _BEARER.fullmatch(authorization)
        if match is None:
            raise AccessRefused(401, "not a bearer token", 'Bearer error="invalid_token"')
        self._verify(policy, match[1])

    def _verify(self, policy: Policy, token: str) -> None:
        # Not at the head: only a process that checks tokens needs Google's library and requests.
        with one_at_a_time:
            from forkjoin_gcp.gcp.identity import TokenVerifier, WrongCaller, WrongToken

        with self._lock:
            verifier = self._verifiers.get(policy)
            if verifier is None:
                verifier = TokenVerifier(policy.audience, policy.invoker, policy.certs_url)
                self._verifiers[policy] = verifier
        try:
            verifier.verify(token)
        except WrongToken as error:
            raise AccessRefused(401, str(error), 'Bearer error="invalid_token"') from None
        except WrongCaller as error:
            raise AccessRefused(403, str(error), 'Bearer error="insufficient_scope"') from None


def join_policy(services: Services) -> Policy:
    """Cloud Tasks, with the token that its tasks carry."""
    return Policy(services.token_audience(), services.need("invoker"), services.certs_url)


def sweep_policy(services: Services) -> Policy:
    """Cloud Scheduler, with the token of its job."""
    audience = services.need("sweep_audience")
    return Policy(audience, services.need("sweep_invoker"), services.certs_url)


def _warn_once() -> None:
    if _warned.acquire(blocking=False):
        logger.warning(
            "%s is set: ANYONE who can reach the endpoint can make it work",
            VARIABLES["allow_unauthenticated"],
        )
