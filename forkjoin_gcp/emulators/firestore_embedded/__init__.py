"""A Firestore that runs without Java, for the unmodified google-cloud-firestore clients.

What it serves it serves as Google's emulator does, and is compared with that; the differences that
are known are listed, with reasons, in docs/firestore-differences.md.
"""

from .server import EmbeddedFirestore

__all__ = ["EmbeddedFirestore"]
