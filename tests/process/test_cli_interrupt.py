"""Whatever ends `shoal map` early, what is done is kept, told, and nothing goes on behind it."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests import support
from tests.process import cli_runner
from tests.process.cli_runner import rows


@pytest.fixture
def here(tmp_path: Path) -> Path:
    return cli_runner.make_job(tmp_path)


@pytest.mark.parametrize(
    ("number", "code", "words"),
    [
        (signal.SIGINT, 130, "(interrupted)"),
        (signal.SIGTERM, 143, "(ended by SIGTERM)"),
        (signal.SIGHUP, 129, "(ended by SIGHUP)"),
    ],
)
def test_signal_keeps_what_is_done_and_ends_what_runs(here, number, code, words):
    inputs = ["a", "b", "wait1", "c", "d", "wait2", "never"]
    with cli_runner.started(here, "map", "job.py:slow", *inputs, "-o", "o.jsonl", "-w", "2") as process:
        support.eventually(
            lambda: (here / "started.wait1").exists() and (here / "started.wait2").exists(), what="both workers to wait"
        )
        below = [one.pid for one in support.tree_of(process.pid)]
        process.send_signal(number)
        assert process.wait(support.HANG_LIMIT_S) == code
        errors = process.stderr.read()
    found = rows((here / "o.jsonl").read_text(encoding="utf-8"))
    assert found == [{"input": text, "result": text} for text in "abcd"]
    assert errors.startswith(f"4 done, 0 failed, 3 not done {words} in ")
    assert "Traceback" not in errors
    support.eventually(lambda: not any(map(support.is_alive, below)), what="every process below it to end")


def test_ctrl_c_is_answered_while_standard_input_gives_nothing(here):
    with cli_runner.started(here, "map", "job.py:length", "-") as process:
        process.stdin.write("abc\n")
        process.stdin.flush()
        assert rows(process.stdout.readline()) == [{"input": "abc", "result": 3}]
        process.send_signal(signal.SIGINT)
        assert process.wait(support.HANG_LIMIT_S) == 130
        assert process.stderr.read().startswith("1 done, 0 failed, stopped early (interrupted)")


def test_ctrl_c_before_anything_runs_is_quiet(here):
    """Importing the user's file may take long."""
    (here / "heavy.py").write_text(
        "import time\nopen('importing', 'w').close()\ntime.sleep(600)\ndef f(x): pass\n", encoding="utf-8"
    )
    with cli_runner.started(here, "map", "heavy.py:f", "a") as process:
        support.eventually((here / "importing").exists, what="the import to begin")
        process.send_signal(signal.SIGINT)
        assert process.wait(support.HANG_LIMIT_S) == 130
        assert process.stderr.read().strip() == "interrupted"


def test_parquet_of_an_interrupted_run_is_complete(here):
    parquet = pytest.importorskip("pyarrow.parquet")
    with cli_runner.started(here, "map", "job.py:slow", "a", "wait", "-o", "o.parquet", "-w", "1") as process:
        support.eventually((here / "started.wait").exists, what="the second input to run")
        process.send_signal(signal.SIGINT)
        assert process.wait(support.HANG_LIMIT_S) == 130
    assert parquet.read_table(here / "o.parquet").to_pylist()[0]["result"] == "a"


def test_killing_the_command_leaves_whole_rows_and_no_process(here):
    with cli_runner.started(here, "map", "job.py:slow", "a", "b", "wait", "-o", "o.jsonl", "-w", "1") as process:
        support.eventually((here / "started.wait").exists, what="the third input to run")
        support.eventually(lambda: (here / "o.jsonl").read_bytes().count(b"\n") == 2, what="two rows in the file")
        below = [one.pid for one in support.tree_of(process.pid)]
        process.kill()
        process.wait(support.HANG_LIMIT_S)
    support.eventually(lambda: not any(map(support.is_alive, below)), what="every process below it to end")
    assert [row["result"] for row in rows((here / "o.jsonl").read_text(encoding="utf-8"))] == ["a", "b"]


def test_full_disk_ends_the_run_in_words(here):
    os.symlink("/dev/full", here / "o.jsonl")
    done = cli_runner.shoal(here, "map", "job.py:length", "a", "-o", "o.jsonl")
    assert done.returncode == 1
    assert "cannot write o.jsonl: No space left on device" in done.stderr
    assert "Traceback" not in done.stderr
