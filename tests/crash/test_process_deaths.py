"""A Process dies at every stage in every manner: the right error, the right exit code, nobody hangs, nothing is left.

Role: one test for each cell over every start method, then what is killed around it: its start, its template, its program.
Owner: pytest. The leak audit of `tests/conftest.py` judges each cell.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time

import pytest

import shoal
from shoal._os import processes
from shoal._pool import launcher
from shoal.errors import NotPicklable, ProcessDied, RemoteError, StartFailed
from tests.crash import tasks
from tests.crash.programs import GONE_S, Victim
from tests.crash.tasks import Boom
from tests.support import HANG_LIMIT_S, eventually, is_alive

pytestmark = pytest.mark.hang_limit(30)

#: (error of `result`, exit code) for each manner; an error of None is a result.
MANNERS = ("exception", "sys.exit", "os._exit", "SIGKILL", "SIGSEGV", "SIGABRT", "memory error")
BY_ITSELF = ((ProcessDied, 3), (ProcessDied, -9), (ProcessDied, -11), (ProcessDied, -6))
RUNNING = ((Boom, 1), (RemoteError, 3), *BY_ITSELF, (MemoryError, 1))
TOLD = ((None, 3), (None, -9), (None, -11), (None, -6))
TABLE = {
    "object unpickled": RUNNING,
    "running": RUNNING,
    "after ready": RUNNING,
    "result pickled": ((NotPicklable, 0), (NotPicklable, 0), *BY_ITSELF, (NotPicklable, 0)),
    "result half sent": (None, None, *BY_ITSELF, None),
    "result unpickled here": ((RemoteError, 0), (RemoteError, 0), None, None, None, None, (RemoteError, 0)),
    "in an exit handler": ((None, 0), (None, 0), *TOLD, (None, 0)),
    "in a thread after run": ((None, 0), (None, 0), *TOLD, (None, 0)),
}
CELLS = [
    pytest.param(stage, manner, *expected, id=f"{stage}-{manner}")
    for stage, row in TABLE.items()
    for manner, expected in zip(MANNERS, row, strict=True)
    if expected is not None  # it would be this program's own end, or cannot be made to happen there and nowhere else
]


class ReadyThen(shoal.Process):
    def __init__(self, manner, **options):
        super().__init__(**options)
        self.manner = manner

    def run(self):
        self.ready()
        tasks.die(self.manner)


def die_in_a_thread(manner):
    def late():
        time.sleep(0.01)  # `run` has returned, or is about to
        tasks.die(manner)

    threading.Thread(target=late).start()


def play(stage, manner, method):
    if stage == "after ready":
        return ReadyThen(manner, start_method=method)
    target, given = {
        "object unpickled": (tasks.echo, tasks.DiesWhenUnpickled(manner)),
        "running": (tasks.run_then_die, manner),
        "result pickled": (tasks.return_what_dies_when_pickled, manner),
        "result half sent": (tasks.return_large_and_die_while_sending, manner),
        "result unpickled here": (tasks.return_what_dies_when_unpickled, manner),
        "in an exit handler": (tasks.die_when_leaving, manner),
        "in a thread after run": (die_in_a_thread, manner),
    }[stage]
    return shoal.Process(target=target, args=(given,), start_method=method, name="victim")


@pytest.mark.start_methods("forkserver")
@pytest.mark.parametrize(("stage", "manner", "error", "exitcode"), CELLS)
def test_each_death_is_told_as_what_it_is(stage, manner, error, exitcode, start_method, capfd):
    judge(stage, manner, error, exitcode, start_method)


def judge(stage, manner, error, exitcode, start_method):
    process = play(stage, manner, start_method)
    process.start()
    caught = _error_of(process)
    assert type(caught) is (error or type(None)), caught
    assert process.exitcode == exitcode or exitcode is None
    assert (process.obituary is None) == (process.exitcode == 0 and error is not ProcessDied)
    if error is ProcessDied and (process.exitcode or 0) < 0:
        assert process.obituary.signal == signal.Signals(-process.exitcode).name


@pytest.mark.start_methods("spawn", "fork")
@pytest.mark.parametrize(
    ("stage", "manner"),
    [("running", "exception"), ("running", "SIGSEGV"), ("running", "os._exit"), ("in an exit handler", "SIGKILL")],
)
def test_it_is_told_alike_by_the_other_start_methods(stage, manner, start_method, capfd):
    error, exitcode = TABLE[stage][MANNERS.index(manner)]
    judge(stage, manner, error, exitcode, start_method)


def _error_of(process):
    try:
        process.result(HANG_LIMIT_S)
    except Exception as error:
        return error


def test_a_stopped_process_is_killed_all_the_same(start_method):
    process = shoal.Process(target=tasks.run_then_die, args=("SIGSTOP",), start_method=start_method)
    process.start()
    eventually(lambda: processes.state_letter(process.pid) == "T", what="the process to stop")
    assert process.stop(grace=0.05) is False
    assert process.exitcode == -signal.SIGKILL


# --- around it ----------------------------------------------------------------------------------


@pytest.mark.parametrize("delay_s", [0.0, 0.001, 0.004, 0.015])
def test_killed_while_it_starts(start_method, delay_s):
    """Whatever stage it has come to."""
    for number in range(5 if start_method != "spawn" else 2):
        process = shoal.Process(target=time.sleep, args=(1000,), start_method=start_method)
        process.start()
        time.sleep(delay_s * (1 + number / 5))  # not to wait for anything: the moment is what is tested
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        with pytest.raises(ProcessDied, match="was killed by SIGKILL"):
            process.result()


@pytest.mark.start_methods("forkserver", "spawn")
def test_the_template_dies_and_nobody_hangs(start_method):
    """Its processes live on, and what they return counts; how one ends that returned nothing cannot be learned."""
    ready = [shoal.Process(target=tasks.echo, args=(5,), start_method=start_method) for _ in range(2)]
    ready[0].start()
    assert ready[0].result() == 5
    lives = ReadyWait(start_method=start_method)
    killed = ReadyWait(start_method=start_method)
    for process in (lives, killed):
        process.start()
        process.wait_ready()
    for pid in launcher.template_pids():
        os.kill(pid, signal.SIGKILL)
    killed.kill()
    killed.join(HANG_LIMIT_S)
    assert killed.exitcode == 255  # as multiprocessing says when its fork server is gone
    with pytest.raises(ProcessDied, match="could not be learned"):
        killed.result()
    assert lives.stop() is True
    assert (lives.result(), lives.exitcode) == ("stopped", 0)
    ready[1].start()  # by a new template
    assert ready[1].result() == 5


class ReadyWait(shoal.Process):
    def run(self):
        self.stopping.is_set()
        self.ready()
        self.stopping.wait()
        return "stopped"


@pytest.mark.start_methods("forkserver")
def test_the_template_is_killed_again_and_again_while_processes_start(start_method):
    """Each start succeeds or fails with its own error; nothing hangs and nothing is left."""
    chance = random.Random(5)
    over = threading.Event()

    def hunt():
        while not over.is_set():
            for pid in launcher.template_pids():
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
            over.wait(chance.uniform(0.05, 0.25))

    hunter = threading.Thread(target=hunt)
    hunter.start()
    outcomes = []
    end = time.monotonic() + 2.0
    try:
        while time.monotonic() < end:
            process = shoal.Process(target=tasks.echo, args=(1,), start_method=start_method)
            try:
                process.start()
                outcomes.append(process.result(HANG_LIMIT_S))
            except (StartFailed, ProcessDied) as error:
                outcomes.append(type(error))
    finally:
        over.set()
        hunter.join()
    assert outcomes


#: Three generations: a process with a process, each with a child program, and a pool beside them.
FAMILY = """
import subprocess, sys, time
import shoal

