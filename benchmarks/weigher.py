"""Watch the memory of a case from outside, so that what is watched is not slowed and cannot hide a moment.

Role: a process of its own that looks again and again and, when its input ends, prints the most it saw.
Owner: `watched`, in the case's interpreter. Without the case's mark it is not part of what it weighs; if the case is
killed its input ends, and so does it.

    python -m benchmarks.weigher MARK
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from benchmarks import procs

#: Pause between two looks, at first; and how many times longer than a look it may become. Seconds.
PAUSE_S = 0.01
LONGEST_PAUSE = 15
#: Only a hang gets this far. Seconds.
HANG_LIMIT_S = 20.0


@dataclass
class Peak:
    """The most that was held while the block ran, in bytes; set when it ends."""

    held_bytes: int = 0


@contextmanager
def watched(mark: str) -> Iterator[Peak]:
    """Watch the processes of the case while the block runs."""
    peak = Peak()
    environment = {name: value for name, value in os.environ.items() if name != procs.MARK}
    command = [sys.executable, "-m", "benchmarks.weigher", mark]
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()  # it has looked once
            yield peak
            said, _ = process.communicate(timeout=HANG_LIMIT_S)
            peak.held_bytes = int(said)
        finally:
            process.kill()


def main(mark: str) -> None:
    most = procs.held_bytes(mark)
    print("looking", flush=True)
    pause_s = PAUSE_S
    while not select.select([0], [], [], pause_s)[0]:
        start = time.monotonic()
        most = max(most, procs.held_bytes(mark))
        # Short moments are watched closely; what takes long must not be slowed by being watched.
        pause_s = min(pause_s * 1.1, max(PAUSE_S, LONGEST_PAUSE * (time.monotonic() - start)))
    print(max(most, procs.held_bytes(mark)))


if __name__ == "__main__":
    main(*sys.argv[1:])
