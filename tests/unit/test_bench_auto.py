"""The loop benchmark's own arithmetic: which maps there are, and what is made of their figures."""

from __future__ import annotations

import pytest

from benchmarks import auto

ROWS = {row.key for row in auto.SUITE.rows()}


def test_every_cost_is_measured_and_every_map_has_its_row():
    found = list(auto.cells(auto.FULL))
    assert {cost for cost, _ in found} == set(auto.COSTS)
    assert {f"{state}_{cost}_{size}" for state in ("cold", "warm") for cost, size in found} <= ROWS
    assert set(auto.cells(auto.QUICK)) <= set(found)


def test_a_map_has_two_tasks_at_least_and_one_of_seconds_three():
    sizes = [
        auto.load_of(cost, auto.SIZES[size][0]) for cost, size in auto.cells(auto.FULL) if auto.COSTS[cost] >= 0.01
    ]
    assert min(len(load.items) for load in sizes) == 2
    assert len(auto.load_of("1 s", 2.0).items) == 3
    assert [size for cost, size in auto.cells(auto.FULL) if cost == "1 s"] == ["2 s"]


def test_the_worst_of_a_cost_and_of_all_are_told():
    figures = auto._figures("warm", {("1 µs", "20 ms"): 1.1, ("1 µs", "200 ms"): 0.9, ("1 ms", "20 ms"): 1.4})
    assert (figures["warm_1 µs"], figures["warm_worst"]) == (1.1, 1.4)
    assert figures["note"] == "worst with tasks of 1 ms in a loop of 20 ms"
    assert set(figures) - {"note"} <= ROWS


@pytest.mark.parametrize(("ratio", "times"), [(1.0, 3), (6.0, 1)])
def test_who_is_far_behind_is_measured_once(ratio, times):
    seen = []

    def measure():
        seen.append(1)
        return ratio

    assert auto._median("20 ms", measure) == ratio
    assert len(seen) == times


def test_the_loop_is_measured_before_and_after(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(auto.time, "perf_counter", lambda: now[0])
    taken = iter([2.0, 4.0])

    def fn(item):
        now[0] += next(taken)

    def run(fn, items):
        now[0] += 6.0

    assert auto.against_loop(auto.Load(fn, [1]), run) == pytest.approx(2.0)
