"""The join function, to be deployed as it is: entry point ``join``, HTTP.

``FORKJOIN_QUEUE`` says which queues it serves: ``module:attribute``, or several of these separated
by commas. The modules go beside this file. A wrong setting stops the deployment, not a request.
"""

from __future__ import annotations

import importlib
import os

from forkjoin_gcp import ForkJoinQueue
from forkjoin_gcp.endpoint import Joinable, join_function
from forkjoin_gcp.endpoint.core import is_joinable
from forkjoin_gcp.errors import ConfigurationError

VARIABLE = "FORKJOIN_QUEUE"


def load_queues(places: str) -> list[Joinable]:
    """The queues at ``places``; ConfigurationError, naming the variable, where there is none."""
    named = [place.strip() for place in places.split(",") if place.strip()]
    if not named:
        raise ConfigurationError(
            f"{VARIABLE} is not set: set it to module:attribute, as feeds:feeds for the queue "
            "`feeds` in feeds.py beside main.py"
        )
    return [_load(place) for place in named]


def _load(place: str) -> Joinable:
    module_name, colon, path = place.partition(":")
    if not (module_name and colon and path):
        raise ConfigurationError(f"{VARIABLE}={place!r}: must be module:attribute")
    try:
        found = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        # A module that the user's own module misses is the user's to see, as it is.
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        raise ConfigurationError(f"{VARIABLE}={place!r}: no module {error.name!r}") from None
    for attribute in path.split("."):
        try:
            found = getattr(found, attribute)
        except AttributeError:
            raise ConfigurationError(f"{VARIABLE}={place!r}: no attribute {attribute!r}") from None
    if not is_joinable(found):
        raise ConfigurationError(f"{VARIABLE}={place!r}: not a queue but a {type(found).__name__}")
    queue: Joinable = found
    return queue


queues = load_queues(os.environ.get(VARIABLE, ""))
join = join_function(*queues, check=True)
for queue in queues:
    if isinstance(queue, ForkJoinQueue):
        queue.start()  # while the instance starts, not in its first request
