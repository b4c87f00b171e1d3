"""What a task sends and to whom, and how its queue's HTTP target overrides that. Pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit, urlunsplit

METHODS_WITH_BODY = frozenset({"POST", "PUT", "PATCH"})
DEFAULT_SCOPE = "https://www.googleapis.com/auth/cloud-platform"
"""The OAuth scope of a token that names none, as the API documents it."""


@dataclass(frozen=True, slots=True)
class Authorization:
    """Whose token goes along. With `oauth` an access token for the scope `purpose`, else an ID
    token for the audience `purpose`; "" takes the default (the target's URL for an audience)."""

    email: str
    purpose: str = ""
    oauth: bool = False


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """What a task sends, and to whom. Header names stay as the client wrote them."""

    url: str
    method: str = "POST"
    headers: Mapping[str, str] | None = None
    body: bytes = b""
    authorization: Authorization | None = None


@dataclass(frozen=True, slots=True)
class HttpTarget:
    """Queue.http_target: what a queue puts in the place of its tasks' own settings when it sends
    them. None, and an empty `headers`, leave the task's.

    The parts of the URI replace the task's; where `always` is not set, only those it has not.
    """

    scheme: str | None = None
    host: str | None = None
    port: int | None = None
    """0 takes the port out of the URI."""
    path: str | None = None
    query: str | None = None
    always: bool = True
    method: str | None = None
    headers: tuple[tuple[str, str], ...] = ()
    authorization: Authorization | None = None

    def applied_to(self, request: HttpRequest) -> HttpRequest:
        """The request as the queue sends it. A body goes only with a method that has one."""
        method = self.method or request.method
        return dataclasses.replace(
            request,
            url=self._url(request.url),
            method=method,
            headers=self._headers(request.headers or {}),
            body=request.body if method in METHODS_WITH_BODY else b"",
            authorization=self.authorization or request.authorization,
        )

    def _headers(self, given: Mapping[str, str]) -> dict[str, str]:
        replaced = {name.lower() for name, _ in self.headers}
        kept = {name: value for name, value in given.items() if name.lower() not in replaced}
        return kept | dict(self.headers)

    def _url(self, url: str) -> str:
        parts = urlsplit(url)
        scheme, host, port = parts.scheme, parts.hostname or "", parts.port
        path, query = parts.path, parts.query
        # A task's URL always has a scheme and a host.
        if self.always:
            scheme = self.scheme or scheme
            host = self.host or host
        if self.port is not None and (self.always or port is None):
            port = self.port or None
        if self.path is not None and (self.always or path in {"", "/"}):
            path = self.path
        if self.query is not None and (self.always or not query):
            query = self.query
        if path and not path.startswith("/"):
            path = "/" + path
        bare = f"[{host}]" if ":" in host and not host.startswith("[") else host
        place = bare if port is None else f"{bare}:{port}"
        return urlunsplit((scheme, place, path, query, parts.fragment))
