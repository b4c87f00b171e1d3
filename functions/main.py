"""The join function and the sweeper, to be deployed as they are: HTTP, entry points ``join`` and
``sweep``, a deployment each.

``FORKJOIN_QUEUE`` says which queues it serves: ``module:attribute``, or several of these separated
by commas. The modules go beside this file. A wrong setting stops the deployment, not a request.
"""

from __future__ import annotations

import logging
import os
import threading

from forkjoin_gcp import ForkJoinQueue
from forkjoin_gcp.endpoint import join_function, sweep_function
from forkjoin_gcp.json_logs import log_json
from forkjoin_gcp.loading import load_queues

logger = logging.getLogger(__name__)


def _start_in_workers() -> None:
    """Connect while an instance starts, not in its first request.

    functions-framework loads this file in gunicorn's first process, which serves nothing and
    forks those that do; gRPC connections do not survive a fork. So each worker starts its own.
    """
    loader = os.getpid()

    def start() -> None:
        for queue in queues:
            if isinstance(queue, ForkJoinQueue):
                try:
                    queue.start()
                except Exception:
                    logger.exception("%s: not connected; its first request will try again", queue)

    def after_fork() -> None:
        if os.getppid() == loader:  # no child of a handler's
            threading.Thread(target=start, name="forkjoin-start", daemon=True).start()

    os.register_at_fork(after_in_child=after_fork)


if "K_SERVICE" in os.environ:  # on Cloud Run, whose logs have fields
    log_json()
queues = load_queues(os.environ.get("FORKJOIN_QUEUE", ""))
target = os.environ.get("FUNCTION_TARGET", "join")
join = join_function(*queues, check=target == "join")
sweep = sweep_function(*queues, check=target == "sweep")
_start_in_workers()
