"""How a Process is asked to stop, how the end of the program ends it, and what it leaves: nothing."""

from __future__ import annotations

import os
import re
import signal
import threading

import pytest

import shoal
from shoal.errors import ProcessDied
from tests import support
from tests.process import process_tasks as t
from tests.support import HANG_LIMIT_S, eventually, is_alive

#: Started at once; a spawned one takes a hundred milliseconds of processor, hence fewer.
MANY = {"forkserver": 12, "fork": 12, "spawn": 3}

# --- stop and ready -----------------------------------------------------------------------------


def test_stop_sets_stopping_and_run_ends_as_it_likes(start):
    process = start(t.Patient)
    assert process.wait_ready(HANG_LIMIT_S) == process.pid
    assert not process.stopping.is_set()
    assert process.stop() is True
    assert process.stopping.is_set()
    assert (process.result(), process.exitcode, process.obituary) == ("stopped", 0, None)


@pytest.mark.start_methods("forkserver", "fork")
def test_who_does_not_stop_in_time_is_killed_and_where_it_was_is_told(start):
    process = start(t.Stubborn)
    process.wait_ready()
    assert process.stop(grace=0.05) is False
    assert process.exitcode == -signal.SIGKILL
    assert "time.sleep" not in process.obituary.cause
    assert "process_tasks.py" in process.obituary.python_stack


@pytest.mark.start_methods("forkserver")
def test_who_never_looked_at_stopping_is_asked_by_sigterm(start):
    process = start(target=t.wait_ready_forever)
    process.wait_ready()
    assert process.stop() is True
    assert process.exitcode == -signal.SIGTERM


@pytest.mark.start_methods("forkserver", "fork")
def test_a_handler_of_sigterm_may_clean_up(start):
    process = start(t.Tidy)
    process.wait_ready()
    assert process.stop() is True
    assert process.exitcode == 7


@pytest.mark.start_methods("forkserver")
def test_stop_right_after_the_start_ends_it_whatever_stage_it_is_in(start):
    for _ in range(20):
        process = start(t.Patient)
        process.stop()
        assert process.exitcode in (0, -signal.SIGTERM)


@pytest.mark.start_methods("forkserver", "fork")
def test_stopping_an_ended_process_does_nothing(start):
    process = start(target=t.echo)
    process.join()
    assert process.stop() is True
    process.terminate()
    process.kill()
    assert (process.exitcode, process.obituary) == (0, None)


@pytest.mark.start_methods("forkserver")
def test_run_can_be_called_in_the_program_itself():
    """As one does in a test; `stopping` is there and never set."""

    class Here(shoal.Process):
        def run(self):
            return self.stopping.is_set()

    assert Here().run() is False


@pytest.mark.start_methods("forkserver")
def test_waiting_for_readiness_has_a_limit_and_sees_an_end(start, capfd):
    with pytest.raises(TimeoutError, match="late has not said that it is ready within 0.01 s"):
        start(target=t.wait_forever, name="late").wait_ready(0.01)
    with pytest.raises(RuntimeError, match="brief ended without saying that it is ready"):
        start(target=t.echo, name="brief").wait_ready()
    with pytest.raises(ValueError, match="told you"):
        start(target=t.fail, args=(ValueError("told you"),)).wait_ready()
    with pytest.raises(ProcessDied, match="was killed by SIGKILL"):
        start(target=t.die, args=(signal.SIGKILL,)).wait_ready()


@pytest.mark.start_methods("forkserver")
def test_ready_is_for_the_process_itself(start):
    with pytest.raises(AssertionError, match="for the process itself"):
        start(target=t.wait_forever).ready()


# --- what is printed ----------------------------------------------------------------------------


def test_output_goes_where_the_program_writes(start, capfd):
    start(target=t.say, args=("plain",)).join()
    start(target=t.say, args=("wrong", "stderr")).join()
    assert capfd.readouterr() == ("plain\n", "wrong\n")


def test_captured_output_has_the_name_in_front_and_is_there_at_the_end(start, capsys):
    process = start(target=t.say, args=("one\ntwo",), capture=True, name="talker")
    process.join()
    assert capsys.readouterr().out == "[talker] one\n[talker] two\n"


@pytest.mark.start_methods("forkserver", "fork")
def test_the_last_captured_lines_are_in_the_obituary(start, capsys):
    process = start(target=t.say_and_die, args=("last words",), capture=True, name="talker")
    process.join()
    assert process.obituary.output_tail == ("last words",)
    assert "last words" in str(process.obituary)


# --- an obituary --------------------------------------------------------------------------------


