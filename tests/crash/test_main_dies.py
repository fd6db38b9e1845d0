"""The program ends in the middle of its work: nothing of it is left, and a Ctrl-C says so once.

Role: real programs, ended by SIGKILL, SIGTERM and SIGINT at random moments. Owner: pytest.
"""

from __future__ import annotations

import random
import signal
import time

import pytest

from tests.crash import programs
from tests.crash.programs import BREEDER, Victim, grandchildren
from tests.support import QUIET_S, eventually, stays

#: Programs ended for each start method; `tests/stress` has the long version.
MOMENTS = 25
#: From the program's start to well into its work. Seconds.
SPAN_S = {"forkserver": 0.4, "spawn": 0.6, "fork": 0.4}
#: A Ctrl-C that takes longer has waited for a task. Seconds.
QUICK_S = 2.0


def moments(start_method, count, seed=0):
    chance = random.Random(f"{start_method} {seed}")
    return [chance.uniform(0.0, SPAN_S[start_method]) for _ in range(count)]


@pytest.fixture
def victim(tmp_path):
    started = []

    def start(source, *args):
        started.append(Victim(tmp_path, source, *args))
        return started[-1]

    yield start
    for one in started:
        one.close()


def test_nobody_survives_a_program_killed_at_a_random_moment(tmp_path, start_method):
    programs.kill_at_moments(tmp_path, start_method, moments(start_method, MOMENTS))


def test_nobody_survives_a_program_terminated_at_a_random_moment(tmp_path, start_method):
    programs.kill_at_moments(tmp_path, start_method, moments(start_method, 5, seed=1), signum=signal.SIGTERM)


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM], ids=lambda one: one.name)
def test_grandchildren_that_ran_for_sure_are_gone_too(victim, start_method, signum):
    program = victim(BREEDER, start_method, grandchildren(start_method))
    expected = 1 + 1 + 3 + 1 + (start_method != "fork")  # program, interpreter, shell with two, fork, daemon
    program.wait_for("round")
    eventually(lambda: _grandchildren(program) >= expected - 1, what="the grandchildren")
    program.end(signum)
    program.assert_gone()


def _grandchildren(program):
    """Processes that sleep for 1000 s: all the kinds, and the task itself."""
    return len(program.survivors()) - 1


STOPPED = """
import os, signal, sys, time
import shoal

def stop(_):
    os.kill(os.getpid(), signal.SIGSTOP)

def hold_the_interpreter(_):
    import re
    re.match(r"(a+)+$", "a" * 64 + "b")  # native code that never lets go of it

if __name__ == "__main__":
    pool = shoal.Pool(2, start_method=sys.argv[1])
    futures = [pool.submit(stop, 0), pool.submit(hold_the_interpreter, 0)]
    while not all(future.running() for future in futures):
        time.sleep(0.01)
    print("stuck", flush=True)
    futures[0].result()
"""


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=lambda one: one.name)
def test_stopped_and_stuck_workers_die_with_the_program(victim, start_method, signum):
    program = victim(STOPPED, start_method)
    program.wait_for("stuck")
    assert program.end(signum) < QUICK_S
    program.assert_gone()


# --- Ctrl-C -------------------------------------------------------------------------------------

INTERRUPTED = """
import concurrent.futures, os, sys, time
import shoal

def sleep(seconds):
    print("a worker says this before", flush=True)
    time.sleep(seconds)
    return seconds

def ready():
    print("ready", flush=True)

if __name__ == "__main__":
    method, way = sys.argv[1:]
    os.environ["SHOAL_START_METHOD"] = method
    shoal.map(abs, [1], workers=1)  # imports what is imported late: there Python itself may swallow a Ctrl-C
    print("begun", flush=True)
    if way == "map in with":
        with shoal.Pool(2) as pool:
            ready()
            list(pool.map(sleep, [1000] * 20))
    elif way == "result in with":
        with shoal.Pool(2) as pool:
            future = pool.submit(sleep, 1000)
            ready()
            future.result()
    elif way == "sleep in with":
        with shoal.Pool(2) as pool:
            futures = [pool.submit(sleep, 1000) for _ in range(20)]
            ready()
            time.sleep(1000)
    elif way == "wait in with":
        with shoal.Pool(2) as pool:
            futures = [pool.submit(sleep, 1000) for _ in range(20)]
            ready()
            concurrent.futures.wait(futures)
    elif way == "leaving with":
        with shoal.Pool(2) as pool:
            futures = [pool.submit(sleep, 1000) for _ in range(20)]
            ready()
    elif way == "imap in with":
        with shoal.Pool(2) as pool:
            ready()
            for _ in pool.imap(sleep, iter([1000] * 20), ordered=False):
                pass
    elif way == "shoal.map":
        ready()
        shoal.map(sleep, [1000] * 20)
    elif way == "shoal.map with workers":
        ready()
        shoal.map(sleep, [1000] * 20, workers=2)
    elif way == "result without with":
        pool = shoal.Pool(2)
        futures = [pool.submit(sleep, 1000) for _ in range(20)]
        ready()
        futures[0].result()
    elif way == "sleep without with":
        pool = shoal.Pool(2)
        futures = [pool.submit(sleep, 1000) for _ in range(20)]
        ready()
        time.sleep(1000)
    elif way == "at exit":
        pool = shoal.Pool(2)
        futures = [pool.submit(sleep, 1000) for _ in range(20)]
        ready()
    elif way == "short tasks":
        with shoal.Pool(2) as pool:
            ready()
            while True:
                shoal.map(abs, range(1000))
                [future.result() for future in [pool.submit(abs, n) for n in range(100)]]
    raise AssertionError("not interrupted")
"""

