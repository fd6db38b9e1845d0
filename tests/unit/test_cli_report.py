"""Failures are told by kind and by the line of the user's own code; a run by its figures."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from shoal import errors
from shoal.cli import report
from shoal.cli.report import Failure, Failures, Tally

LIBRARY = report.os.__file__

TRACE = f'''Traceback (most recent call last):
  File "/somewhere/stats.py", line 31, in parse_file
    tree = ast.parse(source)
  File "{LIBRARY}", line 50, in parse
    return compile(source)
  File "bad.py", line 3
    def f(:
          ^
SyntaxError: invalid syntax'''

CHAINED = f"""Traceback (most recent call last):
  File "/somewhere/first.py", line 1, in inner
    1 / 0
ZeroDivisionError: division by zero

During handling of the above exception, another exception occurred:

{TRACE}"""


def remote(error: Exception, text: str) -> Exception:
    error.__cause__ = errors.RemoteTraceback(text)
    return error


def obituary(**facts) -> errors.Obituary:
    return errors.Obituary(**{"worker": 1, "pid": 77, "signal": "SIGSEGV", "task": "f('a')"} | facts)


def statistics(**facts) -> SimpleNamespace:
    empty = {"workers": 2, "retried": 0, "timeouts": 0, "workers_lost": 0, "deaths": (), "cpu_s": 3.8}
    return SimpleNamespace(**empty | facts)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        (TRACE, "in parse_file (stats.py:31)"),
        (CHAINED, "in parse_file (stats.py:31)"),
        (f'  File "{LIBRARY}", line 5, in getsize\n', "in getsize (os.py:5)"),
        ("", ""),
        ("ValueError: no frames", ""),
    ],
)
def test_place_is_the_innermost_line_that_is_the_users(text, place):
    """R2"""
    assert Failure.of(remote(SyntaxError("x"), text)).place == place


def test_place_of_a_crash_comes_from_the_last_stack_of_the_dead():
    stack = f'  File "{LIBRARY}", line 9 in read\n  File "/somewhere/stats.py", line 4 in load\n  File "/somewhere/stats.py", line 9 in parse'
    failure = Failure.of(errors.WorkerDied(obituary=obituary(python_stack=stack)))
    assert failure.place == "in load (stats.py:4)"
    assert "stats.py" in failure.traceback


def test_error_that_could_not_travel_is_told_by_its_own_name():
    error = errors.RemoteError(type_name="job.Odd", message="m", traceback_text=TRACE, why="cannot be pickled")
    assert Failure.of(error).type == "Odd"
    assert Failure.of(error).place == "in parse_file (stats.py:31)"


def test_timeouts_are_one_kind_wherever_they_struck(tmp_path):
    failures = Failures(None)
    for line in range(5):
        stack = f'  File "/somewhere/stats.py", line {line} in load'
        error = errors.TaskTimeout(
            task="f('a')", timeout=2, attempt=1, attempts=1, obituary=obituary(python_stack=stack)
        )
        failures.add("a", Failure.of(error))
    assert next(failures.lines(80)) == "  TaskTimeout: 5 inputs, e.g. a"


def test_failures_are_grouped_by_type_and_place_most_frequent_first():
    failures = Failures(None)
    for item in ("a.py", "b.py", "c.py"):
        failures.add(
            item, Failure("SyntaxError", f"invalid syntax ({item}, line 1)", "in parse_file (stats.py:31)", "")
        )
    failures.add("d.py", Failure("OSError", "gone", "in parse_file (stats.py:30)", ""))
    assert list(failures.lines(100)) == [
        "  SyntaxError in parse_file (stats.py:31): 3 inputs, e.g. a.py",
        "    invalid syntax (a.py, line 1)",
        "  OSError in parse_file (stats.py:30): 1 input, d.py",
        "    gone",
    ]


@pytest.mark.parametrize("width", [40, 80, 120])
def test_failures_fit_the_screen(width):
    failures = Failures(None)
    failures.add("/a/very/long/path" * 12 + "/end.py", Failure("ValueError", "word " * 60, "in f (a.py:1)", ""))
    failures.add("control\x1b[31m\n", Failure("KeyError", "bell\x07 and\ttab", "in f (a.py:2)", ""))
    lines = list(failures.lines(width))
    assert max(map(len, lines)) <= width
    assert any(line.endswith("/end.py") for line in lines)
    assert "\x1b" not in "".join(lines)


def test_many_kinds_are_cut_and_counted():
    failures = Failures(None)
    for number in range(25):
        failures.add("a", Failure("ValueError", "m", f"in f (a.py:{number})", ""))
    lines = list(failures.lines(80))
    assert lines[-1] == "  … and 15 more kinds, 15 inputs"
    assert len(lines) == 2 * report.KINDS_SHOWN + 1


def test_tracebacks_are_kept_up_to_a_number_of_each_kind(tmp_path):
    path = tmp_path / "t.txt"
    failures = Failures(str(path))
    for number in range(50):
        failures.add(f"input{number}", Failure("ValueError", "m", "in f (a.py:1)", TRACE))
    failures.close()
    text = path.read_text(encoding="utf-8")
    assert text.count("=== input") == report.TRACEBACKS_KEPT
    assert "line 31, in parse_file" in text


def test_no_failures_leave_no_file_of_tracebacks(tmp_path):
    failures = Failures(str(tmp_path / "t.txt"))
    failures.close()
    assert not list(tmp_path.iterdir())


def test_file_of_tracebacks_that_cannot_be_written_does_not_end_the_run(tmp_path):
    failures = Failures(str(tmp_path / "gone" / "t.txt"))
    failures.add("a", Failure("ValueError", "m", "", TRACE))
    assert failures.tracebacks is None
    assert failures.kinds


def test_summary_says_counts_time_and_what_the_cores_gave():
    tally = Tally(None, done=10, failed=2)
    assert list(report.summary(tally, statistics(retried=1, timeouts=1), wall_s=2.0, ended=None)) == [
        "10 done, 2 failed, 1 retried, 1 timed out in 2.0 s (6.0/s)",
        "2 workers, CPU 3.8 s, 1.9 times one core",
    ]


def test_summary_of_a_run_cut_short_says_what_is_left():
    tally = Tally(100, done=40)
    first, *_ = report.summary(tally, statistics(), wall_s=1.0, ended="interrupted")
    assert first == "40 done, 0 failed, 60 not done (interrupted) in 1.0 s (40/s)"


def test_summary_names_the_workers_lost_and_why():
    deaths = (obituary(pid=1), obituary(pid=2), obituary(pid=3, signal=None, exit_code=4, task=None))
    lines = list(report.summary(Tally(3, done=3), statistics(workers_lost=3, deaths=deaths), wall_s=1.0, ended=None))
    assert lines[2:] == [
        "3 workers lost and replaced:",
        "  2 killed by SIGSEGV, e.g. pid 2 while running f('a')",
        "  1 exited with code 4, pid 3 while it had no task",
    ]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.04, "0.0 s"), (9.94, "9.9 s"), (12.4, "12 s"), (59.7, "1 min 0 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")],
)
def test_times_are_told_as_people_say_them(seconds, words):
    assert report.duration(seconds) == words
