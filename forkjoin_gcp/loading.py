"""Finds queues by where they are declared: ``module:attribute``."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

from forkjoin_gcp.errors import ConfigurationError

VARIABLE = "FORKJOIN_QUEUE"


def is_joinable(candidate: object) -> bool:
    """Whether it looks like a queue. ``services`` is not asked for: it may not be known yet."""
    return (
        isinstance(getattr(candidate, "name", None), str)
        and callable(getattr(candidate, "join", None))
        and inspect.getattr_static(candidate, "services", None) is not None
    )


def load_queues(places: str) -> list[Any]:
    """The queues at ``places``, separated by commas, as FORKJOIN_QUEUE has them.

    Raises ConfigurationError, naming the variable, where there is none.
    """
    named = [place.strip() for place in places.split(",") if place.strip()]
    if not named:
        raise ConfigurationError(
            f"{VARIABLE} is not set: set it to module:attribute, as feeds:feeds for the queue "
            "`feeds` in feeds.py"
        )
    return [_load(place) for place in named]


def _load(place: str) -> Any:
    module_name, colon, path = place.partition(":")
    if not (module_name and colon and path):
        raise ConfigurationError(f"{VARIABLE}={place!r}: must be module:attribute")
    try:
        found: Any = importlib.import_module(module_name)
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
    return found
