"""One page that shows what the local services hold, and what is going on between them."""

from .server import Dashboard

__all__ = ["Dashboard"]
