"""`python -m benchmarks`: measure everything once, print it, and leave nothing behind."""

from __future__ import annotations

import argparse
import signal
import sys
import time
from pathlib import Path

from benchmarks.enqueuing import measure_idle, measure_paced, measure_throughput
from benchmarks.imports import import_ms
from benchmarks.joining import measure_large, measure_releases
from benchmarks.report import Results, markdown
from benchmarks.served import open_served
from benchmarks.stage import QUICK, Plan, say, staged


def measure(plan: Plan) -> Results:
    """Everything, in one run."""
    began = time.monotonic()
    with staged() as stage:
        throughput = measure_throughput(stage, plan)
        open_served(stage)
        idle = measure_idle(stage, plan)
        paced = measure_paced(stage, plan)
        releases = measure_releases(stage, plan)
        large = measure_large(stage, plan)
    say("imports")
    imports = import_ms(plan.import_rounds)
    seconds = time.monotonic() - began
    return Results(plan, throughput, idle, paced, releases, large, imports, seconds)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="half a minute, to see that it works")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables there, too")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that everything is ended
    try:
        text = markdown(measure(QUICK if options.quick else Plan()))
    except KeyboardInterrupt:
        return 130
    print(text)
    if options.markdown:
        options.markdown.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
