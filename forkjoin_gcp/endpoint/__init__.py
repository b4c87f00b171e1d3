"""The join endpoint: where Cloud Tasks hands a batch to the process that handles it."""

from forkjoin_gcp.endpoint.core import Joinable
from forkjoin_gcp.endpoint.flask import join_blueprint
from forkjoin_gcp.endpoint.functions import join_function

__all__ = ["Joinable", "join_blueprint", "join_function"]
