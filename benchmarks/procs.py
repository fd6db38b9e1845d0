"""What /proc says about the processes of a case.

Role: find every process a case started, however far it went, and weigh or end it.

A case carries a mark in its environment, which its children inherit. Neither parentage nor process
groups nor sessions would do: contenders start daemons, new groups and processes whose parent is gone.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

#: Environment variable that marks the processes of one case.
MARK = "BENCH_CASE_MARK"

#: How long a program's helpers may take to leave after it has ended. Seconds.
GRACE_S = 1.0

#: Only a hang gets this far. Seconds.
HANG_LIMIT_S = 30.0


def marked(mark: str) -> list[int]:
    """Return the pids of the living processes whose environment carries `mark`."""
    wanted = f"{MARK}={mark}".encode()
    found = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            variables = Path("/proc", entry, "environ").read_bytes().split(b"\0")
        except OSError:  # gone meanwhile, or not ours
            continue
        if wanted in variables:  # a zombie's is empty
            found.append(int(entry))
    return sorted(found)


def wait_until_gone(mark: str, limit_s: float = GRACE_S) -> list[int]:
    """Wait until no process of the case is left; return the pids that stayed."""
    end = time.monotonic() + limit_s
    while (left := marked(mark)) and time.monotonic() < end:
        time.sleep(0.02)
    return left


def kill_marked(mark: str) -> None:
    """End every process of the case. Repeats, because a process may fork while we look."""
    end = time.monotonic() + HANG_LIMIT_S
    while (left := marked(mark)) and time.monotonic() < end:
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        time.sleep(0.005)


def parse_pss(rollup: str) -> int:
    """Return the proportional set size in bytes from the text of a smaps_rollup file."""
    for line in rollup.splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise ValueError("no Pss line")


def pss_bytes(pids: list[int]) -> int:
    """Add up the proportional set sizes, in which a page shared by n processes counts 1/n for each."""
    total = 0
    for pid in pids:
        try:
            total += parse_pss(Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii"))
        except (OSError, ValueError):  # it left meanwhile
            continue
    return total


def settled_pss_bytes(mark: str, *, limit_s: float = 4.0) -> int:
    """Return the memory of all processes of the case once two looks 0.2 s apart agree within 1 %."""
    end = time.monotonic() + limit_s
    before = pss_bytes(marked(mark))
    while True:
        time.sleep(0.2)
        now = pss_bytes(marked(mark))
        if abs(now - before) <= now / 100 or time.monotonic() > end:
            return now
        before = now
