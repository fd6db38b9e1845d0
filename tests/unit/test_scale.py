"""The dispatcher with many workers, on paper: what a task costs it, counted in steps; and how long the work takes.

The figures in time are in benchmarks/scale.py; nothing here looks at a clock.
"""

from __future__ import annotations

import sys
from contextlib import contextmanager

import pytest

from benchmarks.simulation import Costs, SimulatedPool, ideal_s
from shoal._pool import batching, care, dispatcher
from shoal._pool.batching import WHOLE

PURE = {batching.__file__, dispatcher.__file__}
#: Steps with many workers against steps with few: nothing that looks at each worker stays below.
FLAT = 2.0
FEW, MANY = 8, 256


class Steps:
    """Counts the lines of the pure files that run inside `watch`."""

    def __init__(self):
        self.count = 0

    @contextmanager
    def watch(self):
        before = sys.gettrace()
        sys.settrace(self._call)
        try:
            yield
        finally:
            sys.settrace(before)

    def _call(self, frame, event, argument):
        return self._line if frame.f_code.co_filename in PURE else None

    def _line(self, frame, event, argument):
        self.count += event == "line"
        return self._line


def steps_each_time(workers, run, costs, each):
    """Return how many steps it takes, on average, to take in one report and to hand out what there is."""
    steps = Steps()
    pool = SimulatedPool(workers, watch=steps.watch)
    getattr(pool, run)(costs, each * workers)
    return steps.count / pool.uses


#: what -> (how it is asked for, what tasks cost, tasks per worker)
LOADS = {
    "a map": ("run_map", Costs.spread(1e-3), 500),
    "a skewed map": ("run_map", Costs.skewed(1e-5), 1_000),
    "single tasks": ("run_single", Costs.spread(1e-3), 25),
    "long tasks": ("run_map", Costs.spread(0.2), 10),
}


@pytest.mark.parametrize("load", LOADS)
def test_what_a_report_costs_the_dispatcher_does_not_grow_with_the_workers(load):
    few, many = (steps_each_time(workers, *LOADS[load]) for workers in (FEW, MANY))
    assert many <= FLAT * few


@pytest.mark.parametrize(
    ("run", "workers", "costs", "tasks", "least"),
    [
        ("run_map", 2, Costs.spread(1e-4), 10_000, 0.99),
        ("run_map", 8, Costs.spread(1e-4), 10_000, 0.98),
        ("run_map", 8, Costs.spread(1e-4), 100_000, 0.99),
        ("run_map", 64, Costs.spread(0.01), 20_000, 0.98),
        ("run_map", 256, Costs.spread(1e-4), 300_000, 0.97),
        ("run_map", 2, Costs.skewed(1e-5), 10_000, 0.98),
        ("run_map", 8, Costs.skewed(1e-5), 100_000, 0.98),
        ("run_map", 8, Costs.skewed(1e-4), 20_000, 0.97),
        ("run_single", 8, Costs.spread(1e-3), 5_000, 0.98),
        ("run_single", 8, Costs.skewed(1e-4), 10_000, 0.92),
    ],
)
def test_the_work_takes_little_longer_than_it_must(run, workers, costs, tasks, least):
    """And every task settles once: the simulation sees to that (S1)."""
    pool = SimulatedPool(workers)
    taken_s = getattr(pool, run)(costs, tasks)
    assert ideal_s(costs, tasks, workers) / taken_s >= least
    assert not pool.dispatcher.has_work
    assert pool.dispatcher.idle == workers


@pytest.mark.parametrize("workers", [2, 8, 64])
def test_of_even_tasks_hardly_any_is_taken_back(workers):
    """Pieces are such that all end together; taking back costs a round trip and leaves its worker idle."""
    pool = SimulatedPool(workers)
    tasks = 5_000 * workers
    pool.run_map(Costs.spread(1e-4), tasks)
    assert pool.recalled <= tasks // 100


#: One task of half a second among a thousand of one millisecond.
STRAGGLER = Costs([1e-3] * 600 + [0.5] + [1e-3] * 399)


class WatchedPool(SimulatedPool):
    """Also knows when the long task was settled."""

    long_s = 0.0

    def _settle(self, work, first, count):
        super()._settle(work, first, count)
        if first <= 600 < first + count:
            self.long_s = self.now_s


def test_what_is_behind_a_long_task_runs_elsewhere():
    """Where the long task begins is up to the pieces; from then on nothing waits for it."""
    pool = WatchedPool(2)
    taken_s = pool.run_map(STRAGGLER, 1_000)
    assert taken_s <= pool.long_s + 1e-3
    assert pool.long_s <= 0.3 + WHOLE.hold_s + 0.5
    assert pool.recalled > 0


def test_without_taking_back_it_would_wait(monkeypatch):
    """So that the test before this one is known to see anything."""
    for pause in ("RECALL_S", "FLUSH_S", "_SLOWEST_S"):
        monkeypatch.setattr(care, pause, 100.0)
    pool = WatchedPool(2)
    assert pool.run_map(STRAGGLER, 1_000) > pool.long_s + 0.02


# --- the simulation itself ----------------------------------------------------------------------


def test_the_same_run_has_the_same_history():
    def history():
        pool = SimulatedPool(4)
        return pool.run_map(Costs.skewed(1e-4), 3_000), pool.uses, pool.recalled

    assert history() == history()


def test_costs_repeat_and_add_up():
    costs = Costs([1.0, 2.0, 3.0])
    assert [costs.total_s(count) for count in range(8)] == [0, 1, 3, 6, 7, 9, 12, 13]


@pytest.mark.parametrize(
    ("first", "elapsed_s", "begun"), [(0, 0.5, 1), (0, 1.5, 2), (1, 1.0, 1), (2, 3.5, 2), (4, 11.5, 6)]
)
def test_a_task_has_begun_when_those_before_it_are_over(first, elapsed_s, begun):
    assert Costs([1.0, 2.0, 3.0]).begun(first, elapsed_s) == begun


def test_one_of_a_hundred_takes_a_thousand_times_as_long():
    costs = Costs.skewed(1e-3)
    each = sorted(costs.total_s(index + 1) - costs.total_s(index) for index in range(100))
    assert each[-2:] == pytest.approx([1e-3, 1.0])
    assert Costs.spread(1e-3).total_s(1009) / 1009 == pytest.approx(1e-3, rel=0.01)
