"""A pool with nothing to do does nothing: not one thread of it, of its template, its spare or its workers wakes up.

Each story is a program of its own that does something and then waits for a line on its stdin. Once it has come to rest
it is watched from outside. All are watched at the same time, because that is what takes long.
"""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from tests import support, wakeups

#: How long nothing may happen. Seconds.
WATCHED_S = 1.0
#: So often we watch until nothing does. Whatever came before "idle" dies down: a spare goes to sleep, a thread that
#: found another one reading looks once more, a second later.
LOOKS = 4

#: What the program does before it is idle, and under which start methods this is looked at.
STORIES = {
    "default_pool": ("forkserver",),
    "after_map": support.START_METHODS,
    "after_bursts": ("forkserver",),
    "after_callbacks": ("forkserver",),
    "after_timeouts": ("forkserver",),
    "after_large_data": ("forkserver",),
    "after_a_death": ("forkserver",),
    "while_a_long_task_runs": ("forkserver",),
    "while_a_caller_waits": ("forkserver",),
}
CASES = [(story, method) for story, methods in STORIES.items() for method in methods]

PROGRAM = """
import os
import signal
import sys
import threading

import shoal
from shoal._pool import depot
from tests import support, wakeups
from tests.process import pool_tasks as tasks


def default_pool(pool):
    assert shoal.submit(tasks.square, 3).result() == 9
    assert list(shoal.imap(tasks.square, range(50))) == [n * n for n in range(50)]


def after_map(pool):
    assert sum(pool.map(tasks.square, range(20_000))) > 0
    list(pool.map(tasks.nap, [0.003] * 10))


def after_bursts(pool):
    for _ in range(3):
        for future in [pool.submit(tasks.nothing) for _ in range(500)]:
            future.result()
    for _ in range(50):
        pool.submit(tasks.nothing)
    pool.submit(tasks.nap, 0.01)  # nobody asks how it ended


def after_callbacks(pool):
    seen = []
    for n in range(100):
        pool.submit(tasks.square, n).add_done_callback(lambda future: seen.append(future.result()))
    support.eventually(lambda: len(seen) == 100, what="every callback")


def after_timeouts(pool):
    try:
        pool.using(timeout=0.05).submit(tasks.hang).result()
    except shoal.TaskTimeout:
        pass
    timed = pool.using(timeout=60)
    assert sum(timed.map(tasks.square, range(20))) > 0
    for future in [timed.submit(tasks.nothing) for _ in range(200)]:
        future.result()


def after_large_data(pool):
    depot.TRIM_S = 0.2
    data = bytes(3_000_000)
    for _ in range(3):
        assert pool.submit(tasks.identity, data).result() == data


def after_a_death(pool):
    try:
        pool.submit(tasks.die).result()
    except shoal.WorkerDied:
        pass
    assert pool.submit(tasks.square, 3).result() == 9


def while_a_long_task_runs(pool):
    future = pool.submit(tasks.hang)
    support.eventually(future.running, what="the task to run")
    return future


def while_a_caller_waits(pool):
    threading.Thread(target=while_a_long_task_runs(pool).exception, daemon=True).start()


if __name__ == "__main__":
    story, method = sys.argv[1:]
    with shoal.Pool(2, start_method=method) as pool:
        list(pool.map(tasks.nap, [0.005] * 8))  # both workers are there, and a spare will be
        kept = globals()[story](pool)
        support.eventually(wakeups.nothing_due, what="the pools' timers to be far away", limit_s=20)
        print("idle", flush=True)
        sys.stdin.readline()
        pool.shutdown(wait=False, cancel_futures=True)
        if story.startswith("while"):
            os._exit(0)
"""


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    """For each case: who was there, and what happened in `WATCHED_S` without work. No program is left."""
    script = support.write_script(tmp_path_factory.mktemp("idle"), PROGRAM)
    programs = {}
    try:
        for case in CASES:
            process = subprocess.Popen(
                [sys.executable, str(script), *case],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=support.program_environment(),
            )
            programs[case] = support.Program(process)
        for program in programs.values():
            program.wait_for("idle")
        found = watch(programs)
        for case, program in programs.items():
            program.send("that will do")
            assert program.finish() == 0, f"{case}\n{program.story()}"
    finally:
        for program in programs.values():
            program.close()
    return found


def watch(programs):
    """Watch every program that has not been found idle yet."""
    found = {}
    for _ in range(LOOKS):
        restless = {case: program for case, program in programs.items() if case not in found or found[case][1]}
        before = {case: wakeups.threads(program.pid) for case, program in restless.items()}
        if restless:
            time.sleep(WATCHED_S)
        for case, program in restless.items():
            found[case] = before[case], wakeups.woken(before[case], wakeups.threads(program.pid))
    return found


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_idle_pool_never_wakes_up(watched, case):
    there, woken = watched[case]
    processes = {thread.process for thread in there}
    assert any(name.removeprefix("shoal-").isdigit() for name in processes), f"a worker was looked at: {there}"
    assert "shoal-template" in processes or case[1] == "fork", f"so was the template: {there}"
    assert any(thread.pid != thread.tid for thread in there), f"so were threads: {there}"
    assert not woken, wakeups.story(woken, WATCHED_S)
