"""Whether workers are worth it, and how many: numbers in, numbers out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal._pool.choice import LEAST_GAIN, MOST_RISK, choose, finish_s, start_s

tasks = st.integers(1, 10**7)
costs = st.floats(1e-8, 10.0)
carries = st.floats(0.0, 1.0)
spent = st.floats(0.0, 100.0)
sizes = st.integers(0, 64)


def asked(count, cost_s, carry_s=0.0, *, spent_s=0.02, most=2, ready=0, running=False):
    return choose(count, cost_s, carry_s, spent_s=spent_s, most=most, ready=ready, running=running)


@given(tasks, costs, carries, spent, sizes, sizes, st.booleans())
def test_workers_are_none_or_at_least_two_and_never_more_than_may_be_or_have_work(
    count, cost_s, carry_s, spent_s, most, ready, running
):
    workers = asked(count, cost_s, carry_s, spent_s=spent_s, most=most, ready=min(ready, most), running=running)
    assert workers == 0 or 2 <= workers <= min(most, count)


@given(tasks, costs, carries, spent, sizes, sizes, st.booleans())
def test_whoever_is_brought_in_saves_time_by_the_estimate_and_risks_little(
    count, cost_s, carry_s, spent_s, most, ready, running
):
    ready = min(ready, most)
    workers = asked(count, cost_s, carry_s, spent_s=spent_s, most=most, ready=ready, running=running)
    if workers:
        here_s = count * cost_s
        there_s = start_s(workers, ready, running=running) + finish_s(count, cost_s, carry_s, workers)
        assert there_s < (1 - LEAST_GAIN) * here_s
        assert start_s(0, 0, running=running) <= MOST_RISK * (spent_s + here_s)


@given(tasks, costs, carries, st.integers(1, 64))
def test_the_estimate_is_never_better_than_a_fair_division(count, cost_s, carry_s, workers):
    assert finish_s(count, cost_s, carry_s, workers) >= count * cost_s / workers
    assert finish_s(count, cost_s, carry_s, workers) >= count * carry_s  # one process packs and unpacks all of it


@given(tasks, costs, carries, spent, sizes)
def test_a_pool_that_runs_is_never_less_welcome_than_one_to_be_started(count, cost_s, carry_s, spent_s, most):
    if asked(count, cost_s, carry_s, spent_s=spent_s, most=most):
        assert asked(count, cost_s, carry_s, spent_s=spent_s, most=most, ready=most, running=True)


@pytest.mark.parametrize("running", [True, False])
def test_one_processor_brings_in_nobody(running):
    assert asked(10**6, 1.0, most=1, running=running) == 0
    assert asked(10**6, 1.0, most=0, running=running) == 0


def test_one_task_brings_in_nobody():
    assert asked(1, 100.0, most=8, running=True, ready=8) == 0


def test_long_tasks_bring_in_as_many_as_there_are_tasks():
    assert asked(3, 10.0, most=64) == 3
    assert asked(1000, 1.0, most=8) == 8


def test_what_costs_more_to_send_than_to_run_stays():
    assert asked(10**6, 1e-5, carry_s=2e-5, running=True, ready=8, most=8) == 0


def test_more_workers_than_the_sending_can_feed_are_not_started():
    """At a quarter of a task's time to send one, the fifth worker has nothing to do."""
    assert 2 <= asked(10**5, 1e-3, carry_s=2.5e-4, most=64) <= 6


@pytest.mark.parametrize(("left_s", "wanted"), [(0.1, 0), (10.0, 2)])
def test_a_pool_is_started_only_for_what_lasts(left_s, wanted):
    assert asked(1000, left_s / 1000) == wanted


def test_a_running_pool_is_used_for_much_less():
    assert asked(1000, 5e-5, running=True, ready=2) == 2
    assert asked(1000, 5e-5) == 0
