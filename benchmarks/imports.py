"""How long an import takes, in a fresh interpreter each time."""

from __future__ import annotations

import statistics
import subprocess
import sys

MODULES = {
    "forkjoin_gcp": "forkjoin_gcp",
    "with_clients": "forkjoin_gcp, forkjoin_gcp.gcp.connect",
    "clients_2010": "redis, google.cloud.firestore, google.cloud.tasks_v2",
}
"""What is imported, by the name of its figure."""

_PROGRAM = "import time; began = time.perf_counter(); import {}; print(time.perf_counter() - began)"


def import_ms(rounds: int) -> dict[str, float]:
    """The median of ``rounds`` interleaved imports of each, ms. Files are in the page cache."""
    taken: dict[str, list[float]] = {name: [] for name in MODULES}
    for number in range(rounds + 1):
        for name, modules in MODULES.items():
            command = [sys.executable, "-c", _PROGRAM.format(modules)]
            answer = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
            if number:  # the first one fills the caches
                taken[name].append(float(answer.stdout) * 1e3)
    return {name: statistics.median(values) for name, values in taken.items()}
