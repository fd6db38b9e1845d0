"""Pidfds, groups, reaping, /proc and signals with real processes."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys

import pytest

from shoal._os import processes
from tests.support import QUIET_S, eventually


@pytest.fixture
def child():
    """Starts `python -c source` in a group of its own and waits until it prints a line; killed and reaped after."""
    started = []

    def start(source):
        code = f"import os, signal, sys, time\n{source}"
        process = subprocess.Popen([sys.executable, "-SEc", code], stdout=subprocess.PIPE, process_group=0)
        started.append(process)
        assert process.stdout is not None
        process.first_line = process.stdout.readline().decode().strip()
        return process

    yield start
    for process in started:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass  # the test has ended it
        process.wait()
        process.stdout.close()


@pytest.fixture
def pidfd():
    opened = []

    def open_one(pid):
        opened.append(processes.pidfd_open(pid))
        return opened[-1]

    yield open_one
    for fd in opened:
        os.close(fd)


SLEEP = "print('ready', flush=True); time.sleep(1000)"


def test_a_killed_child_is_seen_then_reaped_with_signal_and_usage(child, pidfd):
    one = child("page = bytearray(b'x') * 40_000_000; print('ready', flush=True); time.sleep(1000)")
    fd = pidfd(one.pid)
    assert not os.get_inheritable(fd)
    assert not processes.wait_pidfd(fd, 0)
    assert not processes.wait_pidfd(fd, 0.01)
    assert not processes.peek_exit(one.pid)
    assert processes.reap(one.pid, block=False) is None

    assert processes.kill_pidfd(fd, signal.SIGKILL)

    assert processes.wait_pidfd(fd, None)
    assert processes.peek_exit(one.pid)  # and is still there to be reaped
    status = processes.reap(one.pid, block=False)
    assert (status.pid, status.code, status.signal) == (one.pid, None, signal.SIGKILL)
    assert status.peak_rss_bytes > 40_000_000
    assert status.cpu_s > 0
    assert not processes.kill_pidfd(fd, signal.SIGKILL)
    assert processes.reap(one.pid, block=False) == processes.ExitStatus(one.pid, None, None, 0, 0.0)


def test_an_exit_code_is_reported(child):
    one = child("sys.exit(3)")
    status = processes.reap(one.pid, block=True)
    assert (status.code, status.signal) == (3, None)


def test_killing_a_group_takes_the_grandchild(child):
    one = child("pid = os.fork()\nif pid: print(pid, flush=True)\ntime.sleep(1000)")
    grandchild = int(one.first_line)
    assert processes.children_of(one.pid) == [grandchild]
    assert processes._children_by_scan(one.pid) == [grandchild]
    assert processes.kill_group(one.pid, signal.SIGKILL)
    eventually(lambda: processes.state_letter(grandchild) in (None, "Z"), what="the grandchild to be killed")
    processes.reap(one.pid, block=True)
    assert not processes.kill_group(one.pid, signal.SIGKILL) or processes.state_letter(grandchild) == "Z"


@pytest.mark.parametrize("source", [SLEEP, "print('ready', flush=True)\nwhile True: pass"], ids=["asleep", "busy"])
def test_a_stopped_process_stands_still(child, pidfd, source):
    one = child(source)
    assert processes.stop_and_wait(pidfd(one.pid), one.pid, limit_s=5)
    assert processes.state_letter(one.pid) == "T"


def test_stopping_waits_for_every_thread(child, pidfd):
    """Threads that run native code without the GIL, beside a leader that sleeps."""
    one = child("""
import hashlib, threading
for _ in range(3):
    threading.Thread(target=hashlib.pbkdf2_hmac, args=("sha256", b"", b"", 2**31 - 1), daemon=True).start()
