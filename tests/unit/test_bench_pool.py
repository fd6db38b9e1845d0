"""The pool benchmark's own arithmetic: how much of everything the slow get."""

from __future__ import annotations

import pytest

from benchmarks import pool


@pytest.mark.parametrize(("rate", "tasks"), [(1e6, 20_000), (4_000, 20_000), (2_000, 3_000), (100, pool.GUESSED_BY)])
def test_the_slow_get_as_many_tasks_as_take_a_moment(monkeypatch, rate, tasks):
    now = [0.0]
    monkeypatch.setattr(pool.time, "perf_counter", lambda: now[0])

    def run(function, items):
        now[0] += len(items) / rate
        return list(items)

    assert pool._fitting(20_000, run) == pytest.approx(tasks, rel=0.01)


def test_every_contender_takes_part_in_every_row_or_says_why_not():
    """Of all there are: nobody is left out of the pool's rows as a whole."""
    assert not pool.SUITE.leaves_out
    assert not any(case.contenders for case in pool.SUITE.cases)
