"""The join endpoint, where Cloud Tasks hands a batch to the process that handles it, and the sweep
function, which Cloud Scheduler calls."""

from forkjoin_gcp.endpoint.core import Joinable
from forkjoin_gcp.endpoint.flask import join_blueprint
from forkjoin_gcp.endpoint.functions import join_function, sweep_function

__all__ = ["Joinable", "join_blueprint", "join_function", "sweep_function"]
