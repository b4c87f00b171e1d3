"""Libraries that are loaded at first use are loaded by one thread at a time."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import forkjoin_gcp
from forkjoin_gcp.importing import one_at_a_time

PACKAGE = Path(forkjoin_gcp.__file__).parent
SERVING = [
    *(PACKAGE / name for name in ("engine.py", "joining/worker.py", "writing/writer.py")),
    *(PACKAGE / "endpoint").glob("*.py"),
    *(PACKAGE / "gcp").glob("*.py"),
]

FIRST_REQUESTS = """
import threading
from forkjoin_gcp import ForkJoinQueue, Services
from forkjoin_gcp.endpoint.access import Access, AccessRefused, join_policy

services = Services(
    project="p", location="l", memorystore="redis://127.0.0.1:9", invoker="a@b.c",
    join_url="http://127.0.0.1:9/", firestore_emulator_host="127.0.0.1:9",
    cloud_tasks_emulator_host="127.0.0.1:9",
)
barrier, failed = threading.Barrier(12), []

def first_request(number):
    barrier.wait()
    try:
        if number % 3:
            Access(join_policy).admit(services, "Bearer a.b.c")
        else:
            ForkJoinQueue(f"q{number}", services=services).start()
    except AccessRefused:
        pass
    except BaseException as error:
        failed.append(repr(error))

threads = [threading.Thread(target=first_request, args=(n,)) for n in range(12)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(failed)
"""


def late_imports(node: ast.AST, *, guarded: bool, inside: bool) -> Iterator[ast.AST]:
    """Imports inside functions that no ``with one_at_a_time`` is around."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom) and inside and not guarded:
            yield child
        with_lock = isinstance(child, ast.With) and any(
            ast.unparse(item.context_expr) == "one_at_a_time" for item in child.items
        )
        within = inside or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
        yield from late_imports(child, guarded=guarded or with_lock, inside=within)


def test_what_is_loaded_while_serving_is_loaded_by_one_thread_at_a_time() -> None:
    for path in SERVING:
        tree = ast.parse(path.read_text())
        late = [ast.unparse(each) for each in late_imports(tree, guarded=False, inside=False)]
        assert not late, f"{path.name}: {late}"


def test_first_requests_that_come_together_find_whole_libraries() -> None:
    ran = subprocess.run(
        [sys.executable, "-c", FIRST_REQUESTS], capture_output=True, text=True, timeout=60
    )
    assert ran.stdout.strip() == "[]", ran.stdout + ran.stderr


def test_a_forked_child_does_not_wait_for_its_parents_thread() -> None:
    with one_at_a_time:
        child = os.fork()
        if not child:
            with one_at_a_time:
                os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
