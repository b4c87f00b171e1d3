"""Checks of terraform/: `make terraform` runs them all, pytest those in Python."""

import pytest

pytest.register_assert_rewrite("tests.terraform.checks")
