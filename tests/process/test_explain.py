"""`pool.explain()` and `shoal.explain()` while everything happens: always an answer, always a text."""

from __future__ import annotations

import os
import pickle
import threading

import pytest

import shoal
from shoal._pool import default
from tests.process import pool_tasks as t


@pytest.fixture(autouse=True)
def _no_default_pool_outlives_its_test():
    yield
    if default._pool is not None:
        default._pool.shutdown()
        default._pool = None


def of(pool, name):
    return next(one for one in pool.explain().functions if one.function == name)


def test_an_unused_pool_explains_that_and_starts_nothing(pool):
    assert str(pool.explain()) == "pool of 2 workers\nnothing has been run on it"
    assert pool._engine is None


def test_tasks_are_counted_however_they_were_asked_for(pool):
    pool.submit(t.square, 2).result()
    assert (of(pool, "square").tasks, of(pool, "square").handed_over) == (1, 1)
    assert list(pool.map(t.square, range(100))) == [n * n for n in range(100)]
    assert len(list(pool.imap(t.square, range(100)))) == 100
    assert len(pool.starmap(t.square, [(n,) for n in range(100)])) == 100
    told = of(pool, "square")
    assert told.tasks == 301
    assert 1 < told.handed_over <= 301
    assert 1 <= told.largest <= 100
    assert 0 < told.cost_s < 1
    assert "square: 301 tasks, about " in str(pool.explain())


def test_tasks_that_fail_or_kill_are_told_of(pool):
    assert len(list(pool.imap(t.fail_if_odd, range(10), errors="return"))) == 10
    assert of(pool, "fail_if_odd").tasks == 10
    with pytest.raises(shoal.WorkerDied):
        pool.submit(t.die).result()
    assert "die: " in str(pool.explain())


def test_a_task_that_has_not_ended_is_handed_over_and_not_measured(pool, gate):
    future = pool.submit(gate.enter, 5)
    gate.wait_until_entered()
    told = of(pool, "Gate.enter")
    assert (told.tasks, told.handed_over, told.cost_s) == (0, 1, None)
    assert "not measured yet" in str(told)
    gate.open()
    assert future.result() == 5


def test_functions_come_in_the_order_of_their_first_use(pool):
    for fn in (t.square, t.identity, t.pid, t.square):
        pool.submit(fn, 1).result()
    assert [one.function for one in pool.explain().functions] == ["square", "identity", "pid"]


def test_long_tasks_are_said_to_go_singly_and_short_ones_in_batches(pool):
    for _ in range(3):
        pool.submit(t.nap, 0.005).result()
    assert of(pool, "nap").rule.startswith("one at a time")
    assert len(list(pool.map(t.identity, range(20_000)))) == 20_000
    assert of(pool, "identity").rule.startswith("up to ")
    assert of(pool, "identity").largest > 100


def test_large_arguments_are_said_to_bound_a_batch(pool):
    assert len(list(pool.map(len, [b"x" * 500_000] * 200))) == 200
    told = of(pool, "len")
    assert told.largest * 500_000 <= 40 << 20
    assert "MiB of arguments" in told.rule


def test_more_functions_than_are_remembered(pool):
    for n in range(300):
        assert pool.submit(lambda n=n: n).result() == n
    told = pool.explain()
    assert 100 <= len(told.functions) <= 256
    assert str(told).count("<lambda>: 1 task,") == len(told.functions)


def test_after_the_pool_was_closed_it_still_explains(pool_factory):
    pool = pool_factory(1)
    pool.submit(t.square, 3).result()
    before = pool.explain()
    pool.shutdown()
    assert pool.explain() == before
    assert pickle.loads(pickle.dumps(before)) == before


def test_a_forked_child_may_ask(pool):
    pool.submit(t.square, 3).result()
    pid = os.fork()
    if pid == 0:
        try:
            ok = "square: 1 task" in str(pool.explain()) and bool(str(shoal.explain()))
        finally:
            os._exit(0 if ok else 1)
    assert os.waitpid(pid, 0)[1] == 0


def test_asking_from_many_threads_while_work_runs_and_workers_die(pool):
    """Never an error, never a number that goes back."""
    over, problems = threading.Event(), []

    def ask():
        seen = {}
        try:
            while not over.is_set():
                told = pool.explain()
                assert str(told)
                for one in told.functions:
                    if one.function == "identity":  # names of lambdas are not their own
                        assert one.tasks >= seen.get(one.function, 0)
                        seen[one.function] = one.tasks
        except BaseException as problem:
            problems.append(problem)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for turn in range(5):
            assert len(list(pool.imap(t.identity, range(3000)))) == 3000
            assert [pool.submit(lambda n=n: n).result() for n in range(30)] == list(range(30))
            if turn % 2:
                with pytest.raises(shoal.WorkerDied):
                    pool.submit(t.die).result()
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert problems == []


def test_a_label_with_lines_in_it_is_shown(pool):
    class Odd:
        def __repr__(self):
            raise RuntimeError("no")

        def __call__(self, n):
            return n

    assert pool.submit(Odd(), 1).result() == 1
    assert "Odd: 1 task" in str(pool.explain())


def test_the_default_pool_explains_itself_and_the_last_map(monkeypatch, start_method):
    monkeypatch.setenv("SHOAL_START_METHOD", start_method)
    assert shoal.explain().functions == ()
    assert shoal.map(t.square, range(10)) == [n * n for n in range(10)]
    assert shoal.map(t.add, [1], [2], workers="auto") == [3]
    told = shoal.explain()
    assert (told.auto.function, told.auto.tasks_here, told.auto.tasks_sent, told.auto.workers) == ("add", 1, 0, 0)
    assert [one.function for one in told.functions] == ["square"]
    assert told.workers == shoal.cpu_count()
