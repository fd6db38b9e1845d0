"""Every history of a small pool keeps the dispatcher's invariants D1 to D6.

Two workers; two to four tasks in one to three jobs; at most one death. In each state every task is in exactly one place,
`waiting` is exact and a worker owes what it has; at the end everything is settled once, or given up, and the dispatcher
is empty. A caller may run tasks itself while no worker is there. Batches are as `batching.share` makes them, and as two policies make them that are worse than any sensible one.
"""

from __future__ import annotations

import time

import pytest

import shoal._pool.dispatcher as dispatcher_module
from tests.model.explore import explore
from tests.model.world import LONG, SHORT, UNKNOWN, Limits, Pool


def greedy(pace, grain, held_s, waiting, workers, owed):
    """Everything to the first who asks."""
    return waiting


def pairs(pace, grain, held_s, waiting, workers, owed):
    """Two to everybody, also to who has work."""
    return 2 if held_s <= 2 * (pace.cost_s or 1.0) else 0


#: what goes wrong -> (batching or None for the real one, limits, max_tasks_per_worker, jobs as (tasks, cost))
WORLDS = {
    "nothing": (None, Limits(slow_sends=True), None, [(3, SHORT), (1, UNKNOWN)]),
    "death, retry": (None, Limits(deaths=1, retries=1), None, [(3, SHORT), (1, UNKNOWN)]),
    "death, long tasks": (None, Limits(deaths=1), None, [(2, LONG), (2, UNKNOWN)]),
    "death before sending": (greedy, Limits(deaths=1, slow_sends=True), None, [(3, SHORT)]),
    "death, pairs": (pairs, Limits(deaths=1), None, [(4, SHORT)]),
    "death, recall": (greedy, Limits(deaths=1, recalls=1), None, [(3, SHORT)]),
    "death, recall, give-up": (greedy, Limits(deaths=1, recalls=1, give_ups=1), None, [(3, SHORT)]),
    "recall, cancel": (pairs, Limits(recalls=1, give_ups=1), None, [(1, SHORT), (1, SHORT), (1, SHORT)]),
    "death, recall, cancel": (pairs, Limits(deaths=1, recalls=1, give_ups=1), None, [(1, SHORT), (1, SHORT)]),
    "death, recall, worn-out worker": (None, Limits(deaths=1, recalls=1), 2, [(3, LONG)]),
    "recall, give-up, worn-out worker": (greedy, Limits(recalls=1, give_ups=1), 2, [(3, LONG)]),
    "close, recall, give-up": (greedy, Limits(recalls=1, closes=1, give_ups=1), None, [(1, SHORT), (1, SHORT)]),
    "close, death": (greedy, Limits(deaths=1, closes=1), None, [(2, SHORT)]),
    "claims": (None, Limits(claims=2, slow_sends=True), None, [(4, SHORT), (1, UNKNOWN)]),
    "claims, death": (None, Limits(claims=2, deaths=1), None, [(4, SHORT)]),
    "claims, death, retry, recall": (greedy, Limits(claims=1, deaths=1, retries=1, recalls=1), None, [(3, SHORT)]),
    "claims, death, give-up": (pairs, Limits(claims=2, deaths=1, give_ups=1), None, [(4, SHORT)]),
    "claims, close, give-up": (greedy, Limits(claims=2, closes=1, give_ups=1), None, [(2, SHORT)]),
    "unpicklable item": (
        greedy,
        Limits(deaths=1, recalls=1, slow_sends=True, unsendable=("a", 1)),
        None,
        [(3, SHORT)],
    ),
}


@pytest.mark.parametrize("trouble", WORLDS)
def test_every_history_keeps_the_invariants(trouble, monkeypatch):
    batching, limits, max_tasks, jobs = WORLDS[trouble]
    if batching is not None:
        monkeypatch.setattr(dispatcher_module, "share", batching)
    began = time.monotonic()
    states = explore(Pool.of(limits, max_tasks, *jobs))
    print(f"{trouble}: {states} states in {time.monotonic() - began:.1f} s")
    assert states > 100
