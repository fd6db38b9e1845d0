"""The storms of `tests/crash/test_storm.py`, longer and with other dice.

Role: repetition; `make stress` only. Owner: pytest.
"""

from __future__ import annotations

import signal

import pytest

from tests.crash import storms, tasks

pytestmark = pytest.mark.hang_limit(600)

RETRIES = 50
SEEDS = range(5)
PERIODS_S = {"forkserver": 0.02, "fork": 0.02, "spawn": 0.1}
COUNTS = {"forkserver": 20_000, "fork": 20_000, "spawn": 4_000}


@pytest.fixture
def stormy(pool_factory):
    return pool_factory(3, retries=RETRIES, backoff_s=0.001, initializer=tasks.warm)


@pytest.mark.parametrize("seed", SEEDS)
def test_every_submitted_task_gives_its_result_once(stormy, start_method, seed):
    storms.submit_through(stormy, COUNTS[start_method], 0.0002, period_s=PERIODS_S[start_method], seed=seed)


@pytest.mark.parametrize("seed", SEEDS)
def test_every_mapped_item_gives_its_result_once(stormy, start_method, seed):
    storms.map_through(stormy, COUNTS[start_method] // 2, 0.0002, period_s=PERIODS_S[start_method], seed=seed)


@pytest.mark.parametrize("seed", SEEDS)
def test_errors_stay_with_their_items(stormy, start_method, seed):
    count = COUNTS[start_method] // 2
    storms.map_with_failures_through(stormy, count, 0.0002, period_s=PERIODS_S[start_method], seed=seed)


@pytest.mark.parametrize("seed", SEEDS)
def test_stopped_workers_cost_their_timeout_and_nothing_else(pool_factory, seed):
    pool = pool_factory(2, retries=RETRIES, backoff_s=0.001, timeout=0.05, initializer=tasks.warm)
    storms.submit_through(pool, 5_000, 0.0002, period_s=0.03, signum=signal.SIGSTOP, seed=seed)


@pytest.mark.parametrize("seed", SEEDS)
def test_stopped_workers_do_not_hold_up_a_map(pool_factory, seed):
    pool = pool_factory(2, retries=RETRIES, backoff_s=0.001, timeout=0.05, initializer=tasks.warm)
    storms.map_through(pool, 3_000, 0.0002, period_s=0.03, signum=signal.SIGSTOP, seed=seed)


@pytest.mark.parametrize("seed", SEEDS)
def test_two_storms_at_once(pool_factory, seed):
    """Some workers die while others stop."""
    pool = pool_factory(3, retries=RETRIES, backoff_s=0.001, timeout=0.1, initializer=tasks.warm)
    with storms.Storm(pool, signal.SIGSTOP, 0.05, seed + 100):
        storms.map_through(pool, 2_000, 0.0002, period_s=0.05, seed=seed)
