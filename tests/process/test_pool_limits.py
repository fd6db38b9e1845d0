"""`using`: time limits, retries, labels; and the rule about poison."""

from __future__ import annotations

import concurrent.futures
import os
import re
import signal
import time

import pytest

import shoal
from shoal._pool import autopsy
from tests.process import pool_tasks as t
from tests.support import eventually, is_alive

# --- timeout ------------------------------------------------------------------------------------


def test_a_task_that_runs_too_long_is_stopped(pool):
    began = time.monotonic()
    future = pool.using(timeout=0.1).submit(t.hang)
    with pytest.raises(TimeoutError) as caught:
        future.result()
    assert time.monotonic() - began < 5
    error = caught.value
    assert isinstance(error, shoal.TaskTimeout)
    assert (error.task, error.timeout, error.attempt, error.attempts) == ("hang()", 0.1, 1, 1)
    assert pool.submit(t.square, 3).result() == 9
    assert pool.statistics().timeouts == 1


def test_the_worker_of_a_stopped_task_is_gone(pool, tmp_path):
    path = tmp_path / "pid"
    future = pool.using(timeout=0.4).submit(t.write_pid_and_hang, str(path))
    with pytest.raises(shoal.TaskTimeout):
        future.result()
    pid = int(path.read_text())
    eventually(lambda: not is_alive(pid), what="the worker to end")


def test_a_stopped_task_tells_where_it_was(pool):
    with pytest.raises(shoal.TaskTimeout) as caught:
        pool.using(timeout=0.3).submit(t.hang).result()
    assert "in hang" in caught.value.obituary.python_stack
    assert re.search(r"likely: it was at line \d+ of .*pool_tasks\.py, in hang", str(caught.value))


def test_a_stopped_task_is_asked_once_where_it_was(pool, monkeypatch):
    """A dead one does not answer: to ask it again keeps everybody waiting."""
    asked = []
    ask = autopsy.ask_for_stack
    monkeypatch.setattr(autopsy, "ask_for_stack", lambda worker: (asked.append(worker.number), ask(worker)))
    with pytest.raises(shoal.TaskTimeout):
        pool.using(timeout=0.3).submit(t.hang).result()
    assert len(asked) == 1


def test_a_task_that_ends_in_time_is_not_disturbed(pool):
    quick = pool.using(timeout=20)
    assert quick.submit(t.nap, 0.01, "done").result() == "done"
    assert list(quick.map(t.square, range(100))) == [n * n for n in range(100)]
    assert pool.statistics().workers_lost == 0


def test_waiting_for_a_worker_does_not_count(pool_factory, gate):
    pool = pool_factory(1)
    blocker = pool.submit(gate.enter)
    gate.wait_until_entered()
    behind = pool.using(timeout=0.3).submit(t.square, 3)
    time.sleep(0.4)  # longer than its limit, while it is not running
    gate.open()
    assert behind.result() == 9
    blocker.result()


def test_tasks_queued_behind_a_stopped_one_are_not_harmed(pool_factory):
    pool = pool_factory(1)
    for n in range(50):
        pool.submit(t.square, n).result()
    slow = pool.using(timeout=0.3).submit(t.hang)
    behind = [pool.using(timeout=30).submit(t.square, n) for n in range(50)]
    with pytest.raises(shoal.TaskTimeout):
        slow.result()
    assert [future.result() for future in behind] == [n * n for n in range(50)]
    assert pool.statistics().failed == 1


def test_in_a_map_only_the_slow_item_fails(pool):
    results = pool.using(timeout=0.4).imap(t.hang_on_seven, range(20), errors="return")
    outcome = list(results)
    assert [n for n, value in enumerate(outcome) if isinstance(value, BaseException)] == [7]
    assert isinstance(outcome[7], shoal.TaskTimeout)
    assert outcome[:7] == list(range(7))
    assert outcome[8:] == list(range(8, 20))


