"""The guards themselves: an audit that sees nothing would pass every test."""

from __future__ import annotations

import mmap
import os
import signal
import subprocess
import sys
import threading

import pytest

from tests import support


@pytest.fixture
def before():
    return support.Footprint.take()


def leaks(before):
    return support.Footprint.take().beyond(before)


def test_audit_names_a_thread_that_is_left(before):
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait, name="forgotten")
    thread.start()
    try:
        assert leaks(before) == ["thread: forgotten"]
    finally:
        stop.set()
        thread.join()
    assert support.wait_for_no_leak(before) == []


def test_audit_names_a_descriptor_and_what_it_points_to(before, tmp_path):
    path = tmp_path / "left-open"
    fd = os.open(path, os.O_CREAT | os.O_RDWR)
    try:
        assert leaks(before) == [f"descriptor {fd} -> {path}"]
    finally:
        os.close(fd)


def test_audit_sees_a_descriptor_that_was_replaced_by_another(tmp_path):
    fd = os.open(tmp_path / "one", os.O_CREAT)
    before = support.Footprint.take()
    other = os.open(tmp_path / "two", os.O_CREAT)
    os.dup2(other, fd)
    os.close(other)
    try:
        assert leaks(before) == [f"descriptor {fd} -> {tmp_path / 'two'}"]
    finally:
        os.close(fd)


def test_audit_sees_memory_that_stays_mapped_after_its_descriptor_is_closed(before):
    fd = os.memfd_create("left-mapped")
    os.ftruncate(fd, 4096)
    view = mmap.mmap(fd, 4096)
    os.close(fd)
    try:
        # mmap keeps a descriptor of its own until 3.13 can be told not to; the mapping is named either way.
        assert any("mapping: /memfd:left-mapped" in line for line in leaks(before))
    finally:
        view.close()


def test_audit_sees_a_zombie(before):
    process = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert not support.is_alive(process.pid)
    assert any(f"pid {process.pid}," in line and "state Z" in line for line in leaks(before))
    process.wait()
    assert leaks(before) == []


STARTS_A_CHILD = """
    import subprocess, sys
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    print("child", child.pid, flush=True)
    input()
"""


def test_audit_sees_a_grandchild_whose_parent_was_killed(before, start_script):
    """It is nobody's child by then as far as parentage tells."""
    program = start_script(STARTS_A_CHILD)
    grandchild = int(program.wait_for("child"))
    os.kill(grandchild, signal.SIGSTOP)  # stopped, so that it does not read the end of its input and leave
    program.kill()
    try:
        assert any(f"pid {grandchild}," in line for line in leaks(before) if line.startswith("process"))
    finally:
        os.kill(grandchild, signal.SIGKILL)
    support.eventually(lambda: not support.is_alive(grandchild), what="the grandchild to end")


def test_eventually_fails_with_what_it_waited_for_and_every_stack():
    with pytest.raises(AssertionError) as caught:
        support.eventually(lambda: False, what="the moon", limit_s=0.02)
    assert "waited 0.02 s for the moon" in str(caught.value)
    assert "test_eventually_fails_with_what_it_waited_for_and_every_stack" in str(caught.value)


def test_watchdog_interrupts_a_wait_that_would_not_end(request):
    guard = support.watch(0.05)
    next(guard)
    try:
        with pytest.raises(support.Hung, match="longer than 0.05 s"):
            threading.Event().wait()
    finally:
        guard.close()


def test_program_that_ends_early_says_what_it_printed(start_script):
    program = start_script("import sys; print('hello'); sys.exit('no more')")
    with pytest.raises(AssertionError, match=r"ended before it printed 'ready'(?s:.*)hello(?s:.*)no more"):
        program.wait_for("ready")


def test_script_runs_as_a_program_of_its_own(run_script):
    done = run_script("import sys; print(__name__, sys.argv[1:], sys.stdin.read()); sys.exit(3)", 1, "b", stdin="in")
    assert (done.returncode, done.stdout) == (3, "__main__ ['1', 'b'] in\n")