WAYS = (
    "map in with", "result in with", "sleep in with", "wait in with", "leaving with", "imap in with", "shoal.map",
    "shoal.map with workers", "result without with", "sleep without with", "short tasks",
)  # fmt: skip


def interrupt(program):
    """Send what Ctrl-C sends, once, and check that the program ends as it should."""
    took_s = program.end(signal.SIGINT, group=True)
    told = program.complained()
    lines = [line for line in told.splitlines() if not line.startswith("[worker ")]
    assert took_s < QUICK_S, told
    assert program.process.returncode == -signal.SIGINT, told
    assert lines.count("KeyboardInterrupt") == 1, told
    assert sum(line.startswith("Traceback") for line in lines) == 1, told
    assert "[worker" not in told, told
    assert not any(line.startswith(("Exception ignored", "During handling", "Error in")) for line in lines), told
    program.assert_gone()


@pytest.mark.parametrize("way", WAYS)
def test_ctrl_c_ends_the_program_once_quickly_and_quietly(victim, start_method, way):
    program = victim(INTERRUPTED, start_method, way)
    program.wait_for("ready")
    if way != "short tasks":
        eventually(lambda: "a worker says this before" in program.printed(), what="a task to run")
    interrupt(program)


@pytest.mark.parametrize("way", ["map in with", "result without with", "short tasks", "shoal.map"])
def test_ctrl_c_at_a_random_moment_of_the_work(victim, start_method, way):
    chance = random.Random(f"{way} {start_method}")
    for _ in range(4):
        program = victim(INTERRUPTED, start_method, way)
        program.wait_for("begun")
        time.sleep(chance.uniform(0.0, 0.15))  # not to wait for anything: the moment is what is tested
        interrupt(program)


def test_ctrl_c_at_exit_ends_the_work_that_is_left(victim, start_method):
    """The main module has ended and the work is being finished: there is no caller to raise in, only an end to make."""
    program = victim(
        INTERRUPTED.replace("    raise Assertion", "    if way != 'at exit': raise Assertion"), start_method, "at exit"
    )
    program.wait_for("ready")
    eventually(lambda: "a worker says this before" in program.printed(), what="a task to run")
    stays(lambda: program.process.poll() is None, what="the program waits for its work", quiet_s=QUIET_S)
    assert program.end(signal.SIGINT, group=True) < QUICK_S
    assert program.process.returncode == -signal.SIGINT
    assert not program.complained()
    program.assert_gone()


CAUGHT = """
import os, sys, time
import shoal

def sleep(seconds):
    print("a worker says this before", flush=True)
    time.sleep(seconds)
    return seconds

if __name__ == "__main__":
    os.environ["SHOAL_START_METHOD"] = sys.argv[1]
    try:
        shoal.map(sleep, [1000] * 20)
    except KeyboardInterrupt:
        pass
    print("and on", shoal.map(abs, [-1, -2]), flush=True)
    with shoal.Pool(2) as pool:
        future = pool.submit(sleep, 1000)
        try:
            print("again", flush=True)
            future.result()
        except KeyboardInterrupt:
            future.cancel()
        print("and on", pool.submit(abs, -3).result(), flush=True)
"""


def test_a_program_that_catches_ctrl_c_goes_on_with_its_pools(victim, start_method):
    program = victim(CAUGHT, start_method)
    program.wait_for("[worker 0] a worker says this before")
    program.process.send_signal(signal.SIGINT)
    program.wait_for("and on [1, 2]")
    program.wait_for("again")
    eventually(lambda: program.printed().count("a worker says this before") >= 2, what="the task to run")
    program.process.send_signal(signal.SIGINT)
    eventually(lambda: program.process.poll() is not None, what="the program's end")
    assert "and on 3" in program.printed()
    assert program.process.returncode == 0, program.complained()
    assert not program.complained()
    program.assert_gone()
