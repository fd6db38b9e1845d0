"""What /proc says about the processes of a case.

Role: find every process a case started, however far it went, and weigh or end it.

A case carries a mark in its environment, which its children inherit. Neither parentage nor process
groups nor sessions would do: contenders start daemons, new groups and processes whose parent is gone.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
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


def parse_pss(rollup: str, field: str = "Pss") -> int:
    """Return the proportional set size in bytes, or a part of it, from the text of a smaps_rollup file."""
    for line in rollup.splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"no {field} line")


def pss_bytes(pids: list[int]) -> int:
    """Add up the proportional set sizes, in which a page shared by n processes counts 1/n for each."""
    total = 0
    for pid in pids:
        try:
            total += parse_pss(Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii"))
        except (OSError, ValueError):  # it left meanwhile
            continue
    return total


def machine_bytes(field: str) -> int:
    """Return a field of /proc/meminfo in bytes. "Shmem" counts all shared memory, mapped or not, with a name or not."""
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"no {field} line")


def held_bytes(mark: str) -> int:
    """Return what the processes of the case hold, and all shared memory of the machine.

    A page of shared memory counts in a proportional set size only once somebody has touched it through a mapping,
    so that part of each is taken out and the whole put in. Only differences mean something, and only as far as
    nobody else on the machine takes or frees shared memory meanwhile.
    """
    private = 0
    for pid in marked(mark):
        try:
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
            private += parse_pss(rollup) - parse_pss(rollup, "Pss_Shmem")
        except (OSError, ValueError):  # it left meanwhile
            continue
    return private + machine_bytes("Shmem")


def settled_pss_bytes(mark: str) -> int:
    """Return the memory of all processes of the case once it no longer changes."""
    return settled(lambda: pss_bytes(marked(mark)))


def settled(measure: Callable[[], int], *, limit_s: float = 4.0) -> int:
    """Return what `measure` says once two looks 0.2 s apart agree within 1 %."""
    end = time.monotonic() + limit_s
    before = measure()
    while True:
        time.sleep(0.2)
        now = measure()
        if abs(now - before) <= now / 100 or time.monotonic() > end:
            return now
        before = now