def test_the_items_of_a_map_have_a_clock_each(pool_factory):
    """Together they take longer than the limit, each for itself does not."""
    pool = pool_factory(1)
    assert list(pool.using(timeout=0.4).map(t.nap, [0.02] * 30, range(30))) == list(range(30))


def test_every_item_of_a_map_may_time_out(pool):
    outcome = list(pool.using(timeout=0.05).imap(t.hang, range(6), errors="return"))
    assert [type(one) for one in outcome] == [shoal.TaskTimeout] * 6


def test_a_stopped_process_is_answered_for_by_the_same_clock(pool):
    """SIGSTOP: the worker can neither say anything nor die of a polite signal."""
    with pytest.raises(shoal.TaskTimeout):
        pool.using(timeout=0.3).submit(t.stop_myself).result()
    assert pool.submit(t.square, 3).result() == 9


def test_a_worker_stopped_from_outside_while_idle_costs_the_next_task_nothing(pool_factory):
    """It never began the task, so the task is innocent: another worker does it."""
    pool = pool_factory(1, spare=False)
    pid = pool.submit(t.pid).result()
    os.kill(pid, signal.SIGSTOP)
    assert pool.using(timeout=0.3).submit(t.square, 3).result() == 9


def test_a_task_that_never_lets_go_of_the_interpreter_is_stopped(pool):
    with pytest.raises(shoal.TaskTimeout):
        pool.using(timeout=0.3).submit(t.hold_the_interpreter).result()
    assert pool.submit(t.square, 3).result() == 9


def test_a_hopeless_regular_expression_is_stopped(pool):
    pattern = "(a+)+$"
    with pytest.raises(shoal.TaskTimeout):
        pool.using(timeout=0.3).submit(re.match, pattern, "a" * 64 + "b").result()


def test_a_task_that_ignores_every_signal_it_can_is_stopped(pool):
    with pytest.raises(shoal.TaskTimeout):
        pool.using(timeout=0.3).submit(t.ignore_signals_and_hang).result()


def test_a_pools_own_timeout_is_the_default_and_using_lifts_it(pool_factory):
    pool = pool_factory(1, timeout=0.2)
    with pytest.raises(shoal.TaskTimeout):
        pool.submit(t.hang).result()
    assert pool.using(timeout=None).submit(t.nap, 0.3, "long").result() == "long"
    assert pool.using(timeout=20).submit(t.nap, 0.3, "long").result() == "long"


def test_a_limit_acts_although_nobody_waits(pool):
    future = pool.using(timeout=0.1).submit(t.hang)
    eventually(future.done, what="the limit to act")
    assert isinstance(future.exception(), shoal.TaskTimeout)


def test_a_limit_acts_while_another_future_is_waited_for(pool, gate):
    future = pool.using(timeout=0.1).submit(t.hang)
    future.add_done_callback(lambda _: gate.open())
    assert pool.submit(gate.enter, "released").result() == "released"


def test_time_in_unpickling_an_argument_counts(pool):
    with pytest.raises(shoal.TaskTimeout):
        pool.using(timeout=0.3).submit(t.identity, t.SlowToLoad()).result()


# --- retries ------------------------------------------------------------------------------------


def test_without_retries_a_death_is_final(pool, log):
    with pytest.raises(shoal.WorkerDied):
        pool.submit(t.die_times, log, 1).result()
    assert len(log.lines()) == 1


def test_a_task_whose_worker_died_is_tried_again_as_often_as_asked(pool, log):
    assert pool.using(retries=2, backoff_s=0).submit(t.die_times, log, 2).result() == 3
    assert pool.statistics().retried == 2
    assert pool.statistics().failed == 0


def test_a_task_that_ran_too_long_is_tried_again(pool, log):
    assert pool.using(retries=1, timeout=0.3, backoff_s=0).submit(t.slow_times, log, 1).result() == 2


def test_when_the_retries_are_used_up_the_last_error_says_so(pool, log):
    with pytest.raises(shoal.WorkerDied, match="attempt 2 of 2") as caught:
        pool.using(retries=1, backoff_s=0).submit(t.die_times, log, 9).result()
    assert (caught.value.obituary.attempt, caught.value.obituary.attempts) == (2, 2)
    assert len(log.lines()) == 2


