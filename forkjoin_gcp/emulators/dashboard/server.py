"""Serves the page from a thread of the process that runs the services."""

from __future__ import annotations

import http
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import TYPE_CHECKING

from forkjoin_gcp.emulators.errors import LocalServiceError
from forkjoin_gcp.emulators.processes import LOOPBACK

from .view import ROWS_SHOWN

if TYPE_CHECKING:
    from .page import Page

_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'"
)
_ROWS_BY_PATH = {"/": ROWS_SHOWN[0]} | {f"/?rows={rows}": rows for rows in ROWS_SHOWN}
_POLL_SECONDS = 0.05
"""How soon it sees that it is to end."""


class Dashboard:
    """Serves the dashboard of local services on `port`, or a free one, while the block runs.

    `environment` is that of LocalServices, `cloud_tasks_admin` the URL of the HTTP side of the
    Cloud Tasks emulator. Entering raises LocalServiceError where the port is taken.
    """

    def __init__(
        self, environment: Mapping[str, str], cloud_tasks_admin: str, *, port: int = 0
    ) -> None:
        self._environment = dict(environment)
        self._admin = cloud_tasks_admin
        self._port = port
        self._server: ThreadingHTTPServer | None = None
        self._thread: threading.Thread | None = None
        self._page: Page | None = None
        self._loading = threading.Lock()

    @property
    def address(self) -> str:
        """host:port, while it serves."""
        assert self._server is not None
        return f"{LOOPBACK}:{self._server.server_port}"

    def page(self, rows: int = ROWS_SHOWN[0]) -> str:
        """The page as of now, as HTML; each table has at most one of ROWS_SHOWN rows."""
        with self._loading:
            if self._page is None:
                # The clients' libraries take longer to load than the services to start: they
                # are loaded by the first who looks.
                from .page import Page

                self._page = Page(self._environment, self._admin)
        return self._page.render(rows)

    def __enter__(self) -> Dashboard:
        try:
            self._server = _Server(self, self._port)
        except OSError as error:
            raise LocalServiceError(
                f"The dashboard cannot listen on {LOOPBACK}:{self._port}: {error.strerror}."
            ) from error
        self._thread = threading.Thread(
            target=self._server.serve_forever,
            kwargs={"poll_interval": _POLL_SECONDS},
            name="dashboard",
            daemon=True,
        )
        self._thread.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
        if self._page is not None:
            self._page.close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, dashboard: Dashboard, port: int) -> None:
        self.dashboard = dashboard
        super().__init__((LOOPBACK, port), _Handler)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = 30.0

    def do_GET(self) -> None:
        """Answers / (?rows=N, one of ROWS_SHOWN) and /health."""
        # A page of elsewhere whose name was made to mean this machine must not read this one.
        host = self.headers.get("Host", "").rpartition(":")[0]
        if host not in (LOOPBACK, "localhost"):
            self._answer(http.HTTPStatus.FORBIDDEN, "text/plain", "only as 127.0.0.1\n")
        elif self.path == "/health":
            self._answer(http.HTTPStatus.OK, "text/plain", "ok\n")
        elif (rows := _ROWS_BY_PATH.get(self.path)) is not None:
            self._answer(http.HTTPStatus.OK, "text/html", self.server.dashboard.page(rows))
        else:
            self._answer(http.HTTPStatus.NOT_FOUND, "text/plain", "not found\n")

    def _answer(self, status: http.HTTPStatus, kind: str, text: str) -> None:
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("Content-Security-Policy", _POLICY)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Says nothing: the page asks every two seconds."""
