"""The one error of the local services."""

from __future__ import annotations


class LocalServiceError(Exception):
    """A local service could not be started or reached. The message says exactly what is missing
    and how to get it, or why it failed, with the end of its log."""