def test_what_the_function_raises_is_final_unless_named(pool, log):
    with pytest.raises(ValueError, match="run 1"):
        pool.using(retries=3, backoff_s=0).submit(t.fail_times, log, 1).result()
    assert len(log.lines()) == 1


def test_retry_on_names_the_exceptions_worth_another_try(pool, log):
    again = pool.using(retries=3, retry_on=(ValueError, OSError), backoff_s=0)
    assert again.submit(t.fail_times, log, 2).result() == 3


def test_retry_on_takes_one_class_and_knows_subclasses(pool, log):
    again = pool.using(retries=3, retry_on=OSError, backoff_s=0)
    assert again.submit(t.fail_times, log, 2, ConnectionResetError).result() == 3


def test_retry_on_replaces_the_default(pool, log):
    with pytest.raises(shoal.WorkerDied):
        pool.using(retries=3, retry_on=ValueError, backoff_s=0).submit(t.die_times, log, 1).result()
    assert len(log.lines()) == 1


def test_retries_reach_single_items_of_a_map(pool, tmp_path):
    logs = [t.Log(str(tmp_path / f"log{n}")) for n in range(5)]
    again = pool.using(retries=2, retry_on=ValueError, backoff_s=0)
    assert list(again.map(t.fail_times, logs, [0, 1, 2, 0, 1])) == [1, 2, 3, 1, 2]


def test_items_of_a_map_whose_workers_die_are_tried_again(pool, tmp_path):
    logs = [t.Log(str(tmp_path / f"log{n}")) for n in range(5)]
    again = pool.using(retries=2, backoff_s=0)
    assert list(again.map(t.die_times, logs, [0, 1, 2, 0, 1])) == [1, 2, 3, 1, 2]


def test_the_pause_before_a_retry_grows(pool, tmp_path):
    path = tmp_path / "times"
    with pytest.raises(ValueError, match="run"):
        pool.using(retries=2, retry_on=ValueError, backoff_s=0.1).submit(t.log_time_and_fail, str(path)).result()
    first, second, third = map(float, path.read_text().split())
    assert second - first >= 0.05  # with jitter, half of it at least
    assert third - second >= 0.1


def test_a_task_that_waits_for_its_retry_can_be_cancelled(pool, log):
    future = pool.using(retries=5, retry_on=ValueError, backoff_s=30).submit(t.fail_times, log, 9)
    eventually(lambda: pool.statistics().retried == 1, what="the first failure")
    assert future.cancel()
    with pytest.raises(concurrent.futures.CancelledError):
        future.result()
    began = time.monotonic()
    pool.shutdown()
    assert time.monotonic() - began < 5
    assert len(log.lines()) == 1


def test_shutdown_waits_for_a_retry_and_cancelling_does_not(pool, log, tmp_path):
    future = pool.using(retries=1, retry_on=ValueError, backoff_s=0.05).submit(t.fail_times, log, 1)
    endless = pool.using(retries=1, retry_on=ValueError, backoff_s=60).submit(
        t.fail_times, t.Log(str(tmp_path / "2")), 1
    )
    eventually(lambda: pool.statistics().retried == 2, what="both to fail once")
    assert future.result() == 2
    pool.shutdown(cancel_futures=True)
    assert endless.cancelled()


# --- poison -------------------------------------------------------------------------------------


def test_a_task_that_kills_every_worker_is_given_up_as_poison(pool, log):
    """However many retries were asked for, three workers are enough."""
    with pytest.raises(shoal.PoisonTask, match="it has killed 3 workers and is not tried again") as caught:
        pool.using(retries=100, backoff_s=0).submit(t.die_times, log, 100).result()
    assert caught.value.kills == 3
    assert isinstance(caught.value, shoal.WorkerDied)
    assert len(log.lines()) == 3
    assert pool.submit(t.square, 3).result() == 9