def test_an_obituary_names_the_process_and_tells_the_stack(start):
    process = start(target=t.die, args=(signal.SIGSEGV,), name="victim")
    with pytest.raises(ProcessDied, match=r"^process victim \(pid \d+\) was killed by SIGSEGV") as caught:
        process.result()
    obituary = process.obituary
    assert obituary is caught.value.obituary
    assert (obituary.process, obituary.signal, obituary.exit_code) == ("victim", "SIGSEGV", None)
    assert "in die" in obituary.python_stack
    assert obituary.peak_memory_bytes > 1 << 20
    assert str(obituary).startswith(f"process victim (pid {process.pid}) was killed by SIGSEGV\n")


@pytest.mark.start_methods("forkserver")
def test_who_asked_to_be_told_of_the_end_is_told_once_and_then_all_is_known(start):
    told = []
    process = start(target=t.wait_ready_forever)
    process._on_exit(lambda: told.append((process.exitcode, process.obituary.signal, threading.current_thread().name)))
    process.kill()
    eventually(lambda: told, what="the end to be told")
    process._on_exit(lambda: told.append("at once"))
    assert told == [(-9, "SIGKILL", "shoal-hub"), "at once"]


# --- descendants --------------------------------------------------------------------------------


@pytest.mark.start_methods("forkserver", "fork")
def test_what_a_process_started_goes_with_it(start, tmp_path):
    process = start(target=t.start_a_sleeper_and_wait)
    sleeper = process.wait_ready()
    process.kill()
    process.join()
    eventually(lambda: not is_alive(sleeper), what="the grandchild to be gone")


def test_a_process_in_a_process_dies_with_the_outer_one(start):
    process = start(target=t.start_a_process_and_wait)
    inner = process.wait_ready()
    assert is_alive(inner)
    process.kill()
    eventually(lambda: not is_alive(inner), what="the inner process to be gone")


@pytest.mark.start_methods("forkserver")
def test_a_process_may_have_a_pool(start):
    assert start(target=t.map_in_a_pool, args=([1, 2, 3],)).result() == [1, 4, 9]


@pytest.mark.start_methods("forkserver")
def test_a_task_of_a_pool_may_start_a_process(start_method):
    with shoal.Pool(1, start_method=start_method) as pool:
        assert pool.submit(t.result_of_a_process, 5).result() == 5


# --- the end of the program ---------------------------------------------------------------------

ENDING = """
    import os, sys, time
    import shoal

    def work(path):
        time.sleep(0.2)
        with open(path, "w") as file:
            file.write("done")

    def serve():
        print("served by", os.getpid(), flush=True)
        time.sleep(1000)

    if __name__ == "__main__":
        method, path = sys.argv[1:]
        shoal.Process(target=serve, daemon=True, start_method=method).start()
        shoal.Process(target=work, args=(path,), start_method=method).start()
        print("the main module ends", flush=True)
"""


def test_the_program_waits_for_its_processes_and_ends_its_daemons(run_script, start_method, tmp_path):
    done = run_script(ENDING, start_method, tmp_path / "file")
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "file").read_text() == "done"
    served = re.search(r"served by (\d+)", done.stdout)
    assert served is None or not is_alive(int(served[1]))


WAITING = """
    import sys, threading, time, traceback
    import shoal
    from tests.process.process_tasks import wait_ready_forever

    def tell_when_the_end_waits():
        main = threading.main_thread().ident  # before that Python itself may swallow a Ctrl-C
        while "in _end_all" not in "".join(traceback.format_stack(sys._current_frames()[main])):
            time.sleep(0.005)
        time.sleep(0.05)  # to come from its first line to the wait
        print("waiting", process.pid, flush=True)

    if __name__ == "__main__":
        process = shoal.Process(target=wait_ready_forever, start_method=sys.argv[1])
        process.start()
        process.wait_ready()
        if sys.argv[2] == "end":
            threading.Thread(target=tell_when_the_end_waits, daemon=True).start()
        else:
            print("waiting", process.pid, flush=True)
            getattr(process, sys.argv[2])()
"""


@pytest.mark.start_methods("forkserver", "fork")
@pytest.mark.parametrize("call", ["join", "result", "end"])
def test_ctrl_c_ends_the_program_and_its_processes_quietly(start_script, start_method, call):
    """While it waits for one by a call, or for all of them at its end."""
    program = start_script(WAITING, start_method, call, new_session=True)
    pid = int(program.wait_for("waiting"))
    os.killpg(program.pid, signal.SIGINT)
    assert program.finish() == -signal.SIGINT
    eventually(lambda: not is_alive(pid), what="the process to be gone")
    errors = program.errors()
    assert errors.count("Traceback") <= 1
    assert "Process " not in errors


