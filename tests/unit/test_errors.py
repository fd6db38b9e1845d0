"""What a user reads when something failed: fact, then a guess marked as one, then a hint (errors E2)."""

from __future__ import annotations

import re
import textwrap
from concurrent.futures.process import BrokenProcessPool

import pytest

from shoal import errors
from shoal.errors import Obituary, PoisonTask, TaskTimeout, WorkerDied

GIB = 1 << 30
STACK = (
    'Current thread 0x00007f (most recent call first):\n  File "a.py", line 3 in f\n  File "a.py", line 9 in <module>\n'
)


def obituary(**known):
    return Obituary(**{"worker": 3, "pid": 41872, "task": "resize(path='a.png')", "attempt": 1, "attempts": 1} | known)


def text(string):
    # A line continued by a backslash brings its indentation along.
    return re.sub(r"(?<=\S) {8,}", " ", textwrap.dedent(string).strip("\n"))


@pytest.mark.parametrize(
    ("known", "message"),
    [
        (
            {
                "signal": "SIGKILL",
                "out_of_memory": "likely",
                "peak_memory_bytes": 79 * GIB // 10,
                "memory_limit_bytes": 8 * GIB,
            },
            """
            worker 3 (pid 41872) was killed by SIGKILL while running resize(path='a.png'), attempt 1 of 1
              likely: out of memory (peak 7.9 GiB of 8.0 GiB)
              hint: use fewer workers, or smaller tasks
            """,
        ),
        (
            {
                "signal": "SIGKILL",
                "out_of_memory": "proven",
                "peak_memory_bytes": 8 * GIB,
                "memory_limit_bytes": 8 * GIB,
            },
            """
            worker 3 (pid 41872) was killed by SIGKILL while running resize(path='a.png'), attempt 1 of 1: \
            out of memory (peak 8.0 GiB of 8.0 GiB)
              hint: use fewer workers, or smaller tasks
            """,
        ),
        (
            {"signal": "SIGKILL", "out_of_memory": "likely"},
            """
            worker 3 (pid 41872) was killed by SIGKILL while running resize(path='a.png'), attempt 1 of 1
              likely: out of memory
              hint: use fewer workers, or smaller tasks
            """,
        ),
        (
            {"signal": "SIGKILL", "peak_memory_bytes": 3 << 20},
            """
            worker 3 (pid 41872) was killed by SIGKILL while running resize(path='a.png'), attempt 1 of 1
              likely: somebody, or the system, killed it
              hint: its memory peaked at 3.0 MiB
            """,
        ),
        (
            {"signal": "SIGSEGV", "python_stack": STACK, "attempt": 2, "attempts": 3},
            """
            worker 3 (pid 41872) was killed by SIGSEGV while running resize(path='a.png'), attempt 2 of 3
              likely: a fault in native code, or recursion deeper than the C stack
              hint: see error.obituary.python_stack for the line that was running
            """,
        ),
        (
            {"exit_code": 3},
            """
            worker 3 (pid 41872) exited with code 3 while running resize(path='a.png'), attempt 1 of 1
              likely: the task, or a library it uses, called os._exit()
            """,
        ),
        (
            {"signal": "SIGTERM"},
            "worker 3 (pid 41872) was killed by SIGTERM while running resize(path='a.png'), attempt 1 of 1",
        ),
        (
            {"task": None, "attempt": None, "attempts": None},
            "worker 3 (pid 41872) ended in a way that could not be learned while it had no task",
        ),
    ],
    ids=["oom-likely", "oom-proven", "oom-unmeasured", "killed", "segfault", "exit", "terminated", "unknown"],
)
def test_death_message_gives_the_fact_then_the_guess_then_the_hint(known, message):
    assert str(WorkerDied(obituary=obituary(**known))) == text(message)


def test_nothing_proven_is_called_likely():
    for signal in ("SIGKILL", None):
        message = str(WorkerDied(obituary=obituary(signal=signal, exit_code=1, out_of_memory="proven")))
        assert "likely" not in message


@pytest.mark.parametrize("signal", ["SIGSEGV", "SIGBUS", "SIGILL", "SIGFPE", "SIGABRT"])
def test_hint_never_points_to_a_stack_that_is_not_there(signal):
    assert "python_stack" not in str(WorkerDied(obituary=obituary(signal=signal)))
    assert "python_stack" in str(WorkerDied(obituary=obituary(signal=signal, python_stack=STACK)))
    timeout = {"task": "f()", "timeout": 1.0, "attempt": 1, "attempts": 1}
    assert "python_stack" not in str(TaskTimeout(**timeout, obituary=None))
    assert "python_stack" not in str(TaskTimeout(**timeout, obituary=obituary()))


