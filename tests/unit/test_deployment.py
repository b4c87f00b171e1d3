"""What terraform/ repeats of the code, as far as that is seen without Terraform."""

from __future__ import annotations

from tests.terraform import checks
from tests.terraform.tools import REPOSITORY


def test_settings_and_their_ranges_in_terraform_are_those_of_the_code() -> None:
    checks.check_settings(REPOSITORY / "terraform")
