"""Simulated worlds: clean in every seed, the same in every run of a seed."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from forkjoin_gcp.testing.simulation.__main__ import main
from forkjoin_gcp.testing.simulation.defences import DEFENCES, Defence
from forkjoin_gcp.testing.simulation.plan import FAULTS, SWEPT_FAULTS, draw_plan
from forkjoin_gcp.testing.simulation.report import first_failure, run_seed

SEEDS = range(250)
ENOUGH = range(500)


def test_every_seed_is_clean() -> None:
    failure = first_failure(SEEDS)
    assert failure is None, failure and failure.text()


def test_the_seeds_have_every_fault() -> None:
    seen = {fault for seed in SEEDS for fault in draw_plan(seed).faults}
    assert seen == {*FAULTS, *SWEPT_FAULTS}


@pytest.mark.parametrize("seed", [17, 42])
def test_a_seed_replays_byte_for_byte(seed: int) -> None:
    """Also in another process, where texts hash otherwise."""
    code = (
        "from forkjoin_gcp.testing.simulation.report import run_seed; import sys; "
        f"run_seed(0); sys.stdout.write(run_seed({seed}).text())"
    )
    once = run_seed(seed).text()
    assert once == run_seed(seed).text()
    for hash_seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        again = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, check=True
        )
        assert again.stdout.decode() == once
    assert len(once.splitlines()) > 50


@pytest.mark.parametrize("defence", DEFENCES.values(), ids=lambda each: each.name)
def test_a_defence_taken_away_is_found(defence: Defence) -> None:
    failure = first_failure(ENOUGH, defence)
    assert failure is not None, f"{defence.name}: nothing found in {len(ENOUGH)} seeds"
    assert not failure.failure.startswith("unexpected"), failure.failure
    kept = run_seed(failure.plan.seed, defence.kept())
    assert not kept.failure, "the seed fails with the defence, too"


def test_a_failing_seed_prints_its_schedule_and_how_to_replay_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["--seeds", "500", "--defences-removed", "fence"]) == 1
    printed = capsys.readouterr().out
    command = next(line for line in printed.splitlines() if line.startswith("replay: "))
    options = command.partition("simulation ")[2].replace("'", "").split()
    assert main(options) == 1
    assert capsys.readouterr().out in printed


def test_clean_seeds_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--seeds", "3", "--first", "5"]) == 0
    assert "3 seeds" in capsys.readouterr().out


def test_a_wrong_number_of_seeds_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--seeds", "0"])
    assert "--seeds: 0: at least 1" in capsys.readouterr().err
