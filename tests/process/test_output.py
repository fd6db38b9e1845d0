"""What tasks print: whole lines with the worker's name in front, and the last of them when a worker dies."""

from __future__ import annotations

import os
import re
import sys

import pytest

import shoal
from tests.process import pool_tasks as t
from tests.support import eventually

PREFIX = re.compile(r"^\[worker \d+\] ")


@pytest.fixture
def printed(capsys):
    """Everything forwarded so far, collected: `printed(stream)` -> lines."""
    seen = {"out": "", "err": ""}

    def lines(stream="out"):
        captured = capsys.readouterr()
        seen["out"] += captured.out
        seen["err"] += captured.err
        return seen[stream].splitlines()

    return lines


def say(text, end="\n", stream="stdout"):
    print(text, end=end, file=getattr(sys, stream))


def say_and_die(*texts):
    for text in texts:
        print(text)
    t.die()


def say_without_end_and_die(text):
    sys.stdout.write(text)
    sys.stdout.flush()
    t.die()


def write_bytes(data, fd=1):
    os.write(fd, data)


def run_echo(text):
    import subprocess

    subprocess.run(["echo", text], check=True)


# --- forwarded ----------------------------------------------------------------------------------


def test_a_printed_line_arrives_with_the_workers_number(pool_factory, printed):
    pool = pool_factory(1)
    pool.submit(say, "hello").result()
    number = pool.workers[0].number
    eventually(lambda: f"[worker {number}] hello" in printed(), what="the line")


def test_stderr_goes_to_stderr(pool_factory, printed):
    pool = pool_factory(1)
    pool.submit(say, "oh dear", stream="stderr").result()
    eventually(lambda: any(line.endswith("] oh dear") for line in printed("err")), what="the line")
    assert printed("out") == []


def test_a_line_without_an_end_arrives_when_its_task_is_done(pool_factory, printed):
    """Nobody waits for the rest of a line that may never come."""
    pool = pool_factory(1)
    pool.submit(say, "no end", end="").result()
    pool.shutdown()
    eventually(lambda: any(line.endswith("] no end") for line in printed()), what="the line")


def test_lines_of_several_workers_are_never_mixed(pool, printed):
    """Each worker writes long lines of its own letter."""
    list(pool.map(say, [letter * 3000 for letter in "abcdefgh" * 10]))
    pool.shutdown()
    eventually(lambda: len(printed()) == 80, what="all lines")
    for line in printed():
        assert PREFIX.match(line)
        text = PREFIX.sub("", line)
        assert len(text) == 3000
        assert len(set(text)) == 1


def test_nothing_printed_is_lost_and_a_workers_lines_keep_their_order(pool_factory, printed):
    pool = pool_factory(1)
    list(pool.map(say, [f"line {n}" for n in range(5000)]))
    pool.shutdown()
    eventually(lambda: len(printed()) == 5000, what="all lines")
    assert [PREFIX.sub("", line) for line in printed()] == [f"line {n}" for n in range(5000)]


def test_the_last_words_before_shutdown_arrive(pool_factory, printed):
    with pool_factory(1) as pool:
        pool.submit(say, "last words")
    eventually(lambda: any("last words" in line for line in printed()), what="the line")


def test_bytes_that_are_no_text_are_shown_escaped(pool_factory, printed):
    pool = pool_factory(1)
    pool.submit(write_bytes, b"caf\xe9 \xff\xfe\n").result()
    eventually(lambda: any(line.endswith(r"] caf\xe9 \xff\xfe") for line in printed()), what="the line")


def test_text_beyond_ascii_arrives_as_it_is(pool_factory, printed):
    pool = pool_factory(1)
    pool.submit(say, "größe ∞ 🐟").result()
    eventually(lambda: any(line.endswith("] größe ∞ 🐟") for line in printed()), what="the line")


def test_what_a_program_started_by_a_task_prints_is_forwarded_too(pool_factory, printed):
    pool = pool_factory(1)
    pool.submit(run_echo, "from below").result()
    eventually(lambda: any(line.endswith("] from below") for line in printed()), what="the line")


def test_a_very_long_line_arrives_whole_or_in_pieces_and_nothing_of_it_is_lost(pool_factory, printed):
    pool = pool_factory(1)
    pool.submit(say, "x" * 1_000_000).result()
    pool.shutdown()
    eventually(lambda: sum(line.count("x") for line in printed()) == 1_000_000, what="the whole line")
    assert all(PREFIX.match(line) for line in printed())


def test_a_flood_of_output_does_not_block_the_task_when_nobody_waits(pool, tmp_path):
    """A pipe holds 64 kB; somebody must read it although the program does something else."""
    path = tmp_path / "done"
    pool.submit(_flood, str(path))
    eventually(path.exists, what="the task to finish")


