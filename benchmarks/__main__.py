"""`python -m benchmarks`: measure everything once, print it, and leave nothing behind.

With `--local`, the local services themselves and not the package.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from pathlib import Path

from benchmarks import local_services, report
from benchmarks.enqueuing import measure_idle, measure_paced, measure_throughput, warm_up
from benchmarks.imports import import_ms
from benchmarks.joining import measure_large, measure_releases
from benchmarks.local_services import QUICK_LOCAL, LocalPlan, local_markdown, measure_local
from benchmarks.report import Results, insert, markdown
from benchmarks.served import open_served
from benchmarks.stage import QUICK, Plan, say, staged


def measure(plan: Plan) -> Results:
    """Everything, in one run."""
    began, load_before = time.monotonic(), os.getloadavg()[0]
    with staged() as stage:
        open_served(stage)
        warm_up(stage, plan)
        # Full load comes last: queries of the Firestore emulator become slower with every document
        # that was ever there, deleted or not (2.9 ms, and 8 ms after 25,000 others).
        idle = measure_idle(stage, plan)
        releases = measure_releases(stage, plan)
        paced = measure_paced(stage, plan)
        large = measure_large(stage, plan)
        throughput = measure_throughput(stage, plan)
    say("imports")
    imports = import_ms(plan.import_rounds)
    seconds = time.monotonic() - began
    return Results(plan, throughput, idle, paced, releases, large, imports, seconds, load_before)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="half a minute, to see that it works")
    parser.add_argument("--local", action="store_true", help="the local services, not the package")
    parser.add_argument(
        "--markdown",
        type=Path,
        metavar="FILE",
        help="also put the tables into this page, between its marks",
    )
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that everything is ended
    try:
        text = _measured(local=options.local, quick=options.quick)
    except KeyboardInterrupt:
        return 130
    print(text)
    if options.markdown:
        marks = local_services if options.local else report
        begin, end = marks.BEGIN, marks.END
        page = options.markdown.read_text() if options.markdown.exists() else begin + end
        options.markdown.write_text(insert(text, page, begin, end))
    return 0


def _measured(*, local: bool, quick: bool) -> str:
    if local:
        return local_markdown(measure_local(QUICK_LOCAL if quick else LocalPlan()))
    return markdown(measure(QUICK if quick else Plan()))


if __name__ == "__main__":
    sys.exit(main())
