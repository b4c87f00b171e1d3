"""Deterministic simulation: the real protocol in worlds where everything goes wrong."""
