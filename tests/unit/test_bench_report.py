"""What a benchmark run turns into: record, table, page."""

from __future__ import annotations

import importlib
import json
from dataclasses import replace

import pytest

from benchmarks import data as data_suite
from benchmarks import harness, physical, pool
from benchmarks.contenders import BY_NAME, CONTENDERS, OTHERS, Contender
from benchmarks.model import Board, Case, Curve, Outcome, Row, Suite, Target
from benchmarks.report import NOTHING_YET, page_text, pictures, print_table, record
from benchmarks.suites import SUITES

CASE = Case("submit", "m:f", (Row("speed", "tasks", "tasks/s", True, Target(3.0, of_best=True), "loop_items"),))
KILL = Case("kill", "m:f", (Row("kill", "kill to next", "ms", target=Target(20.0)),), needs=("submit", "heal"))
SUITE = Suite("demo", "Demo", "How fast?", cases=(CASE, KILL), limits=physical.CASE, notes="- A remark.\n")
SIZES = Case(
    "sizes",
    "m:f",
    (
        *(Row(f"arg_{size}", f"{size} B", "GB/s", True, curve="there", at=size) for size in (8, 64, 512)),
        Row("arg", "an array", "ms", target=Target(1.5, of_limit=True), limit="copy", relative=True),
    ),
)
LIMITS = Case(
    "copies", "m:f", (Row("copy", "a copy", "ms"), *(Row(f"c{n}", "", "GB/s", curve="copy", at=n) for n in (8, 64)))
)
CURVES = Suite(
    "curves",
    "Curves",
    "How much?",
    cases=(SIZES,),
    limits=LIMITS,
    curves=(Curve("there", "One way", "size", "GB/s", "copy", "memcpy"),),
)
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


# --- pictures -----------------------------------------------------------------------------------


@pytest.fixture
def drawn():
    board = Board()
    board.add("copies", "machine", ok(copy=10.0, c8=5.0, c64=9.0))
    board.add("sizes", "shoal", ok(arg=12.0, arg_8=0.00041, arg_64=2.0))
    board.add("sizes", "loky", ok(arg=400.0, arg_8=0.1))
    made = record(CURVES, CURVES.cases, ["shoal", "loky"], board, {})
    return json.loads(json.dumps(made)) | FACTS


def test_points_of_a_curve_stand_in_a_picture_and_its_table_not_in_the_main_table(drawn):
    (name,) = found = pictures(CURVES, drawn)
    lines = page_text([(CURVES, drawn)]).splitlines()
    assert name == "curves-there.svg"
    assert all(f">{title}</text>" in found[name] for title in ("shoal", "loky", "memcpy"))
    assert f"![One way: GB/s by size]({name})" in lines
    assert "| 8 B | 0.00041 | 0.1 |" in lines
    assert "| 64 B | 2 |  |" in lines
    assert not any(line.startswith(("| 512 B", "| 8 B, GB/s")) for line in lines)


def test_one_contender_may_have_several_lines_in_a_picture():
    rows = [
        Row(f"{line}{at}", str(at), "ns", curve="there", at=at, line=line) for line in ("all", "each") for at in (2, 64)
    ]
    suite = replace(CURVES, cases=(Case("c", "m:f", tuple(rows)),))
    board = Board()
    board.add("c", "shoal", ok(all2=1.0, all64=2.0, each2=3000.0, each64=4000.0))
    made = json.loads(json.dumps(record(suite, suite.cases, ["shoal"], board, {}))) | FACTS
    (text,) = pictures(suite, made).values()
    assert all(f">{title}</text>" in text for title in ("shoal, all", "shoal, each", "64"))
    lines = page_text([(suite, made)]).splitlines()
    assert "| there, ns | shoal, all | shoal, each |" in lines
    assert "| 64 | 2 | 4,000 |" in lines


def test_a_figure_may_show_its_multiple_of_the_limit(drawn):
    assert "| an array, ms | 12.0 (1.20) | 400 (40.0) | 0.030 | 1.20 | ≤ 1.5 x limit | yes |" in page_text(
        [(CURVES, drawn)]
    )


def test_a_curve_without_two_points_is_no_picture(drawn):
    drawn["rows"] = [row for row in drawn["rows"] if row["at"] != 64]
    assert not pictures(CURVES, drawn)
    assert ".svg" not in page_text([(CURVES, drawn)])
    assert not pictures(CURVES, None)


# --- what is on offer ---------------------------------------------------------------------------


def test_contenders_have_names_of_their_own_and_programs_that_compile():
    assert len(BY_NAME) == len(CONTENDERS) + len(OTHERS)
    for contender in CONTENDERS:
        compile(pool.program_text(contender), contender.name, "exec")


def test_a_contender_that_is_not_installed_says_so():
    class Nowhere(Contender):
        module = "no_such_module_anywhere"

    assert Nowhere().missing() == "not installed"


@pytest.mark.parametrize("suite", SUITES, ids=lambda suite: suite.name)
def test_every_case_names_a_function_and_only_limits_that_are_measured(suite):
    limits = {row.key for row in suite.limits.rows}
    for case in (*suite.cases, pool.SMOKE, suite.limits):
        module, _, name = case.function.partition(":")
        assert callable(getattr(importlib.import_module(module), name))
        assert {row.limit for row in case.rows if row.limit} <= limits
        assert set(case.quick) <= set(case.full)
        assert set(case.contenders) <= set(BY_NAME)
    assert {*suite.contenders, *suite.leaves_out, *suite.quick_leaves_out} <= set(BY_NAME)


@pytest.mark.parametrize("suite", SUITES, ids=lambda suite: suite.name)
def test_no_two_rows_share_a_name(suite):
    keys = [row.key for row in suite.rows()]
    assert len(keys) == len(set(keys))


def test_only_who_has_a_rare_feature_takes_part_where_it_is_needed():
    assert BY_NAME["shoal"].lack("empty") is None
    assert BY_NAME["joblib"].lack("share") is None
    assert BY_NAME["loky"].lack("share")
    assert BY_NAME["loky"].lack("heal")


def test_a_quick_run_has_slow_starters_only_by_name():
    assert "ray" not in harness.parse(data_suite.SUITE, ["--quick"]).contenders
    assert harness.parse(data_suite.SUITE, ["--quick", "--only", "ray"]).contenders == ("ray",)
    assert "ray" in harness.parse(data_suite.SUITE, []).contenders


def test_a_quick_run_says_whom_it_left_out():
    assert "ray" in harness.parse(pool.SUITE, ["--quick"]).left_to_full
    assert not harness.parse(pool.SUITE, ["--quick", "--only", "ray"]).left_to_full
    assert not harness.parse(pool.SUITE, []).left_to_full


def test_a_quick_run_has_the_long_cases_only_by_name():
    assert "result-read" not in [case.key for case in harness.parse(data_suite.SUITE, ["--quick"]).cases]
    assert [case.key for case in harness.parse(data_suite.SUITE, ["--quick", "--rows", "result-read"]).cases] == [
        "result-read"
    ]


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
