"""`shoal.Process` does what the documentation of `multiprocessing.Process` says, over every start method."""

from __future__ import annotations

import inspect
import multiprocessing
import multiprocessing.connection
import os
import select
import signal

import pytest

import shoal
from tests.process import process_tasks as t
from tests.support import HANG_LIMIT_S, eventually


def test_a_target_gets_its_arguments(make):
    process = make(target=t.both, args=(1, "two"), kwargs={"three": 3})
    process.start()
    assert process.result() == ((1, "two"), {"three": 3})


@pytest.mark.start_methods("forkserver", "fork")
def test_a_list_of_arguments_will_do(make):
    process = make(target=t.both, args=[1, 2])
    process.start()
    assert process.result() == ((1, 2), {})


def test_a_subclass_runs_run_with_what_its_init_was_given(start):
    assert start(t.Adder, 2, 3).result() == 5


def test_every_documented_parameter_is_there_in_its_place():
    mine = list(inspect.signature(shoal.Process.__init__).parameters.values())
    standard = list(inspect.signature(multiprocessing.Process.__init__).parameters.values())
    assert [(one.name, one.default) for one in mine[: len(standard)]] == [(one.name, one.default) for one in standard]


def test_group_is_for_threads_only():
    with pytest.raises(AssertionError, match="group"):
        shoal.Process(group=1)


def test_life_in_the_eyes_of_its_maker(make):
    process = make(target=t.wait_ready_forever)
    assert (process.pid, process.ident, process.exitcode, process.is_alive()) == (None, None, None, False)
    assert repr(process) == f"<Process name='{process.name}' parent={os.getpid()} initial>"
    process.start()
    assert process.pid == process.ident
    assert process.is_alive()
    assert process.exitcode is None
    assert repr(process) == f"<Process name='{process.name}' pid={process.pid} parent={os.getpid()} started>"
    process.terminate()
    process.join()
    assert (process.is_alive(), process.exitcode) == (False, -signal.SIGTERM)
    assert repr(process) == (
        f"<Process name='{process.name}' pid={process.pid} parent={os.getpid()} stopped exitcode=-SIGTERM>"
    )


def test_a_process_of_its_own(start):
    name, pid, daemon, really, _, group, alive, words = start(target=t.identify, name="me").result()
    assert (name, daemon, alive) == ("me", False, True)
    assert pid == really == group != os.getpid()
    assert words == f"<Process name='me' parent={os.getpid()} started>"


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda process: process.join(), "can only join a started process"),
        (lambda process: process.result(), "can only have the result of a started process"),
        (lambda process: process.wait_ready(), "can only wait for a started process"),
        (lambda process: process.stop(), "can only stop a started process"),
        (lambda process: process.terminate(), "can only signal a started process"),
        (lambda process: process.kill(), "can only kill a started process"),
    ],
)
def test_what_needs_a_started_process_says_so(call, said):
    with pytest.raises(AssertionError, match=said):
        call(shoal.Process())


def test_the_sentinel_of_a_process_that_was_not_started_is_a_value_error():
    with pytest.raises(ValueError, match="process not started"):
        _ = shoal.Process().sentinel


@pytest.mark.start_methods("forkserver", "fork")
def test_nobody_starts_twice(start):
    process = start(target=t.echo)
    with pytest.raises(AssertionError, match="cannot start a process twice"):
        process.start()
    process.join()
    with pytest.raises(AssertionError, match="cannot start a process twice"):
        process.start()


@pytest.mark.start_methods("forkserver", "fork")
def test_a_fork_may_neither_start_nor_join_nor_test_what_is_its_parents(start, make):
    """Whoever inherits a Process object has no part in its process."""
    process, unstarted = start(target=t.wait_ready_forever), make(target=t.echo)

    def misuse():
        said = []
        for call in (process.join, process.is_alive, process.kill, unstarted.start):
            try:
                call()
            except AssertionError as error:
                said.append(str(error))
        return [*said, repr(process).split()[-1].rstrip(">"), shoal.active_children()]

    child = shoal.Process(target=misuse, start_method="fork")
    child.start()
    assert child.result() == [
        "can only join a child process",
        "can only test a child process",
        "can only kill a child process",
        "can only start a process object created by current process",
        "unknown",
        [],
    ]


@pytest.mark.start_methods("forkserver", "fork")
def test_join_with_a_timeout_returns_none_either_way(start):
    process = start(target=t.wait_forever)
    assert process.join(0.01) is None
    assert process.join(0) is None
    assert process.join(-1) is None
    assert process.exitcode is None
    process.kill()
    assert process.join(HANG_LIMIT_S) is None
    assert process.join() is process.join(float("inf")) is None  # as often as one likes
    assert process.exitcode == -signal.SIGKILL


@pytest.mark.start_methods("forkserver", "fork")
@pytest.mark.start_methods("forkserver")
@pytest.mark.parametrize(
    ("code", "exitcode", "printed"),
    [(None, 0, ""), (0, 0, ""), (7, 7, ""), (True, 1, ""), (-1, 255, ""), ("a word", 1, "a word\n"), ([1], 1, "[1]\n")],
)
def test_exit_codes_are_mapped_as_multiprocessing_does(make, capfd, code, exitcode, printed):
    process = make(target=t.leave, args=(code,))
    process.start()
    process.join()
    assert process.exitcode == exitcode
    assert capfd.readouterr() == ("", printed)


def test_an_exception_is_printed_and_exits_with_one(start, capfd):
    process = start(target=t.fail, args=(ValueError("told you"),), name="unlucky")
    process.join()
    assert process.exitcode == 1
    printed = capfd.readouterr().err
    assert printed.startswith("Process unlucky:\nTraceback (most recent call last):\n")
    assert printed.endswith("ValueError: told you\n")
    assert "shoal/_" not in printed  # its own frames tell the user nothing


