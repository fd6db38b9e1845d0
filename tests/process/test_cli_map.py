"""`shoal map` as a program: rows out, words on standard error, an exit code, nothing left behind."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import pytest

from tests import support
from tests.process import cli_runner
from tests.process.cli_runner import rows, shoal


@pytest.fixture
def here(tmp_path: Path) -> Path:
    return cli_runner.make_job(tmp_path)


def test_rows_come_on_standard_output_in_the_order_of_the_inputs(here):
    done = shoal(here, "map", "job.py:length", "a", "bbb", "cc")
    assert rows(done.stdout) == [
        {"input": "a", "result": 1},
        {"input": "bbb", "result": 3},
        {"input": "cc", "result": 2},
    ]
    assert done.returncode == 0
    assert done.stderr.startswith("3 done, 0 failed in ")


@pytest.mark.parametrize("method", ["forkserver", "spawn", "fork"])
def test_a_files_function_runs_under_every_start_method(here, method):
    done = shoal(here, "map", "job.py:picky", "a", "bad", "--start-method", method)
    assert [set(row) for row in rows(done.stdout)] == [{"input", "result"}, {"input", "error"}]
    assert done.returncode == 1


def test_failures_are_rows_and_are_told_by_kind_with_their_place(here):
    done = shoal(here, "map", "job.py:picky", "good", "bad1", "bad2", "-o", "o.jsonl")
    assert done.returncode == 1
    assert done.stdout == ""
    assert rows((here / "o.jsonl").read_text(encoding="utf-8"))[1] == {
        "input": "bad1",
        "error": {"type": "ValueError", "message": "not good: bad1"},
    }
    assert "1 done, 2 failed" in done.stderr
    assert "ValueError in picky (job.py:8): 2 inputs, e.g. bad1" in done.stderr
    assert "row with its error in o.jsonl" in done.stderr
    assert "Traceback" not in done.stderr
    tracebacks = (here / "o.jsonl.tracebacks.txt").read_text(encoding="utf-8")
    assert 'File "' in tracebacks
    assert "in picky" in tracebacks
    assert "shoal/" not in tracebacks


def test_skip_leaves_failures_out_but_counts_them(here):
    done = shoal(here, "map", "job.py:picky", "a", "bad", "c", "--errors", "skip")
    assert [row["input"] for row in rows(done.stdout)] == ["a", "c"]
    assert "1 failed" in done.stderr
    assert done.returncode == 1


def test_raise_stops_at_the_first_failure_and_keeps_what_was_done(here):
    endless = ["a", "bad", *["wait"] * 3]
    done = shoal(here, "map", "job.py:picky", *endless, "--errors", "raise", "-w", "1")
    assert [row["input"] for row in rows(done.stdout)][:2] == ["a", "bad"]
    assert "stopped at the first failure" in done.stderr
    assert done.returncode == 1


def test_globs_are_expanded_by_the_command(here):
    for name in ("b.txt", "x/a.txt"):
        (here / name).parent.mkdir(exist_ok=True)
        (here / name).write_text("123", encoding="utf-8")
    done = shoal(here, "map", "os.path:getsize", "**/*.txt")
    assert rows(done.stdout) == [{"input": "b.txt", "result": 3}, {"input": "x/a.txt", "result": 3}]


def test_unordered_gives_every_input_its_own_result(here):
    words = [f"{'bad' if number % 7 == 0 else 'ok'}{'x' * number}" for number in range(200)]
    done = shoal(here, "map", "job.py:picky", "-", "--unordered", stdin="\n".join(words))
    found = {row["input"]: row for row in rows(done.stdout)}
    assert sorted(found) == sorted(words)
    assert all(row["result"]["size"] == len(text) for text, row in found.items() if "result" in row)
    assert sum("error" in row for row in found.values()) == 29


def test_results_come_while_standard_input_is_still_open(here):
    """`tail -f log | shoal map … -`: a slow input holds back nothing."""
    with cli_runner.started(here, "map", "job.py:length", "-") as process:
        for word in ("a", "bb"):
            process.stdin.write(word + "\n")
            process.stdin.flush()
            assert rows(process.stdout.readline()) == [{"input": word, "result": len(word)}]
        process.stdin.close()
        assert process.wait(60) == 0


def test_what_the_function_prints_stays_out_of_the_rows(here):
    done = shoal(here, "map", "job.py:loud", "a", "b")
    assert [row["result"] for row in rows(done.stdout)] == ["a", "b"]
    assert "printed a" in done.stderr
    assert "warned b" in done.stderr


def test_result_without_words_in_json_is_written_as_text_with_one_notice(here):
    done = shoal(here, "map", "job.py:odd", "a", "b")
    assert all(row["result"].startswith("<object object") for row in rows(done.stdout))
    assert done.stderr.count("note: results hold object") == 1
    assert done.returncode == 0


def test_csv_is_chosen_by_the_files_ending(here):
    shoal(here, "map", "job.py:picky", "a", "bad", "-o", "o.csv")
    with open(here / "o.csv", newline="", encoding="utf-8") as file:
        assert next(csv.reader(file)) == ["input", "text", "size", "error_type", "error_message", "more"]


def test_death_of_a_worker_costs_one_input_and_is_told(here):
    done = shoal(here, "map", "job.py:deadly", "a", "kill", "c", "d")
    found = {row["input"]: row for row in rows(done.stdout)}
    assert [found[word]["result"] for word in "acd"] == ["a", "c", "d"]
    assert found["kill"]["error"]["type"] == "WorkerDied"
    assert "SIGKILL" in found["kill"]["error"]["message"]
    assert "1 worker lost and replaced:\n  1 killed by SIGKILL" in done.stderr
    assert done.returncode == 1


def test_timeout_costs_one_input(here):
    done = shoal(here, "map", "job.py:slow", "a", "wait", "c", "--timeout", "0.5")
    found = {row["input"]: row for row in rows(done.stdout)}
    assert found["wait"]["error"]["type"] == "TaskTimeout"
    assert found["c"]["result"] == "c"
    assert "1 timed out" in done.stderr


def test_function_that_exits_is_a_failure_not_the_end(here):
    done = shoal(here, "map", "job.py:leaves", "a", "b")
    assert [row["error"]["type"] for row in rows(done.stdout)] == ["SystemExit", "SystemExit"]
    assert done.returncode == 1


def test_no_inputs_is_a_finished_run(here):
    done = shoal(here, "map", "job.py:length", "-")
    assert (done.returncode, done.stdout) == (0, "")
    assert "0 done, 0 failed" in done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["map", "job.py:lenght", "a"], "hint: did you mean job.py:length ?"),
        (["map", "job:length", "*.none"], "no file matches '*.none'"),
        (["map", "job:length", "a", "-o", "o.txt"], "end it in .jsonl, .csv or .parquet"),
        (["map", "job:length", "a", "-o", "gone/o.csv"], "cannot write gone/o.csv"),
        (["map", "job:length", "job.py", "-o", "o.jsonl", "-w", "0"], "--workers"),
        (["map", "job:length", "a", "--timeout", "0"], "--timeout"),
        (["map", "job:length", "a", "--errors", "ignore"], "--errors"),
        (["map", "job:length"], "INPUTS"),
        (["mop"], "did you mean  shoal map ?"),
        (["job.py:length", "a"], "did you mean  shoal map job.py:length … ?"),
    ],
)
def test_mistake_in_the_command_is_told_in_words_with_exit_code_2(here, words, said):
    done = shoal(here, *words)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_reader_that_goes_away_ends_the_run_quietly(here):
    """`shoal map … | head -1`"""
    (here / "list.txt").write_text("\n".join(map(str, range(50_000))), encoding="utf-8")
    with cli_runner.started(here, "map", "job.py:length", "@list.txt") as process:
        assert rows(process.stdout.readline()) == [{"input": "0", "result": 1}]
        process.stdout.close()
        assert process.wait(support.HANG_LIMIT_S) == 141
        assert process.stderr.read() == ""


def test_file_names_that_are_not_utf8_reach_the_function(here):
    name = os.fsdecode(b"caf\xe9.txt")
    (here / name).write_text("12345", encoding="utf-8")
    done = shoal(here, "map", "os.path:getsize", "*.txt")
    assert rows(done.stdout) == [{"input": name, "result": 5}]


def test_plain_progress_lines_are_written_when_asked_for(here):
    done = shoal(here, "map", "job.py:length", "a", "--progress", env={"NO_COLOR": "1"})
    assert done.returncode == 0
    assert "\x1b" not in done.stderr
