"""A table drawn as bars: who is right of whom, and what is written."""

from __future__ import annotations

import re
from xml.etree import ElementTree as ET

import pytest

from benchmarks import pool
from benchmarks.bars import Lane, better, draw
from benchmarks.model import Board, Outcome
from benchmarks.report import bar_lanes, record

SVG = "{http://www.w3.org/2000/svg}"
AHEAD = Lane("ahead <of> all", 4.0, (1.0, 0.5), 3.0, "4 beside 1")
BEHIND = Lane("behind", 0.25, (1.0, 0.01))


def drawn(*lanes):
    return ET.fromstring(draw("Us & them", lanes))


def lanes_of(svg):
    """Return the bars, without the one in the legend, as (left, right)."""
    found = [e for e in svg.iter(f"{SVG}rect") if e.get("class") == "fill c0"][1:]
    return [(float(e.get("x")), float(e.get("x")) + float(e.get("width"))) for e in found]


def test_better_is_right_of_the_best_of_the_others_and_worse_left_of_it():
    svg = drawn(AHEAD, BEHIND)
    (axis,) = (e.get("d") for e in svg.iter(f"{SVG}path") if e.get("class") == "axis")
    one = float(re.match(r"M([\d.]+)", axis).group(1))
    (ahead, behind) = lanes_of(svg)
    assert ahead[0] == pytest.approx(one, abs=0.2)
    assert behind[1] == pytest.approx(one, abs=0.2)
    assert ahead[1] - ahead[0] == pytest.approx(behind[1] - behind[0], rel=0.01)  # both by a factor of four


def test_words_and_factors_are_written_and_all_stays_inside():
    svg = drawn(AHEAD, BEHIND, Lane("far", 300.0, (1.0, 1e-9)))
    words = [e.text for e in svg.iter(f"{SVG}text")]
    assert {"Us & them", "ahead <of> all", "4 beside 1", "4 x", "0.25 x", "300 x"} <= set(words)
    width, height = map(float, svg.get("viewBox").split()[2:])
    for circle in svg.iter(f"{SVG}circle"):
        assert 0 < float(circle.get("cx")) < width
        assert 0 < float(circle.get("cy")) < height
    assert all(0 < left < right < width for left, right in lanes_of(svg))


def test_a_target_is_drawn_where_there_is_one():
    targets = [e for e in drawn(AHEAD, BEHIND).iter(f"{SVG}path") if e.get("class") == "target"]
    assert len(targets) == 2  # one is the legend's


def test_nothing_to_compare_is_no_picture():
    with pytest.raises(ValueError, match="nothing"):
        draw("t", [])


@pytest.mark.parametrize(("value", "best", "higher", "factor"), [(30.0, 10.0, True, 3.0), (30.0, 10.0, False, 1 / 3)])
def test_better_is_more_whichever_direction_a_figure_has(value, best, higher, factor):
    assert better(value, best, higher_is_better=higher) == pytest.approx(factor)


def test_rows_with_a_figure_of_ours_and_of_another_are_lanes():
    board = Board()
    for name, submit, p50 in (("shoal", 90.0, 20.0), ("loky", 10.0, 80.0), ("pebble", 30.0, 40.0)):
        board.add("submit", name, Outcome("ok", figures={"submit": submit}))
        board.add("latency", name, Outcome("ok", figures={"p50": p50}))
    board.add("kill", "shoal", Outcome("ok", figures={"kill": 3.0}))
    made = record(pool.SUITE, pool.SUITE.cases, ["shoal", "loky", "pebble"], board, {})
    first, second = bar_lanes(pool.SUITE, made)
    assert (first.ours, first.others, first.target) == (3.0, (1 / 3, 1.0), 3.0)
    assert (second.ours, second.others) == (2.0, (0.5, 1.0))
    assert second.target == pytest.approx(1 / 0.6)
    assert first.says == "90.0 tasks/s beside 30.0 tasks/s of pebble"
