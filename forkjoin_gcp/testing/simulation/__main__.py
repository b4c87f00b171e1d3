"""``python -m forkjoin_gcp.testing.simulation``: run many seeds, or one and print its schedule."""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Sequence

from forkjoin_gcp.testing.simulation.defences import DEFENCES, NONE, Defence
from forkjoin_gcp.testing.simulation.report import Outcome, run_seed


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0 where every seed is clean, 1 where one is not."""
    options = _parser().parse_args(arguments)
    defence = DEFENCES[options.defences_removed] if options.defences_removed else NONE
    if options.seed is not None:
        outcome = run_seed(options.seed, defence)
        sys.stdout.write(outcome.text())
        return 1 if outcome.failure else 0
    return _run_many(range(options.first, options.first + options.seeds), defence, options.keep_on)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m forkjoin_gcp.testing.simulation",
        description="Runs the protocol in simulated worlds where everything goes wrong.",
    )
    parser.add_argument("--seeds", type=_count, default=1000, help="how many (default: 1000)")
    parser.add_argument("--first", type=int, default=0, help="the first of them (default: 0)")
    parser.add_argument("--seed", type=int, help="run this one alone, and print its schedule")
    parser.add_argument("--keep-on", action="store_true", help="do not stop at the first failure")
    known = DEFENCES.values()
    parser.add_argument(
        "--defences-removed",
        metavar="NAME",
        choices=sorted(DEFENCES),
        help="take one away: " + "; ".join(f"{each.name!r}: {each.what}" for each in known),
    )
    return parser


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number}: at least 1")
    return number


def _run_many(seeds: range, defence: Defence, keep_on: bool) -> int:
    began = time.process_time()
    facts: Counter[str] = Counter()
    failed = 0
    for seed in seeds:
        outcome = run_seed(seed, defence)
        facts.update(outcome.facts, seeds=1, steps=outcome.steps)
        if outcome.failure:
            failed += 1
            _print_failure(outcome, defence, whole=not keep_on)
            if not keep_on:
                break
    spent = time.process_time() - began
    counted = ", ".join(f"{count:,} {name}" for name, count in facts.items())
    print(f"{counted}; {failed} failed; {facts['seeds'] / spent:.1f} seeds/s of CPU time")
    return 1 if failed else 0


def _print_failure(outcome: Outcome, defence: Defence, *, whole: bool) -> None:
    if whole:
        sys.stdout.write(outcome.text())
    removed = f" --defences-removed {defence.name!r}" if defence.name else ""
    print(f"{outcome.plan}\n{outcome.failure}")
    print(f"replay: python -m forkjoin_gcp.testing.simulation --seed {outcome.plan.seed}{removed}")


if __name__ == "__main__":
    sys.exit(main())
