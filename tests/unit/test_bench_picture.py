"""Curves drawn as SVG: what stands where, and what is left out."""

from __future__ import annotations

import re
from xml.etree import ElementTree as ET

import pytest

from benchmarks.picture import Axis, Line, decades, draw, size_text

KIB = 1024.0
OURS = Line("shoal", ((4 * KIB, 0.05), (16 * KIB, 0.2), (64 * KIB, 8.0)), "ours")
PEER = Line("a < b & c", ((4 * KIB, 0.01), (16 * KIB, 0.02)))
BOUND = Line("memcpy", ((4 * KIB, 9.0), (64 * KIB, 11.0)), "reference")
SVG = "{http://www.w3.org/2000/svg}"


def drawn(*lines: Line) -> ET.Element:
    return ET.fromstring(draw("One array", "size", "GB/s", lines))


def words(svg: ET.Element) -> list[str]:
    return [element.text for element in svg.iter(f"{SVG}text")]


def paths(svg: ET.Element, kind: str) -> list[str]:
    """Return the shapes of the curves of that class, without those of the legend."""
    found = [e.get("d") for e in svg.iter(f"{SVG}path") if kind in e.get("class", "").split()]
    return [path for path in found if "L" in path]


def test_a_picture_says_what_its_axes_and_lines_are():
    assert set(words(drawn(OURS, PEER, BOUND))) >= {
        *("One array", "size", "GB/s", "shoal", "a < b & c", "memcpy"),
        *("4 KiB", "16 KiB", "64 KiB", "0.01", "0.1", "1", "10", "100"),
    }


def test_our_line_is_drawn_last_and_the_reference_has_no_markers():
    svg = drawn(OURS, PEER, BOUND)
    curves = [e.get("class") for e in svg.iter(f"{SVG}path") if "L" in e.get("d") and "mark" not in e.get("class")]
    assert curves == ["line c1", "reference", "line c0 ours"]
    markers = [e.get("class") for e in svg.iter(f"{SVG}path") if "mark" in e.get("class")]
    assert markers.count("mark c0") == len(OURS.points) + 1  # and one in the legend
    assert markers.count("mark c1") == len(PEER.points) + 1


def test_our_colour_stays_ours_when_we_are_not_there():
    assert paths(drawn(PEER, BOUND), "c1")
    assert not paths(drawn(PEER, BOUND), "c0")


def test_higher_values_stand_higher_and_larger_sizes_further_right():
    (path,) = paths(drawn(OURS, BOUND), "ours")
    points = [tuple(map(float, pair.split())) for pair in path.lstrip("M").split("L")]
    assert [x for x, _ in points] == sorted(x for x, _ in points)
    assert [y for _, y in points] == sorted((y for _, y in points), reverse=True)


def test_everything_lies_inside_the_picture():
    svg = drawn(OURS, PEER, BOUND)
    width, height = map(float, svg.get("viewBox").split()[2:])
    for path in (*paths(svg, "line"), *paths(svg, "reference")):
        for x, y in (map(float, pair.split()) for pair in path.lstrip("M").split("L")):
            assert 0 < x < width
            assert 0 < y < height


def test_points_that_have_no_place_on_a_logarithmic_axis_are_left_out():
    odd = Line("odd", ((4 * KIB, 0.0), (16 * KIB, float("nan")), (64 * KIB, 1.0), (4 * KIB, float("inf"))), "ours")
    assert "nan" not in draw("t", "x", "y", [odd, PEER, BOUND]).lower()
    assert not paths(drawn(odd, PEER, BOUND), "ours")  # one point is a marker, not a line


@pytest.mark.parametrize("lines", [(), (Line("one", ((4 * KIB, 1.0),)),), (Line("none", ()),)])
def test_a_picture_of_fewer_than_two_places_is_refused(lines):
    with pytest.raises(ValueError, match="two places"):
        draw("t", "x", "y", lines)


def test_a_picture_has_colours_for_the_light_and_for_the_dark():
    text = draw("t", "x", "y", [OURS, BOUND])
    assert "prefers-color-scheme:dark" in text
    assert len(set(re.findall(r"--ink:(#\w+)", text))) == 2


@pytest.mark.parametrize(
    ("size", "text"), [(512, "512 B"), (4096, "4 KiB"), (256 * 1024, "256 KiB"), (1 << 20, "1 MiB"), (1 << 30, "1 GiB")]
)
def test_sizes_are_written_in_powers_of_1024(size, text):
    assert size_text(size) == text


@pytest.mark.parametrize(
    ("values", "ends"), [([0.02, 7.0], (0.01, 10.0)), ([1.0, 1.0], (1.0, 10.0)), ([0.001, 100.0], (0.001, 100.0))]
)
def test_an_axis_ends_at_powers_of_ten_around_its_values(values, ends):
    assert decades(values) == pytest.approx(ends)


def test_equal_factors_are_equal_distances():
    axis = Axis("x", 1.0, 10_000.0, 0.0, 400.0)
    assert [axis.place(10.0**power) for power in range(5)] == pytest.approx([0.0, 100.0, 200.0, 300.0, 400.0])