def inner():
    subprocess.Popen(["sleep", "1000"])
    shoal.current_process().ready()
    time.sleep(1000)

def outer(method):
    process = shoal.Process(target=inner, start_method=method)
    process.start()
    process.wait_ready()
    subprocess.Popen(["sleep", "1000"])
    shoal.current_process().ready()
    time.sleep(1000)

if __name__ == "__main__":
    method = sys.argv[1]
    print("begun", flush=True)
    while True:
        process = shoal.Process(target=outer, args=(method,), start_method=method, daemon=True)
        process.start()
        process.wait_ready()
        print("family", flush=True)
"""


@pytest.fixture
def victim(tmp_path):
    started = []

    def start(source, *args):
        started.append(Victim(tmp_path, source, *args))
        return started[-1]

    yield start
    for one in started:
        one.close()


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM], ids=lambda one: one.name)
def test_nobody_survives_the_program(victim, start_method, signum):
    program = victim(FAMILY, start_method)
    program.wait_for("family")
    assert len(program.survivors()) >= 5
    program.end(signum)
    program.assert_gone()


def test_nobody_survives_a_program_killed_at_a_random_moment(victim, start_method):
    chance = random.Random(start_method)
    for _ in range(4):
        program = victim(FAMILY, start_method)
        time.sleep(chance.uniform(0.1, 0.7))  # not to wait for anything: the moment is what is tested
        program.end(signal.SIGKILL)
        program.assert_gone()


def test_a_killed_process_takes_its_whole_group(start_method, tmp_path):
    process = shoal.Process(target=breed, start_method=start_method)
    process.start()
    pids = process.wait_ready()
    process.kill()
    process.join()
    eventually(lambda: not any(map(is_alive, pids)), what="its children to be gone", limit_s=GONE_S)


def breed():
    import subprocess

    children = [subprocess.Popen(["sleep", "1000"]) for _ in range(3)]
    shoal.current_process().ready([child.pid for child in children])
    time.sleep(1000)


def test_a_process_that_is_stopped_as_it_begins_ends_by_what_it_was_sent(start_method):
    """It is asked where it is before it is killed; one that has not begun would die of the question."""
    ends = set()
    for _ in range(15):
        process = shoal.Process(target=time.sleep, args=(HANG_LIMIT_S,), start_method=start_method)
        process.start()
        process.stop(grace=0)
        ends.add(process.exitcode)
        process.close()
    assert ends <= {-signal.SIGKILL, -signal.SIGTERM}
