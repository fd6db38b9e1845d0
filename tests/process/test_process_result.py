"""What a Process gives back: its value, its exception, or why there is neither; and what it is given."""

from __future__ import annotations

import threading

import numpy as np
import pytest

import shoal
from shoal.errors import NotPicklable, ProcessDied, RemoteError, RemoteTraceback, StartFailed
from tests.process import process_tasks as t
from tests.support import eventually

MIB = 1 << 20


def test_an_exception_comes_back_as_itself_with_the_remote_traceback(start, capfd):
    process = start(target=t.fail, args=(KeyError("lost"),))
    with pytest.raises(KeyError, match="lost") as caught:
        process.result()
    assert isinstance(caught.value.__cause__, RemoteTraceback)
    assert "process_tasks.py" in str(caught.value.__cause__)
    assert process.obituary.exit_code == 1


@pytest.mark.start_methods("forkserver", "fork")
def test_asking_to_exit_is_a_remote_error(start):
    process = start(target=t.leave, args=(0,))
    with pytest.raises(RemoteError, match=r"run\(\) tried to end its process: SystemExit: 0"):
        process.result()
    assert (process.exitcode, process.obituary) == (0, None)


@pytest.mark.start_methods("forkserver", "fork")
@pytest.mark.parametrize("code", [0, 3])
def test_a_process_that_vanishes_died(start, code):
    process = start(target=t.vanish, args=(code,), name="ghost")
    with pytest.raises(ProcessDied, match=rf"process ghost \(pid \d+\) exited with code {code}") as caught:
        process.result()
    assert process.exitcode == code
    assert process.obituary is caught.value.obituary
    assert process.obituary.process == "ghost"


@pytest.mark.start_methods("forkserver", "fork")
def test_the_result_is_one_object_however_often_it_is_asked_for(start):
    process = start(target=t.echo, args=([1, 2],))
    assert process.result() is process.result() == [1, 2]


@pytest.mark.start_methods("forkserver")
def test_waiting_for_a_result_has_a_limit(start):
    process = start(target=t.wait_forever, name="slow")
    with pytest.raises(TimeoutError, match="slow has not ended within 0.01 s"):
        process.result(timeout=0.01)
    with pytest.raises(TimeoutError):
        process.result(timeout=0)
    assert process.is_alive()


@pytest.mark.start_methods("forkserver", "fork")
def test_a_value_that_cannot_be_sent_harms_nobody_but_who_asks_for_it(start, capfd):
    """`multiprocessing` throws away what `run` returns, so returning anything is no failure."""
    process = start(target=t.unpicklable)
    process.join()
    assert (process.exitcode, process.obituary) == (0, None)
    with pytest.raises(NotPicklable, match="the result of"):
        process.result()
    assert capfd.readouterr().err == ""


@pytest.mark.start_methods("forkserver", "fork")
def test_a_value_that_explodes_here_is_a_remote_error(start):
    process = start(target=t.bring_explosive)
    with pytest.raises(RemoteError, match="cannot be rebuilt in this process: LookupError: boom"):
        process.result()


@pytest.mark.start_methods("forkserver", "spawn")
def test_an_argument_that_explodes_there_is_its_error(start, capfd):
    process = start(target=t.echo, args=(t.Explosive(LookupError("boom")),))
    with pytest.raises(LookupError, match="boom"):
        process.result()
    assert process.exitcode == 1
    assert "LookupError: boom" in capfd.readouterr().err


@pytest.mark.start_methods("forkserver", "spawn")
def test_what_cannot_be_sent_is_named_and_nothing_is_started(make):
    process = make(target=t.both, args=(1, {"deep": [threading.Lock()]}))
    with pytest.raises(NotPicklable, match=r"argument 1 of both .* at \['deep'\]\[0\]"):
        process.start()
    assert shoal.active_children() == []
    assert process.pid is None
    process._args = (1, 2)
    process.start()  # nothing has happened to it
    assert process.result() == ((1, 2), {})


