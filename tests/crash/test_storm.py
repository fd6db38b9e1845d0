"""Workers die, or stop, in a hail: every result comes, is right, and comes once.

Role: bounded versions of the storms of `storms.py`; `tests/stress` has the long ones. Owner: pytest.
"""

from __future__ import annotations

import signal

import pytest

from tests.crash import storms, tasks

#: Runs a task may have in a storm.
RETRIES = 50
#: How hard it blows. A process made by "spawn" needs some 0.1 s to come.
BLOWS = {
    "forkserver": {"count": 10_000, "task_s": 0.0002, "period_s": storms.PERIOD_S},
    "fork": {"count": 10_000, "task_s": 0.0002, "period_s": storms.PERIOD_S},
    "spawn": {"count": 2_000, "task_s": 0.001, "period_s": 5 * storms.PERIOD_S},
}
#: Fewer hits than this is no storm. Far below what to expect, because the machine may be fast.
LEAST_HITS = 5


@pytest.fixture
def stormy(pool_factory):
    # The initializer has the worker import what its tasks need while it is starting, where the storm spares it.
    return pool_factory(2, retries=RETRIES, backoff_s=0.001, initializer=tasks.warm)


def test_every_submitted_task_gives_its_result_once_while_workers_are_killed(stormy, start_method):
    hits = storms.submit_through(stormy, **BLOWS[start_method])
    assert hits >= LEAST_HITS
    assert stormy.statistics().workers_lost > 0


def test_every_mapped_item_gives_its_result_once_while_workers_are_killed(stormy, start_method):
    blows = BLOWS[start_method]
    assert storms.map_through(stormy, **(blows | {"count": blows["count"] // 4})) >= LEAST_HITS


def test_errors_stay_with_their_items_while_workers_are_killed(stormy, start_method):
    storms.map_with_failures_through(stormy, **(BLOWS[start_method] | {"count": 2_000}))


def test_stopped_workers_cost_their_timeout_and_nothing_else(pool_factory):
    """SIGSTOP instead of SIGKILL: only the clock of the running task can tell."""
    pool = pool_factory(2, retries=RETRIES, backoff_s=0.001, timeout=0.05, initializer=tasks.warm)
    hits = storms.submit_through(pool, count=1_000, task_s=0.0002, period_s=storms.PERIOD_S, signum=signal.SIGSTOP)
    assert hits > 2
    assert pool.statistics().timeouts > 0


def test_stopped_workers_do_not_hold_up_a_map(pool_factory):
    pool = pool_factory(2, retries=RETRIES, backoff_s=0.001, timeout=0.05, initializer=tasks.warm)
    assert storms.map_through(pool, count=500, task_s=0.0002, period_s=storms.PERIOD_S, signum=signal.SIGSTOP) > 2