print("ready", flush=True)
time.sleep(1000)
""")
    assert processes.stop_and_wait(pidfd(one.pid), one.pid, limit_s=5)
    assert processes._thread_states(one.pid) == {"T"}


def test_stopping_the_dead_is_false(child, pidfd):
    one = child(SLEEP)
    fd = pidfd(one.pid)
    one.kill()
    assert processes.wait_pidfd(fd, None)
    assert processes.state_letter(one.pid) == "Z"
    assert not processes.stop_and_wait(fd, one.pid)
    one.wait()
    assert not processes.stop_and_wait(fd, one.pid)


def test_memory_and_cpu_of_a_running_child_are_seen(child):
    one = child("page = bytearray(b'x') * 30_000_000; print('ready', flush=True)\nwhile True: pass")
    assert processes.memory_rss_bytes(one.pid) > 30_000_000
    eventually(lambda: processes.cpu_s(one.pid) >= 0.02, what="two clock ticks of CPU time")


def test_a_process_names_itself_and_offers_itself_to_the_memory_killer(run_script):
    done = run_script("""
        from shoal._os import processes
        score = lambda: int(open("/proc/self/oom_score_adj").read())
        before = score()
        processes.name_process("shoal worker 3) S (and more")
        processes.raise_oom_score(100)
        print(open("/proc/self/comm").read().strip(), score() - before, processes.state_letter(__import__("os").getpid()))
        processes.raise_oom_score()
        processes.raise_oom_score(5000)
        print(score())
    """)
    name, numbers = done.stdout.splitlines()[0][:15], done.stdout.splitlines()[0][15:].split()
    assert name == "shoal worker 3)"
    assert numbers == ["100", "R"]
    assert done.stdout.splitlines()[1] == "1000"


def test_a_subreaper_inherits_the_orphans_below_it(run_script):
    done = run_script("""
        import os, time
        from shoal._os import processes
        processes.become_subreaper()
        out, tell = os.pipe()
        if os.fork() == 0:
            if os.fork() == 0:
                time.sleep(0)
                os._exit(9)
            os._exit(1)
        print(sorted(processes.ExitStatus(0, os.waitstatus_to_exitcode(os.wait()[1]), None, 0, 0.0).code for _ in "ab"))
    """)
    assert done.stdout.strip() == "[1, 9]", done.stderr


def test_own_group_leads_and_may_be_called_by_a_session_leader(run_script):
    done = run_script("""
        import os
        from shoal._os import processes
        processes.own_group()
        print(os.getpgrp() == os.getpid())
        if os.fork() == 0:
            os.setsid()
            processes.own_group()
            print(os.getpgrp() == os.getpid(), flush=True)
            os._exit(0)
        os.wait()
    """)
    assert done.stdout.split() == ["True", "True"], done.stderr


def test_reset_signals_gives_a_known_state(run_script):
    """A forked child has its parent's handlers, mask and wake-up descriptor; none may act in a worker."""
    done = run_script("""
        import faulthandler, os, signal, tempfile
        from shoal._os import signals
        from shoal._os.signals import INTERRUPT_STACK_SIGNAL
        for one in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGPIPE, signal.SIGCHLD):
            signal.signal(one, lambda *_: os._exit(5))
        reader, writer = os.pipe2(os.O_NONBLOCK)
        signal.set_wakeup_fd(writer)
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        signals.reset_signals()
        os.kill(os.getpid(), INTERRUPT_STACK_SIGNAL)      # harmless until registered
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGPIPE)
        print(signal.set_wakeup_fd(-1), signal.pthread_sigmask(signal.SIG_BLOCK, ()))
        print([signal.getsignal(one).name for one in (signal.SIGTERM, signal.SIGUSR1, signal.SIGCHLD)])
        with tempfile.TemporaryFile("w+") as page:
            faulthandler.register(INTERRUPT_STACK_SIGNAL, file=page)
            os.kill(os.getpid(), INTERRUPT_STACK_SIGNAL)
            page.seek(0)
            print("program.py" in page.read())
    """)
    assert done.stdout.splitlines() == ["-1 set()", "['SIG_DFL', 'SIG_DFL', 'SIG_DFL']", "True"], done.stderr


def test_exactly_the_chosen_descriptors_survive_exec(run_script):
    done = run_script("""
        import os, sys
        from shoal._os import descriptors
        keep, drop = os.pipe()
        os.set_inheritable(drop, True)
        descriptors.set_inheritable_only([keep])
        code = "import os, sys; print([os.path.exists(f'/proc/self/fd/{n}') for n in sys.argv[1:]])"
        os.execv(sys.executable, [sys.executable, "-c", code, str(keep), str(drop)])
    """)
    assert done.stdout.strip() == "[True, False]", done.stderr


def test_a_wait_does_not_end_early(child, pidfd):
    import time

    fd = pidfd(child(SLEEP).pid)
    began = time.monotonic()
    assert not processes.wait_pidfd(fd, QUIET_S / 4)
    assert time.monotonic() - began >= QUIET_S / 4


def test_an_ended_process_is_gone_even_before_it_is_reaped(child, pidfd):
    one = child(SLEEP)
    fd = pidfd(one.pid)
    start = processes.start_time(one.pid)
    assert start > 0
    assert not processes.gone(one.pid, start)
    assert not processes.gone(one.pid, 0)  # its start was not known to whoever noted it

    one.kill()
    processes.wait_pidfd(fd, None)
    assert processes.state_letter(one.pid) == "Z"
    assert processes.start_time(one.pid) is None
    assert processes.gone(one.pid, start)

    one.wait()
    assert processes.start_time(one.pid) is None
    assert processes.gone(one.pid, start)


def test_another_process_with_the_same_number_is_not_taken_for_the_one_that_ended():
    pid, start = processes.identity()
    assert not processes.gone(pid, start)
    assert processes.gone(pid, start + 1)


def test_a_leader_that_left_its_threads_behind_is_not_gone(child):
    """What its other threads hold is still held."""
    one = child(
        "import threading, ctypes\n"
        "def stay(): print('ready', flush=True); time.sleep(1000)\n"
        "exit_thread = 60 if os.uname().machine == 'x86_64' else 93\n"
        "threading.Thread(target=stay).start(); ctypes.CDLL(None).syscall(exit_thread, 0)"
    )
    start = processes.identity()[1]
    eventually(lambda: processes.state_letter(one.pid) == "Z", what="the main thread ended")
    assert processes.start_time(one.pid) >= start
    assert not processes.gone(one.pid, processes.start_time(one.pid))


def test_a_process_counts_as_alive_if_there_is_no_descriptor_to_look_with(child):
    one = child(SLEEP)
    start = processes.start_time(one.pid)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        alive = not processes.gone(one.pid, start)
        one.kill()
        os.waitpid(one.pid, 0)
        ended = processes.gone(one.pid, start)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert alive
    assert ended


def test_a_forked_child_has_an_identity_of_its_own():
    mine = processes.identity()
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(write_end, repr(processes.identity()).encode())
        os._exit(0)
    os.close(write_end)
    with os.fdopen(read_end) as answer:
        said = answer.read()
    os.waitpid(pid, 0)
    assert said.startswith(f"({pid}, ")
    assert processes.identity() == mine == (os.getpid(), processes.start_time(os.getpid()))