@pytest.mark.parametrize(("kills", "words"), [(1, "a worker"), (3, "3 workers")])
def test_poison_says_so_in_the_fact_and_keeps_guess_and_hint_last(kills, words):
    error = PoisonTask(obituary=obituary(signal="SIGSEGV", python_stack=STACK), kills=kills)
    fact, likely, hint = str(error).splitlines()
    assert fact.endswith(f", attempt 1 of 1; it has killed {words} and is not tried again")
    assert likely.startswith("  likely: ")
    assert hint.startswith("  hint: ")


def test_existing_except_clauses_catch_a_death_and_the_pool_goes_on():
    with pytest.raises(BrokenProcessPool) as caught:
        raise WorkerDied(obituary=obituary(signal="SIGKILL"))
    assert caught.value.obituary.pid == 41872


def test_obituary_prints_everything_it_knows():
    full = obituary(
        signal="SIGSEGV", python_stack=STACK, native_stack="#0 in strlen\n", output_tail=("opening a.png", "resizing")
    )
    assert str(full) == text("""
        worker 3 (pid 41872) was killed by SIGSEGV while running resize(path='a.png'), attempt 1 of 1
          last Python stack:
            Current thread 0x00007f (most recent call first):
              File "a.py", line 3 in f
              File "a.py", line 9 in <module>
          last native stack:
            #0 in strlen
          last output:
            opening a.png
            resizing
        """)


def test_obituary_of_which_nothing_is_known_still_prints():
    assert str(Obituary(worker=0, pid=7)) == (
        "worker 0 (pid 7) ended in a way that could not be learned while it had no task"
    )


# --- limits -------------------------------------------------------------------------------------


def test_timeout_says_where_the_task_was():
    error = TaskTimeout(
        task="f('a.py')", timeout=1.5, attempt=1, attempts=2, obituary=obituary(python_stack=STACK, signal="SIGKILL")
    )
    assert str(error) == text("""
        f('a.py') ran longer than its timeout of 1.5 s and was stopped, attempt 1 of 2
          likely: it was at line 3 of a.py, in f
          hint: raise timeout=, or see error.obituary.python_stack for how it got there
        """)


@pytest.mark.parametrize(
    ("stack", "where"),
    [
        (STACK, "line 3 of a.py, in f"),
        ('Thread 0x2 (most recent call first):\n  File "pump.py", line 1 in run\n\n' + STACK, "line 3 of a.py, in f"),
        (STACK + '\nThread 0x2 (most recent call first):\n  File "pump.py", line 1 in run\n', "line 3 of a.py, in f"),
        (
            'Thread 0x2 (most recent call first):\n  File "pump.py", line 1 in run\n\n'
            + STACK.replace("Current t", "T"),
            "line 3 of a.py, in f",
        ),
        ('  File "odd "name".py", line 12 in <lambda>\n', 'line 12 of odd "name".py, in <lambda>'),
    ],
    ids=["one-thread", "current-last", "current-first", "none-current", "bare"],
)
def test_timeout_names_the_frame_of_the_thread_that_ran_the_task(stack, where):
    error = TaskTimeout(task="f()", timeout=1, attempt=1, attempts=1, obituary=obituary(python_stack=stack))
    assert f"likely: it was at {where}\n" in str(error)


@pytest.mark.parametrize("stack", ["", "Fatal Python error: Segmentation fault", "<no Python frame>"])
def test_timeout_without_a_readable_stack_does_not_guess(stack):
    error = TaskTimeout(task="f()", timeout=1, attempt=1, attempts=1, obituary=obituary(python_stack=stack))
    assert (
        str(error) == "f() ran longer than its timeout of 1 s and was stopped, attempt 1 of 1\n  hint: raise timeout="
    )


@pytest.mark.parametrize(("timeout", "shown"), [(30.0, "30 s"), (0.05, "0.05 s"), (2_592_000.0, "2592000 s")])
def test_timeout_shows_its_seconds_as_they_were_given(timeout, shown):
    error = TaskTimeout(task="f()", timeout=timeout, attempt=1, attempts=1, obituary=None)
    assert f"timeout of {shown} and" in str(error)


