"""How often threads have woken up, as the kernel counts it.

Role: tells an idle program from one that looks busy to nobody but the battery. Owner: whoever looks; it may look at
itself, and then leaves its own thread out.

A thread that gives its processor up of its own accord adds one to `voluntary_ctxt_switches`. One that sleeps on adds
nothing, so one that adds nothing has not run.
"""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import NamedTuple

from tests import support

#: Nobody woke up for this long: what was under way is over.
CALM_S = 0.15
#: Timers that are due later than this disturb no test. Memory that was used is looked at every three seconds of work.
FAR_S = 2.0


class Thread(NamedTuple):
    """One thread of one process."""

    pid: int
    tid: int
    process: str
    name: str

    def __str__(self) -> str:
        return f"{self.process}, thread {self.name} ({self.pid}/{self.tid})"


def threads(*roots: int) -> dict[Thread, int]:
    """How often each thread of these processes and of all below them gave its processor up; without who asks."""
    found: dict[Thread, int] = {}
    mine = str(os.getpid()), str(threading.get_native_id())
    for pid in [*roots, *(one.pid for root in roots for one in support.tree_of(root))]:
        process = _text(f"/proc/{pid}/comm").strip()
        for tid in _listing(f"/proc/{pid}/task"):
            fields = dict(line.split(":", 1) for line in _text(f"/proc/{pid}/task/{tid}/status").splitlines())
            if "voluntary_ctxt_switches" in fields and (str(pid), tid) != mine:
                thread = Thread(pid, int(tid), process, fields["Name"].strip())
                found[thread] = int(fields["voluntary_ctxt_switches"])
    return found


def woken(before: dict[Thread, int], after: dict[Thread, int]) -> dict[Thread, int]:
    """Who woke up between two looks, and how often. Who came or went meanwhile did, too."""
    there = before | after
    times = {thread: abs(after.get(thread, 0) - before.get(thread, 0)) for thread in there}
    return {thread: count for thread, count in times.items() if count}


def story(woken: dict[Thread, int], watched_s: float) -> str:
    """What `woken` found, for the message of a test that fails."""
    return "\n  ".join(
        [f"in {watched_s:g} s woke up:", *(f"{thread}: {count} times" for thread, count in woken.items())]
    )


def settle(*roots: int) -> None:
    """Wait until none of these processes and of those below them has woken up for `CALM_S`."""
    seen = threads(*roots)
    since = time.monotonic()

    def calm() -> bool:
        nonlocal seen, since
        now = threads(*roots)
        if now != seen:
            seen, since = now, time.monotonic()
        return time.monotonic() - since > CALM_S

    support.eventually(calm, what=f"processes {roots} and those below them to fall asleep", limit_s=20)


def nothing_due() -> bool:
    """Whether no pool of this very process has anything to do for a long time."""
    from shoal._pool import program

    waits = [engine.core.timers.wait_s() for engine in program.engines]
    return all(wait_s is None or wait_s > FAR_S for wait_s in waits)


def come_to_rest() -> None:
    """Wait until the pools of this very process have nothing left to do and everybody sleeps."""
    support.eventually(nothing_due, what="the pools' timers to be far away", limit_s=20)
    settle(os.getpid())


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:  # it ended while we looked
        return ""


def _listing(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []
