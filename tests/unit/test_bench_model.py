"""The benchmarks' arithmetic: medians, verdicts, order of rounds, how figures are written."""

from __future__ import annotations

import math

import pytest

from benchmarks.model import Board, Case, Outcome, Row, Suite, Summary, Target, interleave, judge, percentile, show

FASTER = Row("speed", "tasks", "tasks/s", higher_is_better=True, target=Target(3.0, of_best=True))
LIMITS = Case("limits", "m:f", ())
THREE_TIMES_LOKY = Row("speed", "tasks", "tasks/s", higher_is_better=True, target=Target(3.0, of="loky"))
SOONER = Row("time", "first result", "ms", target=Target(80.0))


def ok(**figures: float) -> Outcome:
    return Outcome("ok", figures=figures)


def test_a_figure_is_the_median_of_the_rounds_that_succeeded():
    board = Board()
    for outcome in (ok(speed=1.0), Outcome("failed", reason="killed"), ok(speed=9.0), ok(speed=2.0)):
        board.add("submit", "shoal", outcome)
    assert board.summary("submit", "shoal", "speed") == Summary(2.0, 1.0, 9.0, (1.0, 9.0, 2.0))
    assert [failure.reason for failure in board.failures("submit", "shoal")] == ["killed"]


def test_a_contender_is_left_out_of_a_case_after_two_bad_rounds_or_a_missing_feature():
    board = Board()
    board.add("kill", "loky", Outcome("n/a", reason="one dead worker breaks the executor"))
    board.add("kill", "pebble", Outcome("hung", reason="hung"))
    assert board.struck_out("kill", "loky")
    assert not board.struck_out("kill", "pebble")
    board.add("kill", "pebble", Outcome("failed", reason="failed"))
    assert board.struck_out("kill", "pebble")
    assert not board.struck_out("submit", "pebble")


@pytest.mark.parametrize(
    ("row", "medians", "best", "ratio", "reached"),
    [
        (FASTER, {"shoal": 90.0, "loky": 9.0, "pebble": 30.0}, "pebble", 3.0, True),
        (FASTER, {"shoal": 89.0, "pebble": 30.0}, "pebble", 89 / 30, False),
        (FASTER, {"shoal": 90.0}, None, None, None),
        (FASTER, {"pebble": 30.0}, "pebble", None, None),
        (THREE_TIMES_LOKY, {"shoal": 90.0, "loky": 30.0, "pebble": 60.0}, "pebble", 1.5, True),
        (THREE_TIMES_LOKY, {"shoal": 90.0, "pebble": 60.0}, "pebble", 1.5, None),
        (SOONER, {"shoal": 60.0, "loky": 600.0, "pebble": 120.0}, "pebble", 0.5, True),
        (SOONER, {"shoal": 81.0}, None, None, False),
        (SOONER, {"shoal": 60.0, "loky": math.nan}, None, None, True),
    ],
)
def test_verdict(row, medians, best, ratio, reached):
    verdict = judge(row, medians, failed=False)
    assert verdict.best_peer == best
    assert verdict.ratio == (pytest.approx(ratio) if ratio is not None else None)
    assert verdict.reached is reached


def test_a_target_is_not_reached_by_a_contender_that_failed_in_a_round():
    assert judge(SOONER, {"shoal": 60.0}, failed=True).reached is False


def test_each_round_runs_every_contender_of_a_row_side_by_side_and_begins_with_another():
    cases = [Case("a", "m:f", ()), Case("b", "m:g", ())]
    rounds = [[(case.key, name) for case, name in interleave(cases, "xyz", number)] for number in range(3)]
    assert rounds[0] == [("a", "x"), ("a", "y"), ("a", "z"), ("b", "y"), ("b", "z"), ("b", "x")]
    assert {names[0][1] for names in rounds} == set("xyz")
    assert all(sorted(names) == sorted(rounds[0]) for names in rounds)


def test_a_case_may_have_fewer_rounds_and_contenders_than_the_others():
    cases = [Case("a", "m:f", (), rounds=1, contenders=("x", "z")), Case("b", "m:g", ())]
    assert list(interleave(cases, "xyz", 0))[:2] == [(cases[0], "x"), (cases[0], "z")]
    assert {case.key for case, _ in interleave(cases, "xyz", 1)} == {"b"}


def test_the_next_round_is_expected_to_take_as_long_as_its_cases_longest():
    board = Board()
    for contender, took_s in (("shoal", 1.0), ("shoal", 3.0), ("loky", 2.0)):
        board.add("a", contender, Outcome("ok", took_s=took_s))
    board.add("b", "shoal", Outcome("ok", took_s=50.0))
    assert board.next_round_s([Case("a", "m:f", ())], ["shoal", "loky"]) == 5.0
    assert board.next_round_s([Case("a", "m:f", ())], ["loky"]) == 2.0


def test_a_contender_may_take_part_in_fewer_rounds():
    suite = Suite("s", "S", "?", cases=(), limits=LIMITS, most_rounds={"ray": 1})
    assert suite.taking_part(["shoal", "ray"], 0) == ["shoal", "ray"]
    assert suite.taking_part(["shoal", "ray"], 1) == ["shoal"]


@pytest.mark.parametrize(("ours", "limit", "reached"), [(15.0, 10.0, True), (16.0, 10.0, False), (1.0, None, None)])
def test_a_target_may_be_a_multiple_of_what_the_machine_can_do(ours, limit, reached):
    row = Row("copy", "an array", "ms", target=Target(1.5, of_limit=True))
    assert row.target_text() == "≤ 1.5 x limit"
    assert judge(row, {"shoal": ours, "loky": 400.0}, failed=False, limit=limit).reached is reached


def test_no_contender_means_an_empty_round():
    assert list(interleave([Case("a", "m:f", ())], [], 1)) == []


def test_quick_parameters_replace_full_ones():
    case = Case("a", "m:f", (), full={"tasks": 20_000, "workers": 2}, quick={"tasks": 10})
    assert case.params(quick=False) == {"tasks": 20_000, "workers": 2}
    assert case.params(quick=True) == {"tasks": 10, "workers": 2}


@pytest.mark.parametrize(("share", "expected"), [(0.5, 50), (0.99, 99), (1.0, 100), (0.001, 1)])
def test_percentile_is_a_value_that_was_measured(share, expected):
    assert percentile(list(range(100, 0, -1)), share) == expected


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (13_120.4, "tasks/s", "13.1 k"),
        (6_420_000.0, "items/s", "6.42 M"),
        (0.9712, "", "0.971"),
        (62.04, "µs", "62.0"),
        (1900.0, "µs", "1900"),
        (0.0, "", "0"),
        (None, "ms", ""),
    ],
)
def test_figures_show_three_digits(value, unit, text):
    assert show(value, unit) == text


def test_targets_say_their_direction_and_what_they_are_measured_against():
    assert FASTER.target_text() == "≥ 3 x best"
    assert SOONER.target_text() == "≤ 80 ms"
    assert Row("x", "x", "x").target_text() == ""


def test_a_suite_lists_its_rows_in_order():
    suite = Suite("s", "S", "?", cases=(Case("a", "m:f", (FASTER,)), Case("b", "m:f", (SOONER,))), limits=LIMITS)
    assert suite.rows() == [FASTER, SOONER]
