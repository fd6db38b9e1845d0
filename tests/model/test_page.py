"""Wherever a worker dies, its page and its socket together tell exactly what it finished and what it was running.

Exhaustive: the worker is killed before each store into its page, each send (nothing, half or nearly all of the frame
sent) and each line of user code, with and without a recall by its watcher thread at each of those steps.
"""

from __future__ import annotations

import itertools

import pytest

import shoal._pool.dispatcher as dispatcher_module
import shoal._worker.chunks as chunks_module
import shoal._worker.loop as loop_module
from shoal._worker.reporting import DEFER_NS
from tests.model.mortal import Argument, Complaint, Job, Mortal, Result, Stubborn, user_code


def double(key):
    user_code(key)
    return 2 * key


def wrap(key):
    user_code(key)
    return Result(2 * key if key < 0 else key)


def complain_at_four(key):
    user_code(key)
    if key == 4:
        raise Complaint(key)
    return Result(key)


def stubborn_at_three(key):
    user_code(key)
    return Stubborn(key) if key == 3 else Result(key)


def calls(*keys, make=Argument):
    return [Job([key], [make(key)], single=True, timed=False) for key in keys]


def chunk(*keys, make=int, timed=False):
    return [Job(list(keys), [make(key) for key in keys], single=False, timed=timed)]


PROGRAMS = {
    "calls": (double, lambda: calls(1, 2, 3)),
    "calls, results of classes": (wrap, lambda: calls(1, 2, 3)),
    "plain chunk, then a call": (double, lambda: chunk(1, 2, 3, 4, 5) + calls(6)),
    "chunk of objects": (double, lambda: chunk(1, 2, 3, 4, make=Argument)),
    "chunk, results of classes": (wrap, lambda: chunk(1, 2, 3, 4)),
    "chunk with a failure": (complain_at_four, lambda: chunk(1, 2, 3, 4, 5) + calls(6)),
    "chunk with a result that cannot be sent": (stubborn_at_three, lambda: chunk(1, 2, 3, 4, 5)),
    "timed chunk": (double, lambda: chunk(1, 2, 3, timed=True) + calls(4)),
    "two chunks": (double, lambda: chunk(1, 2) + chunk(3, 4)),
}
#: How fast the worker thinks it is: results wait for each other, or leave one by one.
CLOCKS = {"quick": 0, "slow": DEFER_NS}


@pytest.fixture(params=CLOCKS)
def clock(request, monkeypatch):
    ticks = itertools.count(2, CLOCKS[request.param]) if CLOCKS[request.param] else itertools.repeat(1)
    for module in (loop_module, chunks_module):
        monkeypatch.setattr(module, "_clock", ticks.__next__)
    monkeypatch.setattr(dispatcher_module, "share", lambda pace, grain, held_s, waiting, workers, owed: waiting)


def live(program, **fate):
    fn, make = PROGRAMS[program]
    mortal = Mortal(fn, make(), **fate)
    mortal.live()
    return mortal


def check(mortal):
    """What must hold of a dead worker's estate."""
    keys = {key for job in mortal.jobs for key in job.keys}
    culprit = {mortal.culprit} - {None}
    assert not mortal.read_early, "P1"
    if mortal.guilty is not None and mortal.culprit != mortal.guilty:
        raise AssertionError(f"died in the code of {mortal.guilty}, blamed {mortal.culprit}")
    # Nothing is lost, nothing is in two places.
    assert sorted([*mortal.settled, *culprit, *mortal.requeued]) == sorted(keys)
    # Reported before the death means settled; what was handed back comes again.
    assert mortal.returned <= set(mortal.settled) | mortal.handed_back
    # Nobody is blamed who had not begun, or was not the next to begin.
    latest = (mortal.begun or 0, (mortal.begun or 0) + 1)
    assert mortal.culprit is None or mortal.culprit in latest
    for key, value in mortal.settled.items():
        assert value in (key, 2 * key) or isinstance(value, str)  # a failure arrives as its text here


def describe(mortal, problem):
    return AssertionError(
        f"{problem}\ndies at step {mortal._dies_at}, recalled at {mortal._recalled_at}, torn {mortal.torn}: "
        f"settled {mortal.settled}, requeued {mortal.requeued}, blamed {mortal.culprit}"
    )


def check_fate(program, **fate):
    mortal = live(program, **fate)
    try:
        check(mortal)
    except AssertionError as problem:
        raise describe(mortal, problem) from None
    return mortal


@pytest.mark.parametrize("program", PROGRAMS)
def test_blame_is_exact_and_finished_results_count_wherever_the_worker_dies(program, clock):
    steps = check_fate(program, dies_at=0).steps
    assert steps > 10
    for dies_at, torn in itertools.product(range(1, steps + 1), (0.0, 0.5, 0.99)):
        mortal = check_fate(program, dies_at=dies_at, torn=torn)
        assert not mortal.alive
    print(f"{program}: {steps} steps, {3 * steps} deaths")


@pytest.mark.parametrize("program", ["calls", "plain chunk, then a call", "chunk, results of classes", "two chunks"])
def test_a_recall_at_any_step_loses_nothing_wherever_the_worker_dies_then(program, clock):
    steps = live(program, dies_at=0).steps
    lives = 0
    for recalled_at in range(1, steps + 1):
        left = check_fate(program, dies_at=0, recalled_at=recalled_at).steps
        for dies_at in range(recalled_at, left + 1):
            check_fate(program, dies_at=dies_at, recalled_at=recalled_at, torn=0.5)
            lives += 1
    print(f"{program}: {lives} lives")


def test_without_a_death_everything_is_settled_in_order(clock):
    for program, (_, make) in PROGRAMS.items():
        mortal = check_fate(program, dies_at=0)
        assert list(mortal.settled) == [key for job in make() for key in job.keys]
        assert mortal.unsent_bytes == 0