@pytest.mark.start_methods("forkserver", "fork")
def test_close_lets_go_and_refuses_everything_after(start):
    process = start(target=t.echo)
    process.join()
    sentinel = process.sentinel
    process.close()
    process.close()  # as often as one likes
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(sentinel)
    for call in (process.join, process.start, process.is_alive, process.kill, process.terminate, process.result):
        with pytest.raises(ValueError, match="process object is closed"):
            call()
    for name in ("exitcode", "pid", "sentinel", "obituary"):
        with pytest.raises(ValueError, match="process object is closed"):
            getattr(process, name)
    assert repr(process) == f"<Process name='{process.name}' parent={os.getpid()} closed>"


@pytest.mark.start_methods("forkserver", "fork")
def test_closing_a_running_process_is_refused(start):
    process = start(target=t.wait_forever)
    with pytest.raises(ValueError, match="Cannot close a process while it is still running"):
        process.close()
    assert process.is_alive()


def test_the_sentinel_tells_the_end(start):
    process = start(target=t.wait_ready_forever)
    assert multiprocessing.connection.wait([process.sentinel], timeout=0) == []
    process.kill()
    assert multiprocessing.connection.wait([process.sentinel], timeout=HANG_LIMIT_S) == [process.sentinel]
    # Whoever was told so finds everything known.
    assert process.exitcode == -signal.SIGKILL
    assert select.select([process.sentinel], [], [], 0)[0] == [process.sentinel]


@pytest.mark.start_methods("forkserver", "fork")
def test_a_name_is_class_and_number_and_can_be_changed(make):
    first, second = t.Adder(1, 2), t.Adder(1, 2)
    kind, _, number = first.name.partition("-")
    assert kind == "Adder"
    assert second.name == f"Adder-{int(number) + 1}"
    first.name = "other"
    assert first.name == "other"
    with pytest.raises(AssertionError, match="name must be a string"):
        first.name = 1
    process = make(target=t.identify)
    process.name = "renamed"
    process.start()
    assert process.result()[0] == "renamed"


def test_a_child_counts_its_own_and_names_them_after_itself(start):
    process = start(t.Parent, t.identify)
    name, seen, pid = process.result()
    number = process.name.partition("-")[2]
    assert name == seen[0] == f"Process-{number}:1"
    assert seen[1] == pid


@pytest.mark.start_methods("forkserver", "fork")
def test_daemon_is_set_before_the_start_and_inherited(make):
    process = make(target=t.identify)
    assert process.daemon is False
    process.daemon = True
    process.start()
    assert process.daemon is True
    assert "daemon" in repr(process)
    assert process.result()[2] is True
    with pytest.raises(AssertionError, match="process has already started"):
        process.daemon = False
    assert shoal.Process(daemon=True).daemon is True


@pytest.mark.start_methods("forkserver", "fork")
def test_active_children_are_those_that_run(start):
    assert shoal.active_children() == []
    process, other = start(target=t.wait_forever), start(target=t.echo)
    other.join()
    assert shoal.active_children() == [process]
    process.kill()
    eventually(lambda: shoal.active_children() == [], what="the killed one to be missed")
    assert process.exitcode == -signal.SIGKILL


def test_processes_are_equal_by_identity():
    one, other = shoal.Process(name="same"), shoal.Process(name="same")
    assert one != other
    assert len({one, other, one}) == 2


def test_the_main_process_stands_for_the_program():
    me = shoal.current_process()
    assert (me.name, me.pid, me.daemon, me.is_alive()) == ("MainProcess", os.getpid(), False, True)
    assert repr(me) == "<_Main name='MainProcess' parent=None started>"


def test_a_subclass_that_forgot_its_base_class_is_told_so():
    class Forgetful(shoal.Process):
        def __init__(self):
            pass

    with pytest.raises(RuntimeError, match=r"call super\(\).__init__\(\) first"):
        Forgetful().start()


@pytest.mark.start_methods("forkserver", "fork")
def test_threads_that_are_no_daemons_are_waited_for(start, tmp_path):
    start(target=t.leave_a_thread, args=(str(tmp_path / "file"),)).join()
    assert (tmp_path / "file").read_text() == "done"


@pytest.mark.start_methods("forkserver", "fork")
def test_sigint_is_a_keyboard_interrupt(start):
    process = start(target=t.catch_ctrl_c)
    process.wait_ready()
    process.interrupt()
    assert process.result() == "interrupted"


def test_multiprocessings_queues_and_pipes_can_be_handed_over(start, start_method):
    queue = multiprocessing.get_context(start_method).Queue()
    here, there = multiprocessing.Pipe()
    try:
        process = start(target=t.put_and_send, args=(queue, there))
        assert queue.get(timeout=HANG_LIMIT_S) == "from the queue"
        assert here.recv() == "from the pipe"
        process.join()
        assert process.exitcode == 0
    finally:
        queue.close()
        queue.join_thread()
        here.close()
        there.close()
        if start_method != "fork":
            from multiprocessing import resource_sharer

            resource_sharer.stop()


@pytest.mark.start_methods("forkserver", "fork")
def test_what_is_ours_beyond_that_may_be_hidden_by_a_subclass(start):
    """Code written for multiprocessing may call its attributes `result`, `stop`, `ready` or anything."""
    process = start(t.Hider)
    process.join()
    assert shoal.Process.result(process) == ["mine"] * 5


@pytest.mark.start_methods("forkserver", "fork")
def test_the_key_of_multiprocessing_is_handed_on(make):
    process = make(target=t.key_of_multiprocessing)
    assert process.authkey == multiprocessing.current_process().authkey
    process.authkey = b"another"
    process.start()
    assert process.result() == b"another"
