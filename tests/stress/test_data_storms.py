"""A thousand rounds of large data while workers are killed, with several dice.

Role: repetition; `make stress` only. Owner: pytest.
"""

from __future__ import annotations

import pytest

from tests.crash import data_storm
from tests.stress import data_chaos

pytestmark = pytest.mark.hang_limit(900)

PERIOD_S = {"forkserver": 0.03, "fork": 0.03, "spawn": 0.3}


@pytest.mark.parametrize("seed", range(3))
def test_large_data_is_right_and_returns(pool_factory, start_method, seed):
    pool = pool_factory(2, retries=50, backoff_s=0.001)
    assert data_storm.rounds_through(pool, 1_000, PERIOD_S[start_method], seed) > 20


def test_large_data_is_right_and_returns_when_there_is_little_room(pool_factory, start_method):
    pool = pool_factory(2, retries=50, backoff_s=0.001, shared_memory_limit="8MiB")
    assert data_storm.rounds_through(pool, 500, PERIOD_S[start_method], seed=7) > 10


@pytest.mark.start_methods("forkserver", "fork")  # of "spawn" a third death may come before a task's third run: poison
@pytest.mark.parametrize("limit", [None, "8MiB"])
def test_everything_at_once(pool_factory, start_method, limit):
    pool = pool_factory(2, retries=50, backoff_s=0.001, shared_memory_limit=limit)
    assert data_chaos.chaos(pool, 30) > 20
