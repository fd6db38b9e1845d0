"""The lifeline: real programs killed for real (L1 to L3 of `_os/lifeline.py`)."""

from __future__ import annotations

import os
import signal

import pytest

from tests.support import eventually, is_alive

#: A main program with two workers on one pipe, each with a grandchild in its group.
PROGRAM = """
    import os, signal, sys, threading, time
    from shoal._os.lifeline import Lifeline
    from shoal._os.processes import own_group

    def hold_the_gil():
        sum(range(10**13))          # one C loop: no other thread, no Python signal handler runs

    def block_everything():
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        time.sleep(1000)

    def stand_still():
        os.kill(os.getpid(), signal.SIGSTOP)

    def end():
        os._exit(0)

    read_fd, write_fd = Lifeline.create()
    for _ in range(2):
        ready, tell = os.pipe()
        worker = os.fork()
        if worker == 0:
            own_group()
            os.close(write_fd)
            Lifeline.arm(read_fd)
            grandchild = os.fork()
            if grandchild == 0:
                time.sleep(1000)
            os.write(tell, str(grandchild).encode())
            {busy}()
            time.sleep(1000)
        print("pids", worker, os.read(ready, 20).decode(), flush=True)
    print("ready", flush=True)
    {then}
"""


@pytest.fixture
def pids_of(start_script):
    """Returns the pids a PROGRAM prints: worker, grandchild, worker, grandchild. A survivor is killed after the test."""
    seen = []

    def read(program):
        seen.extend(int(pid) for _ in range(2) for pid in program.wait_for("pids").split())
        return seen

    yield read
    for pid in filter(is_alive, seen):
        os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("busy", ["hold_the_gil", "block_everything", "stand_still", "end"])
def test_killing_the_program_kills_its_workers_and_their_children(start_script, pids_of, busy):
    """Both workers are armed on one pipe; the last one to arm must not be the only one that dies (L3)."""
    program = start_script(PROGRAM.format(busy=busy, then="time.sleep(1000)"))
    pids = pids_of(program)
    program.wait_for("ready")
    assert [is_alive(pid) for pid in pids[1::2]] == [True, True]

    program.kill()

    eventually(lambda: not any(map(is_alive, pids)), what="both groups to be killed by the kernel", limit_s=5)


def test_a_program_that_exits_takes_its_groups_along(start_script, pids_of):
    program = start_script(PROGRAM.format(busy="hold_the_gil", then=""))
    pids = pids_of(program)
    program.process.wait(5)
    eventually(lambda: not any(map(is_alive, pids)), what="both groups to be killed by the kernel", limit_s=5)


def test_arming_after_the_program_died_kills_the_group_at_once(run_script):
    """The write end is already closed: no signal will come, so `arm` must look (L2)."""
    done = run_script("""
        import os, signal, time
        from shoal._os.lifeline import Lifeline
        from shoal._os.processes import own_group, reap

        read_fd, write_fd = Lifeline.create()
        os.close(write_fd)
        out, tell = os.pipe()
        child = os.fork()
        if child == 0:
            own_group()
            grandchild = os.fork()
            if grandchild == 0:
                signal.alarm(10)  # nobody else would end it, should the claim be wrong
                time.sleep(1000)
            Lifeline.arm(read_fd)
            os.write(tell, b"survived")
            os._exit(0)
        status = reap(child, block=True)
        os.close(tell)
        print(status.signal, os.read(out, 100))      # end of file: the grandchild has gone too
    """)
    assert done.stdout.split() == ["9", "b''"], done.stderr


def test_an_armed_group_lives_as_long_as_the_program_does(run_script):
    """Other readers that come and go, and the worker's own end, raise no signal."""
    done = run_script("""
        import os
        from shoal._os.lifeline import Lifeline
        from shoal._os.processes import own_group, reap

        read_fd, write_fd = Lifeline.create()
        assert not os.get_inheritable(read_fd) and not os.get_inheritable(write_fd)
        for _ in range(3):
            child = os.fork()
            if child == 0:
                own_group()
                os.close(write_fd)
                number = len(os.listdir("/proc/self/fd"))
                Lifeline.arm(read_fd)
                assert not os.get_inheritable(read_fd)
                os._exit(7 if len(os.listdir("/proc/self/fd")) == number else 1)
            print(reap(child, block=True).code)
    """)
    assert done.stdout.split() == ["7", "7", "7"], done.stderr
