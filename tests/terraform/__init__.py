"""Checks of terraform/: `make terraform` runs them all, pytest those in Python."""
