"""`initializer`, `initargs`, and replacing workers after so many tasks."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import os
import threading

import pytest

import shoal
from tests.process import pool_tasks as t
from tests.support import eventually

# --- initializer --------------------------------------------------------------------------------


def test_the_initializer_runs_in_each_worker_before_its_first_task(pool_factory):
    pool = pool_factory(2, initializer=t.remember, initargs=("ready",))
    assert set(pool.map(t.remembered, range(50))) == {"ready"}


def test_the_initializer_runs_once_in_each_worker(pool_factory, log):
    pool = pool_factory(2, initializer=t.log_start, initargs=(log,), spare=False)
    pids = set(pool.map(t.pid, range(200)))
    assert len(log.lines()) == len(set(log.lines())) <= 2
    assert pids <= set(map(int, log.lines()))


def test_the_initializer_may_be_a_lambda_or_a_closure(pool_factory):
    value = object.__name__
    pool = pool_factory(1, initializer=lambda: t.remember(value))
    assert pool.submit(t.remembered).result() == "object"


def test_a_replaced_worker_is_initialized_too(pool_factory):
    pool = pool_factory(1, initializer=t.remember, initargs=("again",))
    with pytest.raises(shoal.WorkerDied):
        pool.submit(t.die).result()
    assert pool.submit(t.remembered).result() == "again"


def test_initargs_may_be_large(pool_factory):
    data = os.urandom(3_000_000)
    pool = pool_factory(2, initializer=t.remember, initargs=(data,))
    assert pool.submit(t.remembered).result() == data


def test_a_failing_initializer_fails_the_tasks_that_wait_and_says_why(pool_factory, tmp_path):
    path = tmp_path / "bad"
    path.touch()
    pool = pool_factory(2, initializer=t.fail_while, initargs=(str(path),))
    futures = [pool.submit(t.square, n) for n in range(5)]
    for future in futures:
        with pytest.raises(concurrent.futures.BrokenExecutor, match="the initializer does not like this") as caught:
            future.result()
        assert isinstance(caught.value, shoal.InitializerFailed)
        assert "fail_while" in caught.value.traceback_text


def test_after_a_failed_initializer_the_next_task_tries_again(pool_factory, tmp_path):
    path = tmp_path / "bad"
    path.touch()
    pool = pool_factory(2, initializer=t.fail_while, initargs=(str(path),))
    with pytest.raises(shoal.InitializerFailed):
        pool.submit(t.square, 3).result()
    path.unlink()
    assert pool.submit(t.square, 3).result() == 9


def test_a_map_over_a_failing_initializer_fails_once_and_ends(pool_factory, tmp_path):
    path = tmp_path / "bad"
    path.touch()
    pool = pool_factory(2, initializer=t.fail_while, initargs=(str(path),))
    with pytest.raises(shoal.InitializerFailed):
        list(pool.map(t.square, range(100)))


def test_an_initializer_that_kills_its_worker_fails_the_tasks_that_wait(pool_factory, tmp_path):
    path = tmp_path / "bad"
    path.touch()
    pool = pool_factory(1, initializer=t.die_while, initargs=(str(path),))
    with pytest.raises(shoal.InitializerFailed, match="SIGKILL"):
        pool.submit(t.square, 3).result()
    path.unlink()
    assert pool.submit(t.square, 3).result() == 9


def test_an_initializer_that_exits_fails_the_tasks_that_wait(pool_factory):
    pool = pool_factory(1, initializer=t.leave, initargs=(3,))
    with pytest.raises(shoal.InitializerFailed, match="SystemExit"):
        pool.submit(t.square, 3).result()


def test_an_initializer_that_cannot_be_pickled_is_refused_with_its_name(pool_factory, start_method):
    if start_method == "fork":
        pool = pool_factory(1, initializer=t.remember, initargs=(threading.Lock(),))
        assert pool.submit(_remembers_a_lock).result()  # nothing is pickled: the worker is a copy of this process
        return
    pool = pool_factory(1, initializer=t.remember, initargs=(threading.Lock(),))
    with pytest.raises(shoal.NotPicklable, match="initializer"):
        pool.submit(t.square, 3)


def _remembers_a_lock():
    return hasattr(t.STATE["value"], "acquire")


def test_what_is_not_callable_is_refused_as_initializer():
    with pytest.raises(TypeError, match="initializer must be callable"):
        shoal.Pool(1, initializer="not a function")


@pytest.mark.parametrize("kind", ["Lock", "RLock", "Semaphore", "Event", "Condition"])
def test_initargs_may_hold_a_lock_of_multiprocessing(start_method, kind):
    """The documented way to share one with a ProcessPoolExecutor, and what progress bars do."""
    lock = getattr(multiprocessing.get_context(start_method), kind)()
    with shoal.Pool(2, start_method=start_method, initializer=t.remember, initargs=(lock,)) as pool:
        if kind == "Event":
            pool.submit(_set_event).result()
            assert lock.is_set()
        else:
            assert set(pool.map(_use_lock, range(10))) == {True}


@pytest.mark.start_methods("fork")
@pytest.mark.parametrize("kind", ["Queue", "SimpleQueue"])
def test_a_forked_worker_inherits_a_queue_of_multiprocessing(start_method, kind):
    queue = getattr(multiprocessing.get_context(start_method), kind)()
    with shoal.Pool(1, start_method=start_method, initializer=t.remember, initargs=(queue,)) as pool:
        pool.submit(_put, "from the worker").result()
        assert queue.get() == "from the worker"
    queue.close()


@pytest.mark.no_leak_audit("multiprocessing keeps its heap for ever")
@pytest.mark.start_methods("fork")
def test_a_forked_worker_inherits_a_shared_value_of_multiprocessing(start_method):
    value = multiprocessing.get_context(start_method).RawValue("i", 0)
    with shoal.Pool(1, start_method=start_method, initializer=t.remember, initargs=(value,)) as pool:
        pool.submit(_set_value, 7).result()
        assert value.value == 7


@pytest.mark.no_leak_audit("multiprocessing keeps its heap for ever, and a refused object for its error")
@pytest.mark.start_methods("forkserver", "spawn")
@pytest.mark.parametrize("kind", ["Queue", "SimpleQueue", "Value"])
def test_what_needs_a_descriptor_passed_is_refused_as_initarg_and_not_half_sent(start_method, kind):
    """`multiprocessing` passes descriptors to its own children only; a Manager's queue works everywhere."""
    made = getattr(multiprocessing.get_context(start_method), kind)(*("i", 0) if kind == "Value" else ())
    with shoal.Pool(1, start_method=start_method, initializer=t.remember, initargs=(made,)) as pool:
        with pytest.raises(shoal.NotPicklable, match="initializer"):
            pool.submit(t.square, 3)
    if kind != "Value":
        made.close()


