"""Thousands of kills of processes that use locks, semaphores and conditions: nothing hangs, everything counts right."""

from __future__ import annotations

import time

import pytest

from tests.stress.sync_chaos import COUNTER, EXPLAINED, ITEMS, PERMITS, SHADOW, Arena, Crowd

pytestmark = pytest.mark.hang_limit(300)

KILLS = 3_000
#: A kill and its replacement take some milliseconds; nothing that waits may hold this up.
LIMIT_S = 240.0


@pytest.mark.parametrize("seed", range(3))
def test_counts_are_exact_or_explained_and_nothing_hangs(seed):
    arena = Arena()
    crowd = Crowd(arena, 4, seed)
    started = time.monotonic()
    try:
        for _ in range(KILLS):
            time.sleep(crowd.dice.random() * 0.003)
            crowd.kill_one()
        assert time.monotonic() - started < LIMIT_S
    finally:
        crowd.end()
    with arena.lock.acquire(timeout=10) as hold:
        arena.repair(hold)
        assert arena.words[COUNTER] == arena.words[SHADOW] > KILLS
        assert arena.words[EXPLAINED] <= arena.lock.statistics().abandoned <= KILLS + 4
    with arena.rlock.acquire(timeout=10):
        pass
    for _ in range(PERMITS):
        assert arena.semaphore.acquire(block=False)
    assert not arena.semaphore.acquire(block=False)
    with arena.condition.acquire(timeout=10):
        assert arena.words[ITEMS] >= 0
        arena.condition.wait(0.3)
    assert arena.condition.statistics().waiting == 0
    arena.words.release()