def test_timeout_is_a_timeout_error():
    with pytest.raises(TimeoutError):
        raise TaskTimeout(task="f()", timeout=1, attempt=1, attempts=1, obituary=None)


@pytest.mark.parametrize(
    ("size", "shown"),
    [(0, "0 bytes"), (1023, "1023 bytes"), (4096, "4.0 KiB"), (300 << 20, "300.0 MiB"), (3 * GIB // 2, "1.5 GiB")],
)
def test_sizes_are_shown_in_a_unit_that_fits(size, shown):
    assert f"used {shown} of the 1.0 GiB it may use" in str(
        errors.MemoryLimitExceeded(task="f()", limit_bytes=GIB, peak_bytes=size, obituary=None)
    )


# --- everything else ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            errors.RemoteError(
                type_name="SystemExit",
                message="2",
                traceback_text="",
                why="the task asked its process to exit",
                hint="return a value, or raise an ordinary exception",
            ),
            """
            the task asked its process to exit: SystemExit: 2
              hint: return a value, or raise an ordinary exception
            """,
        ),
        (
            errors.RemoteError(type_name="SystemExit", message="", traceback_text="", why="it left"),
            "it left: SystemExit",
        ),
        (
            errors.InitializerFailed(reason="ConnectionError: refused"),
            """
            the pool's initializer failed: ConnectionError: refused
              hint: call the initializer in this process to see it fail; the next task tries again
            """,
        ),
        (
            errors.StartFailed(reason="too many processes", hint="raise the limit with ulimit -u"),
            """
            no worker could be started: too many processes
              hint: raise the limit with ulimit -u
            """,
        ),
        (
            errors.NotPicklable(
                what="argument 2 of f",
                path="[3].handle",
                culprit="<open file 'x'> (TextIOWrapper)",
                reason="cannot pickle '_io.TextIOWrapper' object",
            ),
            """
            argument 2 of f cannot be sent to another process: <open file 'x'> (TextIOWrapper) at [3].handle \
            (cannot pickle '_io.TextIOWrapper' object)
              hint: send what it is made from (a path, a key, plain data) and build it in the task
            """,
        ),
        (
            errors.MainGuardMissing(script="main.py"),
            """
            main.py uses shoal while a worker imports it; without a guard this would start processes without end
              hint: put the code that starts the work under  if __name__ == "__main__":
            """,
        ),
        (errors.Cancelled(task="f(1)"), "f(1) was cancelled"),
        (errors.PoolClosed(reason="this pool is closed"), "this pool is closed"),
        (
            errors.OverlappingWrites(
                task="f(1)", other="f(0)", array="an array of shape (3,)", ranges=((8, 32), (0, 16))
            ),
            """
            f(1) may write what f(0) may write, which runs in another worker: an array of shape (3,), bytes 8 to 32 \
            of a shared array; the other has bytes 0 to 16
              hint: give tasks that run at the same time slices that do not overlap, or read-only views
            """,
        ),
        (
            errors.NoSharedMemory(wanted_bytes=2 * GIB, reason="the control group allows 1.0 GiB"),
            "no shared memory for 2.0 GiB: the control group allows 1.0 GiB",
        ),
        (errors.UnsupportedPlatform(reason="shoal needs Linux 5.10 or later"), "shoal needs Linux 5.10 or later"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_message_reads_as_written_here(error, message):
    assert str(error) == text(message)


def test_remote_traceback_shows_as_the_quoted_text_of_a_cause():
    cause = errors.RemoteTraceback("Traceback (most recent call last):\n  ...\nValueError: x\n\n")
    assert str(cause) == '\n"""\nTraceback (most recent call last):\n  ...\nValueError: x\n"""'


def test_tree_on_top_of_the_file_is_the_tree():
    """Each class in the drawing exists, and each class that exists is drawn."""
    drawn = set(re.findall(r"[│ ]+[├└]── (?:\.\.\. )?([A-Z]\w+)", errors.__doc__))
    real = {name for name in errors.__all__ if name not in ("Obituary", "RemoteTraceback", "ShoalError")}
    assert drawn == real


class Refused(errors.ShoalError):
    """A user's own error on top of ours, with plain arguments."""


def test_an_error_without_fields_is_rebuilt_from_its_arguments():
    rebuild, parts = Refused("no", 7).__reduce__()
    assert rebuild(*parts).args == ("no", 7)