def _use_lock(_):
    with t.STATE["value"]:
        return True


def _set_event():
    t.STATE["value"].set()


def _put(item):
    t.STATE["value"].put(item)


def _set_value(number):
    t.STATE["value"].value = number


# --- max_tasks_per_worker -----------------------------------------------------------------------


def test_a_worker_is_replaced_after_so_many_tasks(pool_factory):
    pool = pool_factory(1, max_tasks_per_worker=3)
    pids = [pool.submit(t.pid).result() for _ in range(9)]
    assert [len(set(pids[start : start + 3])) for start in (0, 3, 6)] == [1, 1, 1]
    assert len(set(pids)) == 3


def test_a_map_counts_each_item_as_a_task(pool_factory):
    pool = pool_factory(2, max_tasks_per_worker=5)
    pids = list(pool.map(t.pid, range(60)))
    assert max(pids.count(pid) for pid in pids) <= 5
    assert len(set(pids)) >= 12


def test_with_one_task_per_worker_each_task_has_its_own(pool_factory):
    pool = pool_factory(2, max_tasks_per_child=1)
    pids = [future.result() for future in [pool.submit(t.pid) for _ in range(6)]]
    assert len(set(pids)) == 6


def test_leaving_after_its_tasks_is_no_loss(pool_factory):
    pool = pool_factory(1, max_tasks_per_worker=1)
    for n in range(4):
        assert pool.submit(t.square, n).result() == n * n
    eventually(lambda: pool.statistics().workers <= 1, what="the spent workers to leave")
    assert pool.statistics().workers_lost == 0
    assert pool.statistics().deaths == ()


def test_the_last_task_of_a_worker_may_fail_or_kill_it(pool_factory):
    pool = pool_factory(1, max_tasks_per_worker=2)
    assert pool.submit(t.square, 2).result() == 4
    with pytest.raises(ValueError, match="no"):
        pool.submit(t.fail).result()
    assert pool.submit(t.square, 2).result() == 4
    with pytest.raises(shoal.WorkerDied):
        pool.submit(t.die).result()
    assert pool.submit(t.square, 2).result() == 4


@pytest.mark.parametrize("bad", [0, -1])
def test_max_tasks_below_one_is_refused(bad):
    with pytest.raises(ValueError, match="max_tasks_per_worker must be at least 1"):
        shoal.Pool(1, max_tasks_per_worker=bad)
    with pytest.raises(TypeError, match="max_tasks_per_worker must be an int"):
        shoal.Pool(1, max_tasks_per_worker=1.5)


# --- options of the pool ------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["workers", "max_workers"])
@pytest.mark.parametrize(("bad", "error"), [(0, ValueError), (-1, ValueError), (1.5, TypeError), ("2", TypeError)])
def test_a_bad_number_of_workers_is_refused(name, bad, error):
    with pytest.raises(error, match="workers must be"):
        shoal.Pool(**{name: bad})


def test_two_names_of_one_option_cannot_be_given_at_once():
    with pytest.raises(TypeError, match="workers and max_workers"):
        shoal.Pool(2, max_workers=2)
    with pytest.raises(TypeError, match="max_tasks_per_worker and max_tasks_per_child"):
        shoal.Pool(2, max_tasks_per_worker=1, max_tasks_per_child=1)


def test_the_default_is_as_many_workers_as_processors_may_be_used():
    assert shoal.Pool()._max_workers == shoal.cpu_count()


def test_a_context_of_multiprocessing_says_the_start_method(start_method):
    pool = shoal.Pool(1, mp_context=multiprocessing.get_context(start_method))
    assert f"by {start_method}," in repr(pool)


def test_the_positional_order_is_that_of_process_pool_executor(start_method):
    context = multiprocessing.get_context(start_method)
    with shoal.Pool(1, context, t.remember, ("positional",)) as pool:
        assert pool.submit(t.remembered).result() == "positional"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start_method": "thread"}, "start_method must be one of 'forkserver', 'spawn', 'fork', not 'thread'"),
        ({"capture": "none"}, "capture must be one of"),
        ({"timeout": 0}, "timeout must be above 0"),
        ({"timeout": -1}, "timeout must be above 0"),
        ({"timeout": float("nan")}, "timeout must be above 0"),
        ({"retries": -1}, "retries must be at least 0"),
        ({"backoff_s": -0.1}, "backoff_s must be 0 or more"),
    ],
    ids=str,
)
def test_a_bad_option_is_refused_with_what_would_be_right(options, message):
    with pytest.raises(ValueError, match=message):
        shoal.Pool(1, **options)
