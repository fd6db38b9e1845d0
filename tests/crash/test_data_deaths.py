"""Large data when processes are killed: values right, nothing kept, and a program's memory gone with the program.

Role: bounded versions of the storms of `data_storm.py`, and real programs, ended by SIGKILL. Owner: pytest.
"""

from __future__ import annotations

import os
import signal

import pytest

from tests import support
from tests.crash import data_storm
from tests.crash.programs import Victim
from tests.support import eventually

#: Rounds of three tasks each, for each start method; `tests/stress` has a thousand.
ROUNDS = {"forkserver": 60, "fork": 40, "spawn": 60}
PERIOD_S = {"forkserver": 0.03, "fork": 0.03, "spawn": 0.3}
GIB = 1 << 30


def test_large_data_is_right_and_returns_while_workers_are_killed(pool_factory, start_method):
    pool = pool_factory(2, retries=50, backoff_s=0.001)
    assert data_storm.rounds_through(pool, ROUNDS[start_method], PERIOD_S[start_method]) > 0
    assert pool.statistics().workers_lost > 0


# --- the program is killed ----------------------------------------------------------------------

HOARDER = """
import sys, time
import numpy as np
import shoal
from tests.process import data_tasks as tasks

def hold(value, shared):
    tasks.STATE["held"] = value, shared
    value[: 64 << 20] = 1  # its own by now
    print("a worker holds it", flush=True)
    time.sleep(1000)

if __name__ == "__main__":
    part = int(sys.argv[2])
    pool = shoal.Pool(2, start_method=sys.argv[1])
    shared = shoal.share(np.ones(part, "u1"))
    written = shoal.zeros(part, "u1")
    written[:] = 2
    made = [pool.submit(tasks.filled, 1, part).result()]
    futures = [pool.submit(hold, np.ones(part, "u1"), (shared, written)) for _ in range(2)]
    print("all is there", flush=True)
    futures[0].result()
"""


def memory(name):
    """One figure of this machine, in bytes."""
    with open("/proc/meminfo", encoding="ascii") as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith(f"{name}:"))


@pytest.mark.start_methods("forkserver")
def test_gigabytes_are_back_at_once_when_the_program_is_killed(tmp_path, start_method):
    """Shared, lent both ways, written in place: 1 GiB and more of it, and no file anywhere."""
    if memory("MemAvailable") < 6 * GIB:
        pytest.skip("this machine has too little memory to see it in")
    shared = memory("Shmem")
    segments = support._listing("/dev/shm")
    victim = Victim(tmp_path, HOARDER, start_method, GIB // 4)
    try:
        victim.wait_for("all is there")
        eventually(lambda: victim.printed().count("a worker holds it") == 2, what="both workers to hold it")
        taken = memory("Shmem") - shared
        assert taken > 0.9 * GIB, f"{taken >> 20} MiB of shared memory"
        assert support._listing("/dev/shm") == segments
        victim.end(signal.SIGKILL)
        victim.assert_gone()
        # Others on this machine may share memory, too, though hardly that much in the same second.
        eventually(lambda: memory("Shmem") - shared < 0.3 * taken, what="the shared memory to be back", limit_s=1.0)
    finally:
        victim.close()
    assert support._listing("/dev/shm") == segments
    assert not any("shoal" in name for name in os.listdir(tmp_path) if not name.startswith("victim"))
