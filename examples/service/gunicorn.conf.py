"""How gunicorn runs the service; it finds this file by its name."""

import os
from typing import Any

bind = f":{os.environ.get('PORT', '8080')}"
# One process, so that what all callers hand in at a time is written together.
workers = 1
# As many as the requests that Cloud Run sends an instance at once unless told otherwise: a request
# holds its thread until its item is durable.
threads = 80
# Cloud Run has a time limit of its own.
timeout = 0
control_socket_disable = True


def post_worker_init(worker: Any) -> None:  # noqa: ARG001 - gunicorn passes it by position
    """Connect before the first request comes, which would wait for it otherwise."""
    from pages import pages

    pages.start()
