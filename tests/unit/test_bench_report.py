"""What a benchmark run turns into: record, table, page."""

from __future__ import annotations

import json

import pytest

from benchmarks import harness, physical, pool
from benchmarks.contenders import BY_NAME, CONTENDERS, Contender
from benchmarks.model import Board, Case, Outcome, Row, Suite, Target
from benchmarks.report import NOTHING_YET, page_text, print_table, record

CASE = Case("submit", "m:f", (Row("speed", "tasks", "tasks/s", True, Target(3.0, of_best=True), "loop_items"),))
KILL = Case("kill", "m:f", (Row("kill", "kill to next", "ms", target=Target(20.0)),), needs=("submit", "heal"))
SUITE = Suite("demo", "Demo", "How fast?", cases=(CASE, KILL), notes="- A remark.\n")
FACTS = {
    "machine": {
        "cpu": "Some CPU",
        "cpus": 2,
        "virtual": True,
        "memory_gib": 8.0,
        "kernel": "Linux 6.1",
        "python": "CPython 3.11.7",
        "libc": "glibc 2.36",
        "versions": {"loky": "3.7.0"},
        "date": "2026-01-01 10:00 UTC",
    },
    "run": {"rounds": 2, "took_s": 12.0, "quick": False, "load_before": 0.1, "steal_share": 0.0},
}


def ok(**figures: float) -> Outcome:
    return Outcome("ok", figures=figures)


@pytest.fixture
def data():
    board = Board()
    board.add("physical", "machine", ok(loop_items=1e7))
    for value in (90e3, 110e3):
        board.add("submit", "shoal", ok(speed=value))
        board.add("submit", "loky", ok(speed=value / 10))
    board.add("kill", "shoal", ok(kill=4.0))
    board.add("kill", "shoal", Outcome("hung", reason="hung: killed after 60 s"))
    board.add("kill", "loky", Outcome("n/a", reason="one dead worker breaks the executor", left_behind=3))
    made = record(SUITE, SUITE.cases, ["shoal", "loky", "pebble"], board, {"pebble": "not installed"})
    return json.loads(json.dumps(made)) | FACTS


def test_the_record_compares_with_the_best_peer_and_with_the_machine(data):
    row = data["rows"][0]
    assert (row["best_peer"], row["ratio"], row["ratio_to_limit"], row["reached"]) == ("loky", 10.0, 0.01, True)


def test_a_failed_round_is_counted_and_costs_the_target(data):
    row = data["rows"][1]
    assert row["results"]["shoal"]["failed_rounds"] == 1
    assert row["reached"] is False


@pytest.mark.parametrize(
    "line",
    [
        "| tasks, tasks/s | 100 k | 10.0 k | 10.0 | 0.010 | ≥ 3 x best | yes |",
        "| kill to next, ms | 4.00 ! | n/a |  |  | ≤ 20 ms | no |",
        "| tasks, tasks/s | 90.0 k to 110 k | 9.00 k to 11.0 k |",
        "- pebble was left out: not installed.",
        "- n/a in kill, loky: one dead worker breaks the executor.",
        "- shoal, kill: 1 rounds without a figure; hung: killed after 60 s.",
        "- loky left up to 3 processes a second after a program's end.",
        "- Machine: virtual machine, 2 processors (Some CPU), 8 GiB; Linux 6.1.",
        "- A remark.",
    ],
)
def test_the_page_says(data, line):
    assert line in page_text([(SUITE, data)]).splitlines()


def test_the_page_warns_of_a_machine_that_was_not_quiet(data):
    assert "not quiet" not in page_text([(SUITE, data)])
    data["run"]["steal_share"] = 0.05
    assert "not quiet" in page_text([(SUITE, data)])


def test_the_page_without_a_run_still_tells_the_method():
    text = page_text([(SUITE, None)])
    assert NOTHING_YET in text
    assert "- A remark." in text


def test_the_table_on_the_screen_names_rows_contenders_and_verdicts(data, capsys):
    print_table(data)
    shown = capsys.readouterr().out
    for word in ("shoal", "loky", "100 k", "≥ 3 x best", "yes", "4.00 !", "n/a", "not installed"):
        assert word in shown


# --- what is on offer ---------------------------------------------------------------------------


def test_contenders_have_names_of_their_own_and_programs_that_compile():
    assert len(BY_NAME) == len(CONTENDERS)
    for contender in CONTENDERS:
        compile(pool.program_text(contender), contender.name, "exec")


def test_a_contender_that_is_not_installed_says_so():
    class Nowhere(Contender):
        module = "no_such_module_anywhere"

    assert Nowhere().missing() == "not installed"


def test_every_case_names_a_function_and_only_limits_that_are_measured():
    limits = {row.key for row in physical.CASE.rows}
    for case in (*pool.SUITE.cases, pool.SMOKE):
        module, _, name = case.function.partition(":")
        assert module == "benchmarks.pool"
        assert callable(getattr(pool, name))
        assert {row.limit for row in case.rows if row.limit} <= limits
        assert set(case.quick) <= set(case.full)


def test_a_partial_run_is_never_taken_for_a_complete_one():
    assert harness.parse(pool.SUITE, []).complete
    for words in (["--quick"], ["--only", "loky"], ["--rows", "submit"], ["--quick", "--rounds", "9"]):
        assert not harness.parse(pool.SUITE, words).complete


def test_choosing_keeps_the_order_of_the_table():
    plan = harness.parse(pool.SUITE, ["--only", "pebble, shoal", "--rows", "kill,submit"])
    assert plan.contenders == ("shoal", "pebble")
    assert [case.key for case in plan.cases] == ["submit", "kill"]


@pytest.mark.parametrize("words", [["--only", "nobody"], ["--rows", "nothing"], ["--rounds", "0"]])
def test_a_wrong_choice_is_refused_with_what_there_is(words, capsys):
    with pytest.raises(SystemExit) as end:
        harness.parse(pool.SUITE, words)
    assert end.value.code == 2
    assert words[0] in capsys.readouterr().err