def test_what_a_process_registers_for_its_end_runs_and_what_it_inherited_does_not(run_script, start_method, tmp_path):
    """Else the first process to end would put away what the program still uses."""
    done = run_script(
        """
        import atexit, os, sys
        import shoal

        def work():
            atexit.register(print, "the process ends", flush=True)

        atexit.register(lambda pid=os.getpid(): print("the module's handler", os.getpid() == pid, flush=True))
        if __name__ == "__main__":
            process = shoal.Process(target=work, start_method=sys.argv[1])
            process.start()
            process.join()
            print("joined", flush=True)
        """,
        start_method,
    )
    lines = done.stdout.splitlines()
    assert lines[0] == "the process ends"
    if start_method != "spawn":  # a spawned one imports the main module itself, so the handler is its own, too
        assert lines[1:] == ["joined", "the module's handler True"]


@pytest.mark.start_methods("forkserver", "fork")
def test_many_processes_at_once(make, start_method):
    processes = [make(target=t.echo, args=(number,)) for number in range(MANY[start_method])]
    for process in processes:
        process.start()
    assert [process.result() for process in processes] == list(range(len(processes)))


@pytest.mark.start_methods("forkserver", "fork")
def test_threads_start_and_join_side_by_side(make):
    failures = []

    def work(number):
        for round_ in range(5):
            process = make(target=t.echo, args=((number, round_),))
            process.start()
            if process.result() != (number, round_):
                failures.append((number, round_))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


@pytest.mark.start_methods("forkserver", "fork")
def test_many_processes_one_after_the_other_leave_nothing(start):
    start(target=t.echo).join()
    eventually(lambda: "shoal-hub" not in {one.name for one in threading.enumerate()}, what="the hub to end")
    before = support.Footprint.take()
    for number in range(40):
        assert start(target=t.echo, args=(number,)).result() == number
    shoal.active_children()
    # But for the sentinels: their owners are kept by this test.
    eventually(
        lambda: all("[pidfd]" in line for line in support.Footprint.take().beyond(before)), what="nothing to be left"
    )


# --- signals, refusals, words -------------------------------------------------------------------


@pytest.mark.start_methods("forkserver")
def test_setting_stopping_from_outside_asks_the_process_to_stop(start):
    process = start(t.Patient)
    process.wait_ready(HANG_LIMIT_S)
    process.stopping.set()
    assert process.result(HANG_LIMIT_S) == "stopped"
    process.stopping.set()
    assert process.stopping.is_set()


def test_stopping_of_what_was_not_started_cannot_be_set():
    with pytest.raises(RuntimeError, match="was not started by this process"):
        shoal.Process(target=print).stopping.set()


def test_an_interrupted_look_at_stopping_does_not_keep_the_process_from_being_stopped(start):
    process = start(t.LooksAndIsStruck)
    assert process.wait_ready(HANG_LIMIT_S) > 0
    assert process.stop(grace=HANG_LIMIT_S)
    assert process.result() == "stopped"


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"capture": "banana"}, ValueError, "capture must be"),
        ({"daemon": "yes"}, TypeError, "daemon must be True or False, not 'yes'"),
        ({"name": 3}, TypeError, "name must be text, not 3"),
        ({"group": print}, AssertionError, "give a function as target="),
    ],
)
def test_a_bad_value_is_refused_where_it_is_given(options, error, words):
    with pytest.raises(error, match=words):
        shoal.Process(**options)


def test_arguments_that_a_subclass_does_not_take_are_said_to_be_that():
    with pytest.raises(AssertionError, match="a Patient has no __init__ of its own"):
        t.Patient(1)


@pytest.mark.parametrize(("capture", "captured"), [("prefix", True), ("inherit", False), (True, True), (False, False)])
def test_capture_means_what_it_means_for_pools(capture, captured):
    assert shoal.Process(capture=capture)._shoal_capture is captured


def test_an_end_without_a_result_is_not_taken_for_a_crash(start):
    process = start(target=os._exit, args=(0,))
    with pytest.raises(ProcessDied, match="likely: it called os._exit.., closed its descriptors, or became another"):
        process.result()


@pytest.mark.start_methods("forkserver")
def test_errors_that_cannot_travel_speak_of_run_and_not_of_a_task(start):
    with pytest.raises(shoal.RemoteError, match=r"^run\(\) raised an exception that cannot be"):
        start(target=t.raise_what_cannot_travel).result()


def test_the_end_of_the_program_says_once_for_whom_it_waits(run_script):
    done = run_script("""
        import shoal, time
        from shoal._process import starting
        def work(seconds):
            time.sleep(seconds)
        if __name__ == "__main__":
            starting.QUIET_S = 0.05
            for seconds in (0, 1):
                shoal.Process(target=work, args=(seconds,), name=f"for {seconds}").start()
            shoal.Process(target=work, args=(9,), daemon=True).start()
            shoal.active_children()[0].join()
    """)
    assert done.returncode == 0
    assert re.fullmatch(
        r"waiting for for 1 \(pid \d+\) to end; daemon=True would end it with the program\n", done.stderr
    )
