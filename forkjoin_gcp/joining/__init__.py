"""The joining side of the protocol: from a root task to handled items."""
