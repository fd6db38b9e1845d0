"""Every error crosses a process with its fields, its message, its cause for `except`, and its notes (errors E1)."""

from __future__ import annotations

import copy
import inspect
import pickle
import pydoc
import subprocess
import sys

import pytest

from shoal import errors

OBITUARY = errors.Obituary(
    worker=3,
    pid=41872,
    signal="SIGKILL",
    out_of_memory="likely",
    peak_memory_bytes=7 << 30,
    memory_limit_bytes=8 << 30,
    python_stack='Current thread 0x1 (most recent call first):\n  File "a.py", line 3 in f',
    output_tail=("one", "two"),
    task="f(1)",
    attempt=1,
    attempts=2,
    ran_s=0.5,
)

#: Values for the constructors, by parameter name. A new parameter needs a line here.
SAMPLES = {
    "actor": "Counter-1",
    "array": "an array of shape (2, 3)",
    "attempt": 1,
    "attempts": 2,
    "call": "increment(1)",
    "child": "Camera-1",
    "culprit": "lock (thread.lock)",
    "hint": "try less",
    "intensity": 3,
    "kills": 3,
    "limit_bytes": 1 << 30,
    "mailbox": 1000,
    "message": "no such column",
    "name": "Camera-1",
    "obituary": OBITUARY,
    "other": "g(2)",
    "path": "[3].handle",
    "ended": "it was stopped",
    "peak_bytes": 2 << 30,
    "period": 5.0,
    "pid": 4711,
    "ranges": ((0, 10), (5, 15)),
    "reason": "it raised ValueError('x')",
    "script": "main.py",
    "supervisor": "Supervisor-1",
    "task": "f(1)",
    "text": "Traceback (most recent call last):\n  ...\nValueError: x",
    "timeout": 1.5,
    "traceback_text": "Traceback ...",
    "type_name": "ValueError",
    "wanted_bytes": 3 << 30,
    "what": "argument 2 of f",
    "why": "the task raised an exception that cannot be pickled",
}

CLASSES = [
    thing
    for _, thing in inspect.getmembers(errors, inspect.isclass)
    if issubclass(thing, BaseException) and thing.__module__ == errors.__name__
]
every_error = pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)


def build(kind, *, optional=True):
    """An instance of `kind` with a sample for each field, or only for those it needs."""
    if kind is errors.ShoalError:
        return kind("something went wrong")
    parameters = inspect.signature(kind).parameters.values()
    wanted = [one for one in parameters if optional or one.default is one.empty]
    if any(one.kind is one.POSITIONAL_OR_KEYWORD for one in wanted):
        return kind(*(SAMPLES[one.name] for one in wanted))
    return kind(**{one.name: SAMPLES[one.name] for one in wanted})


def fields(error):
    return {key: value for key, value in vars(error).items() if key != "__notes__"}


def test_every_error_class_is_exported_and_tried():
    assert {kind.__name__ for kind in CLASSES} <= set(errors.__all__)
    assert len(CLASSES) >= 15


@every_error
@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("optional", [True, False], ids=["all-fields", "needed-fields"])
def test_error_arrives_as_it_was_sent(kind, protocol, optional):
    error = build(kind, optional=optional)
    back = pickle.loads(pickle.dumps(error, protocol))
    assert type(back) is kind
    assert fields(back) == fields(error)
    assert str(back) == str(error)
    assert back.args == error.args


@every_error
def test_notes_arrive_too(kind):
    if kind is errors.RemoteTraceback:
        pytest.skip("a text shown as a cause; nobody adds a note to it")
    error = build(kind)
    error.add_note("task 17 of the map")
    error.add_note("called as f('a.py')")
    back = pickle.loads(pickle.dumps(error))
    assert back.__notes__ == ["task 17 of the map", "called as f('a.py')"]
    again = pickle.loads(pickle.dumps(back))
    assert again.__notes__ == back.__notes__


@every_error
def test_error_survives_a_second_trip_and_a_copy(kind):
    error = build(kind)
    twice = pickle.loads(pickle.dumps(pickle.loads(pickle.dumps(error))))
    assert str(twice) == str(copy.copy(error)) == str(copy.deepcopy(error)) == str(error)


@every_error
def test_error_has_text_to_read(kind):
    text = str(build(kind))
    assert text.strip()
    assert "None" not in text
    assert "  " not in text.replace("\n  ", "\n").replace("under  if", "under if"), "words are joined by one space"


def test_obituary_arrives_as_it_was_sent():
    assert pickle.loads(pickle.dumps(OBITUARY)) == OBITUARY


@pytest.mark.parametrize(
    ("kind", "base"),
    [
        ("Cancelled", "concurrent.futures.CancelledError"),
        ("InitializerFailed", "concurrent.futures.process.BrokenProcessPool"),
        ("MainGuardMissing", "RuntimeError"),
        ("MemoryLimitExceeded", "MemoryError"),
        ("NoSharedMemory", "OSError"),
        ("NotPicklable", "pickle.PicklingError"),
        ("PoisonTask", "shoal.errors.WorkerDied"),
        ("PoolClosed", "RuntimeError"),
        ("RemoteError", "RuntimeError"),
        ("StartFailed", "concurrent.futures.process.BrokenProcessPool"),
        ("TaskTimeout", "TimeoutError"),
        ("UnsupportedPlatform", "ImportError"),
        ("WorkerDied", "concurrent.futures.process.BrokenProcessPool"),
    ],
)
def test_code_written_for_the_standard_library_catches_it(kind, base):
    """The class in the tree drawn on top of errors.py, so that existing `except` clauses work."""
    errors.be_broken_process_pools()  # making one does that, too
    assert issubclass(getattr(errors, kind), pydoc.locate(base))
    assert issubclass(getattr(errors, kind), errors.ShoalError)


LATE = """
import sys
from shoal import errors
assert "concurrent.futures.process" not in sys.modules
try:
    raise errors.{error}
except Exception as caught:
    from concurrent.futures.process import BrokenProcessPool
    print(isinstance(caught, BrokenProcessPool), issubclass(errors.{name}, BrokenProcessPool))
"""


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("StartFailed", "reason='none'"),
        ("InitializerFailed", "reason='none'"),
        ("WorkerDied", "obituary=errors.Obituary(worker=1, pid=2)"),
        ("PoisonTask", "obituary=errors.Obituary(worker=1, pid=2), kills=3"),
    ],
)
def test_an_error_is_a_broken_process_pool_even_if_that_was_imported_by_nobody_before(name, arguments):
    code = LATE.format(name=name, error=f"{name}({arguments})")
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False)
    assert (said.stdout, said.stderr) == ("True True\n", "")


def test_an_error_can_be_made_when_the_program_is_ending():
    """`concurrent.futures.process` refuses to be imported then."""
    code = "import atexit; from shoal import errors; atexit.register(lambda: print(repr(errors.StartFailed(reason='late'))))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False)
    assert said.stdout.startswith("StartFailed('no worker could be started: late"), said.stderr