def test_a_poisonous_item_costs_a_map_nothing_but_itself(pool):
    outcome = list(pool.using(retries=9, backoff_s=0).imap(t.die_on_five, range(12), errors="return"))
    assert isinstance(outcome[5], shoal.PoisonTask)
    assert [value for n, value in enumerate(outcome) if n != 5] == [n for n in range(12) if n != 5]


# --- labels -------------------------------------------------------------------------------------


def test_errors_name_the_call(pool):
    with pytest.raises(shoal.WorkerDied, match=re.escape("while running die('a.png', size=3)")):
        pool.submit(t.die, "a.png", size=3).result()


def test_errors_name_the_label_instead_if_there_is_one(pool):
    with pytest.raises(shoal.WorkerDied, match="while running nightly import") as caught:
        pool.using(label="nightly import").submit(t.die).result()
    assert caught.value.obituary.task == "nightly import"
    with pytest.raises(shoal.TaskTimeout, match="^slow one ran longer"):
        pool.using(label="slow one", timeout=0.1).submit(t.hang).result()


# --- using --------------------------------------------------------------------------------------


def test_using_does_not_change_the_pool(pool):
    pool.using(timeout=0.01)
    assert pool.submit(t.nap, 0.1, "fine").result() == "fine"


def test_using_builds_on_using(pool, log):
    view = pool.using(retries=2, backoff_s=0).using(label="both")
    assert view.submit(t.die_times, log, 1).result() == 2
    with pytest.raises(shoal.PoisonTask, match="both"):
        view.submit(t.die).result()


def test_a_view_does_all_a_pool_does(pool):
    view = pool.using(timeout=30)
    assert view.submit(t.square, 3).result() == 9
    assert list(view.map(t.square, [1, 2])) == [1, 4]
    assert list(view.imap(t.square, [1, 2])) == [1, 4]
    assert view.starmap(t.add, [(1, 2)]) == [3]
    assert view._max_workers == pool._max_workers
    assert isinstance(view, concurrent.futures.Executor)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"timeout": 0}, ValueError, "timeout must be above 0 seconds"),
        ({"timeout": -3}, ValueError, "timeout must be above 0 seconds"),
        ({"timeout": float("nan")}, ValueError, "timeout must be above 0 seconds"),
        ({"timeout": "3"}, TypeError, "timeout must be seconds"),
        ({"timeout": True}, TypeError, "timeout must be seconds"),
        ({"retries": -1}, ValueError, "retries must be at least 0"),
        ({"retries": 1.0}, TypeError, "retries must be an int"),
        ({"retry_on": ValueError("instance")}, TypeError, "retry_on takes exception classes"),
        ({"retry_on": (int,)}, TypeError, "retry_on takes exception classes"),
        ({"backoff_s": -1}, ValueError, "backoff_s must be 0 or more"),
        ({"label": 3}, TypeError, "label must be text"),
    ],
    ids=str,
)
def test_using_refuses_a_bad_option(options, error, message):
    with pytest.raises(error, match=message):
        shoal.Pool(1, start_method="fork").using(**options)


def test_using_refuses_an_unknown_option():
    with pytest.raises(TypeError, match="time_out"):
        shoal.Pool(1, start_method="fork").using(time_out=3)


def test_timeout_acts_in_time_after_a_task_with_a_longer_one(pool_factory):
    pool = pool_factory(1)
    pool.using(timeout=50).submit(t.nothing).result()
    with pytest.raises(shoal.TaskTimeout):
        pool.using(timeout=0.1).submit(t.nap, 20).result(timeout=10)


def test_timeout_acts_in_time_behind_a_task_with_a_longer_one(pool_factory):
    pool = pool_factory(1)
    pool.submit(t.nothing).result()
    first = pool.using(timeout=50).submit(t.nap, 0.1)
    second = pool.using(timeout=0.1).submit(t.nap, 20)
    with pytest.raises(shoal.TaskTimeout):
        second.result(timeout=10)
    assert first.result() is None
