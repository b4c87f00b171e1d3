"""Runs one command and ends it when whoever started this ends.

Run as `python -I -S guardian.py GRACE COMMAND...` with a pipe as standard input, whose other end
its parent holds open and never writes to. The kernel closes that end whatever way the parent
goes, SIGKILL included, on Linux and macOS alike; then, or on SIGTERM or SIGINT, the command gets
SIGTERM and, after at most GRACE seconds, its whole process group SIGKILL. If the command ends by
itself the guardian ends with its exit status.

Uses nothing but the standard library and imports little, as one is started for every service.
"""

import os
import select
import signal
import subprocess
import sys
from types import FrameType


def wait_for_end(child: subprocess.Popen[bytes], wakeup: int) -> bool:
    """Blocks until the child has ended (False) or is to be ended (True)."""
    while True:
        readable, _, _ = select.select([0, wakeup], [], [])
        if wakeup in readable:
            numbers = set(os.read(wakeup, 4096))
            if numbers & {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}:
                return True
            if child.poll() is not None:
                return False
        if 0 in readable and not os.read(0, 4096):
            return True


def main() -> int:
    """Runs the command; the exit status is that of the command if it ended by itself."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer)

    def note(_number: int, _frame: FrameType | None) -> None:
        """Does nothing: the wake-up pipe tells. A handler must be set for it to be written."""

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
        signal.signal(number, note)
    grace, command = float(sys.argv[1]), sys.argv[2:]
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    # The pipe of the ready line belongs to the command alone: when it closes, the command is gone.
    os.close(1)
    if not wait_for_end(child, reader):
        return child.returncode if child.returncode >= 0 else 128 - child.returncode
    child.terminate()
    try:
        child.wait(grace)
    except subprocess.TimeoutExpired:
        child.kill()
    # This process leads the group: whatever else the command started goes with it, and so does
    # the guardian itself.
    os.killpg(0, signal.SIGKILL)
    return 0


if __name__ == "__main__":
    sys.exit(main())
