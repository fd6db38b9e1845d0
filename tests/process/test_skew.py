"""A few tasks that take a thousand times longer: nobody waits behind them, and a kill among them costs one task.

What is taken back and told early is checked by what happens, not by the clock: the long task stands at a gate until what
it must not hold up has happened.
"""

from __future__ import annotations

import itertools
import os
import re
import signal
import time

import pytest

import shoal
from tests import support
from tests.process import pool_tasks as t


class Boxed:
    """A result that is not plain data: it is pickled by a worker's main thread only."""

    def __init__(self, n):
        self.n = n

    def __eq__(self, other):
        return type(other) is Boxed and self.n == other.n

    __hash__ = None


def stuck_at(gate, n, where):
    return gate.enter(n) if n == where else n


def stuck_and_boxed(gate, n, where):
    return Boxed(stuck_at(gate, n, where))


def short(n):
    return n


def warm(pool):
    """The pool knows that the tasks to come are short, so it hands them out by the hundred."""
    assert list(pool.map(stuck_at, *calls(t.Gate("nowhere"), 2000, -1))) == list(range(2000))


def calls(gate, count, where):
    return itertools.repeat(gate, count), range(count), itertools.repeat(where, count)


def tells(pool, name):
    return next(one for one in pool.explain().functions if one.function == name)


# --- what is behind a long task ---------------------------------------------------------------------


@pytest.mark.parametrize("where", [0, 700, 1999])
def test_everything_else_is_done_while_one_task_is_stuck(pool, gate, where):
    """What its worker has not begun is taken back and run by the other."""
    warm(pool)
    results = pool.imap(stuck_at, *calls(gate, 2000, where), ordered=False)
    assert sorted(itertools.islice(results, 1999)) == [n for n in range(2000) if n != where]
    gate.wait_until_entered()
    gate.open()
    assert list(results) == [where]


def test_what_was_taken_back_is_told(pool, gate):
    warm(pool)
    before = tells(pool, "stuck_at").taken_back
    results = pool.imap(stuck_at, *calls(gate, 2000, 5), ordered=False)
    assert len(list(itertools.islice(results, 1999))) == 1999
    gate.open()
    assert list(results) == [5]
    now = tells(pool, "stuck_at")
    assert now.taken_back > before
    assert now.tasks == 4000
    assert "came back" in str(now)


def test_two_stuck_tasks_hold_up_only_what_nobody_is_left_for(pool_factory, make_gate, start_method):
    pool = pool_factory(3)
    gates = [make_gate("one"), make_gate("two")]
    warm(pool)
    each = [gates[n == 900] for n in range(2000)]
    results = pool.imap(stuck_in, each, range(2000), ordered=False)
    assert len(list(itertools.islice(results, 1998))) == 1998
    for gate in gates:
        gate.open()
    assert sorted(results) == [100, 900]


def stuck_in(gate, n):
    return gate.enter(n) if n in (100, 900) else n


# --- what is before a long task ---------------------------------------------------------------------


@pytest.mark.parametrize("way", ["map", "imap"])
def test_results_before_a_stuck_task_come_before_it_ends(pool_factory, gate, way):
    """Also if nobody else could take what is behind it."""
    pool = pool_factory(1)
    warm(pool)
    results = getattr(pool, way)(stuck_at, *calls(gate, 1000, 400))
    assert list(itertools.islice(results, 400)) == list(range(400))
    gate.wait_until_entered()
    gate.open()
    assert list(results) == list(range(400, 1000))


def test_results_that_are_not_plain_data_come_whole_and_in_order(pool, gate):
    warm(pool)
    results = pool.map(stuck_and_boxed, *calls(gate, 1000, 400))
    gate.wait_until_entered()
    gate.open()
    assert list(results) == [Boxed(n) for n in range(1000)]


def test_a_list_of_all_results_waits_for_the_long_ones_only(pool, gate):
    """Several stuck ones, opened when all others were begun: nothing is left to be run behind them."""
    warm(pool)
    results = pool.map(stuck_at, *calls(gate, 3000, 1500))
    gate.wait_until_entered()
    support.eventually(lambda: pool.statistics().running + pool.statistics().queued <= 1, what="the others to be done")
    gate.open()
    assert list(results) == list(range(3000))


# --- death in the middle ------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["map", "imap", "unordered"])
def test_a_kill_after_results_were_told_early_costs_the_task_that_ran(pool_factory, gate, way):
    """What was told counts once; what ran fails; what was behind it is run."""
    pool = pool_factory(1)
    warm(pool)
    if way == "map":
        results = pool.map(stuck_at, *calls(gate, 1000, 400))
    else:
        results = pool.imap(stuck_at, *calls(gate, 1000, 400), ordered=way == "imap", errors="return")
    got = list(itertools.islice(results, 400))
    gate.wait_until_entered()
    os.kill(next(one.pid for one in pool.workers if one.state == "busy"), signal.SIGKILL)
    if way == "map":
        with pytest.raises(shoal.WorkerDied) as caught:
            next(results)
        error = caught.value
    else:
        got += results
        (error,) = [one for one in got if isinstance(one, Exception)]
        assert sorted(one for one in got if isinstance(one, int)) == [n for n in range(1000) if n != 400]
    assert isinstance(error, shoal.WorkerDied)
    assert "in task 400 of the map" in error.__notes__[0]


def trace(log, n):
    log.add(f"{os.getpid()} {n}")
    if n % 37 == 20:
        time.sleep(0.02)
    return n


def trace_and_box(log, n):
    return Boxed(trace(log, n))


@pytest.mark.start_methods("forkserver", "fork")
@pytest.mark.parametrize("fn", [trace, trace_and_box])
def test_kills_at_random_moments_lose_nothing_double_nothing_and_blame_who_ran(pool, log, fn):
    """Each kill strikes somewhere: before, in or after a stretch, or while results are told early."""
    import random
    import threading

    random.seed(11)
    over, killed = threading.Event(), []

    def kill_now_and_then():
        while len(killed) < 20 and not over.wait(
            random.uniform(0.005, 0.05)
        ):  # so many, or a slow machine gets nowhere
            pids = [one.pid for one in pool.workers if one.state in ("busy", "idle") and one.pid]
            if pids:
                killed.append(random.choice(pids))
                try:
                    os.kill(killed[-1], signal.SIGKILL)
                except ProcessLookupError:
                    killed.pop()

    killer = threading.Thread(target=kill_now_and_then)
    killer.start()
    try:
        for turn in range(8):
            of_turn = t.Log(f"{log.path} {turn}")
            outcome = list(pool.imap(fn, [of_turn] * 300, range(300), ordered=turn % 2 == 0, errors="return"))
            _check(outcome, of_turn, killed, pickles=fn is trace_and_box)
    finally:
        over.set()
        killer.join()
    assert killed


def _check(outcome, log, killed, *, pickles):
    began = {}
    for line in log.lines():
        pid, n = map(int, line.split())
        began.setdefault(pid, []).append(n)
    settled = []
    for one in outcome:
        if isinstance(one, shoal.WorkerDied):
            settled.append(int(re.search(r"in task (\d+) of", one.__notes__[0])[1]))
            ran = began.get(one.obituary.pid, [])
            assert one.obituary.pid in killed
            # Announced and killed before its first line; or the last it began; or its result was being pickled.
            assert pickles or settled[-1] not in ran or settled[-1] == ran[-1]
        else:
            settled.append(one.n if pickles else one)
    assert sorted(settled) == list(range(300))