def _flood(path):
    for _ in range(20_000):
        print("x" * 50)
    t.touch(path)


def test_a_broken_stream_of_the_program_costs_the_text_and_nothing_else(pool_factory, monkeypatch):
    class Broken:
        def write(self, _text):
            raise OSError("disk full")

        def flush(self):
            raise OSError("disk full")

    pool = pool_factory(1)
    monkeypatch.setattr(sys, "stdout", Broken())
    pool.submit(say, "into the void").result()
    assert pool.submit(t.square, 3).result() == 9
    pool.shutdown()


def test_a_program_without_stdout_still_works(pool_factory, monkeypatch):
    pool = pool_factory(1)
    monkeypatch.setattr(sys, "stdout", None)
    pool.submit(say, "nobody listens").result()
    assert pool.submit(t.square, 3).result() == 9
    pool.shutdown()


def test_a_task_may_close_its_own_stdout(pool_factory):
    pool = pool_factory(1)
    pool.submit(_close_stdout).result()
    assert pool.submit(t.square, 3).result() == 9


def _close_stdout():
    sys.stdout.close()


def test_a_task_may_close_its_descriptors_of_output(pool_factory):
    pool = pool_factory(1)
    pool.submit(os.closerange, 1, 3).result()
    assert pool.submit(t.square, 3).result() == 9


@pytest.mark.start_methods("forkserver", "spawn")  # a forked worker logs where this test run does
def test_logging_in_a_task_is_forwarded(pool_factory, printed):
    pool = pool_factory(1)
    pool.submit(_log_a_warning).result()
    eventually(lambda: any(line.endswith("] a warning") for line in printed("err")), what="the line")


def _log_a_warning():
    import logging

    logging.getLogger("a task").warning("a warning")


# --- in the obituary ----------------------------------------------------------------------------


def test_the_obituary_holds_the_last_lines(pool):
    with pytest.raises(shoal.WorkerDied) as caught:
        pool.submit(say_and_die, "one", "two", "three").result()
    assert caught.value.obituary.output_tail == ("one", "two", "three")
    assert "three" in str(caught.value.obituary)


def test_the_obituary_holds_a_line_that_was_not_finished(pool):
    with pytest.raises(shoal.WorkerDied) as caught:
        pool.submit(say_without_end_and_die, "loading 73 %").result()
    assert caught.value.obituary.output_tail == ("loading 73 %",)


def test_the_obituary_holds_only_the_last_of_many_lines(pool):
    with pytest.raises(shoal.WorkerDied) as caught:
        pool.submit(say_and_die, *map(str, range(10_000))).result()
    tail = caught.value.obituary.output_tail
    assert tail[-1] == "9999"
    assert len(tail) <= 40


def test_the_last_lines_before_a_death_are_forwarded_too(pool, printed):
    with pytest.raises(shoal.WorkerDied):
        pool.submit(say_and_die, "one", "two").result()
    eventually(lambda: [PREFIX.sub("", line) for line in printed()] == ["one", "two"], what="the lines")


# --- inherited ----------------------------------------------------------------------------------


def test_with_inherit_tasks_write_to_the_programs_own_streams(run_script, start_method):
    done = run_script(f"""
        import shoal, sys

        def say():
            print("to stdout")
            print("to stderr", file=sys.stderr)

        if __name__ == "__main__":
            with shoal.Pool(1, start_method={start_method!r}, capture="inherit") as pool:
                pool.submit(say).result()
    """)
    assert (done.stdout, done.stderr) == ("to stdout\n", "to stderr\n")


def test_with_prefix_the_programs_own_streams_get_whole_lines(run_script, start_method):
    done = run_script(f"""
        import shoal, sys

        def say():
            print("to stdout")
            print("to stderr", file=sys.stderr)

        if __name__ == "__main__":
            with shoal.Pool(1, start_method={start_method!r}) as pool:
                pool.submit(say).result()
    """)
    assert (done.stdout, done.stderr) == ("[worker 0] to stdout\n", "[worker 0] to stderr\n")


def test_with_inherit_an_obituary_has_no_last_lines(pool_factory):
    pool = pool_factory(1, capture="inherit")
    with pytest.raises(shoal.WorkerDied) as caught:
        pool.submit(t.die).result()
    assert caught.value.obituary.output_tail == ()


def test_output_buffered_before_a_fork_is_not_written_twice(run_script, start_method):
    done = run_script(f"""
        import shoal

        if __name__ == "__main__":
            print("once", end="")
            with shoal.Pool(2, start_method={start_method!r}, capture="inherit") as pool:
                list(pool.map(abs, range(10)))
            print()
    """)
    assert done.stdout == "once\n"