@pytest.mark.start_methods("forkserver", "spawn")
def test_an_attribute_that_cannot_be_sent_is_named(make):
    process = make(t.Adder, 1, 2)
    process.handle = threading.Lock()
    with pytest.raises(NotPicklable, match=r"the process Adder cannot be sent .* at \.handle"):
        process.start()


def test_lambdas_and_closures_are_targets(start):
    captured = 40
    assert start(target=lambda more: captured + more, args=(2,)).result() == 42


@pytest.mark.start_methods("forkserver", "fork")
def test_a_bound_method_takes_its_object_along(start):
    class Local:
        def __init__(self):
            self.processes = []
            self.value = 5

        def work(self):
            return self.value, [repr(process).split()[-1] for process in self.processes]

    local = Local()
    for _ in range(2):  # the second carries the first one, which runs or ran
        process = start(target=local.work)
        value, known = process.result()
        assert value == 5
        assert known == ["unknown>"] * len(local.processes)
        local.processes.append(process)


def test_large_arrays_go_in_and_out(start):
    array = np.arange(MIB, dtype="float64")
    process = start(target=t.total, args=(array,))
    total, returned = process.result()
    assert total == returned.sum() == array.sum() + 99
    assert (array[0], returned[0]) == (0, 99)
    returned[1] = 5  # it is the caller's now


def test_shared_memory_is_written_in_place(start):
    shared = shoal.zeros(1000)
    start(target=t.fill, args=(shared,)).join()
    assert shared.sum() == 7000


def test_a_shared_object_arrives_as_itself(start):
    table = {"rows": np.arange(100)}
    value = start(target=t.echo, args=(shoal.share(table),)).result()
    assert (value["rows"] == table["rows"]).all()


@pytest.mark.start_methods("forkserver")
def test_memory_under_way_comes_back_when_the_process_lets_go_of_it(start):
    """A process that runs for ever does not keep what it was given for ever."""
    process = start(target=t.drop_then_wait, args=([np.ones(MIB)],))
    process.wait_ready()
    hub = process._shoal_run.hub
    eventually(lambda: hub.arena().used_bytes == 0, what="the array's memory to be given back")
    process.kill()


@pytest.mark.start_methods("forkserver")
def test_a_process_that_closes_its_descriptors_runs_on_but_cannot_tell_its_result(start):
    process = start(target=t.close_everything)
    with pytest.raises(ProcessDied, match="exited with code 0"):
        process.result()
    assert process.exitcode == 0


@pytest.mark.start_methods("forkserver")
def test_a_fork_within_run_says_nothing_in_its_name(start):
    assert start(target=t.fork_and_let_both_return).result() == "parent"


@pytest.mark.start_methods("forkserver", "fork")
def test_arguments_are_those_of_the_start(make):
    """What is changed after `start` does not reach the process."""
    given = [1]
    process = make(target=t.echo, args=(given,))
    process.start()
    given.append(2)
    assert process.result() == [1]


@pytest.mark.start_methods("forkserver", "fork")
def test_the_object_lets_go_of_its_arguments(make):
    process = make(target=t.echo, args=(1,))
    process.start()
    assert not hasattr(process, "_args")


@pytest.mark.no_leak_audit
def test_too_few_descriptors_are_a_clear_error_and_leave_nothing(make, start_method, starved):
    """At whatever step they run out."""
    first = make(target=t.echo)
    first.start()  # what is made once is there
    first.join()
    refusals = 0
    for room in range(24):
        process = make(target=t.echo, args=(room,))
        with starved(room) as held:
            try:
                process.start()
            except StartFailed as error:
                refusals += 1
                said = str(error)
            if process.pid is None:
                assert said.startswith("no process could be started: too many open files")
                eventually(lambda held=held: held() <= 0, what=f"nothing to be open after a start with room for {room}")
                continue
        assert process.result() == room
    assert refusals >= 5
