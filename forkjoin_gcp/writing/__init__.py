"""The writing side of the protocol: from a caller's items to a segment in the store."""
