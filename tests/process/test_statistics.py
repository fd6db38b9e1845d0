"""`pool.statistics()` and `pool.workers`: right at each moment, and frozen."""

from __future__ import annotations

import dataclasses
import os
import time

import pytest

import shoal
from tests.process import pool_tasks as t
from tests.support import eventually, is_alive

# --- statistics ---------------------------------------------------------------------------------


def test_a_pool_that_was_never_used_has_nothing_to_tell(pool):
    assert pool.statistics() == shoal.PoolStatistics()
    assert pool.workers == ()


def test_statistics_and_worker_infos_are_frozen(pool):
    pool.submit(t.nothing).result()
    with pytest.raises(dataclasses.FrozenInstanceError):
        pool.statistics().done = 3
    with pytest.raises(dataclasses.FrozenInstanceError):
        pool.workers[0].pid = 3


def test_what_is_done_is_counted(pool):
    for n in range(5):
        pool.submit(t.square, n).result()
    list(pool.map(t.square, range(20)))
    numbers = pool.statistics()
    assert (numbers.submitted, numbers.done, numbers.failed, numbers.cancelled) == (25, 25, 0, 0)
    assert (numbers.queued, numbers.running, numbers.busy) == (0, 0, 0)


def test_each_outcome_is_counted_in_its_place(pool_factory, gate):
    pool = pool_factory(1)
    pool.submit(t.square, 2).result()
    assert isinstance(pool.submit(t.fail).exception(), ValueError)
    assert isinstance(pool.submit(t.die).exception(), shoal.WorkerDied)
    assert isinstance(pool.using(timeout=0.3).submit(t.hang).exception(), shoal.TaskTimeout)
    running = pool.submit(gate.enter)
    waiting = pool.submit(t.nothing)
    gate.wait_until_entered()
    waiting.cancel()
    gate.open()
    running.result()
    numbers = pool.statistics()
    assert (numbers.submitted, numbers.done, numbers.failed, numbers.cancelled) == (6, 2, 3, 1)
    assert (numbers.timeouts, numbers.workers_lost) == (1, 2)
    assert len(numbers.deaths) == 2


def test_every_task_is_in_exactly_one_place(pool_factory, gate):
    pool = pool_factory(2)
    blocked = [pool.submit(gate.enter) for _ in range(2)]
    eventually(lambda: pool.statistics().busy == 2, what="both to run")
    futures = [pool.submit(t.square, n) for n in range(50)]
    now = pool.statistics()
    assert now.submitted == 52
    assert now.queued + now.running == 52
    assert now.running >= 2
    assert (now.workers, now.idle, now.busy) == (2, 0, 2)
    gate.open()
    for future in [*blocked, *futures]:
        future.result()
    after = pool.statistics()
    assert (after.queued, after.running, after.done) == (0, 0, 52)


def test_an_idle_pool_shows_idle_workers(pool_factory, gate):
    pool = pool_factory(2)
    blocked = [pool.submit(gate.enter) for _ in range(2)]
    eventually(lambda: pool.statistics().busy == 2, what="both to run")
    gate.open()
    for future in blocked:
        future.result()
    eventually(lambda: pool.statistics().idle == 2, what="both to be idle")
    assert pool.statistics().busy == 0


def test_workers_start_only_when_there_is_work_for_them(pool_factory):
    pool = pool_factory(8, spare=False)
    pool.submit(t.nothing).result()
    assert pool.statistics().workers_started == 1
    pool.submit(t.nothing).result()
    assert pool.statistics().workers_started == 1


def test_a_spare_is_made_when_all_workers_are_there_and_takes_over(pool_factory):
    pool = pool_factory(1)
    pool.submit(t.nothing).result()
    eventually(lambda: any(worker.state == "spare" and worker.pid for worker in pool.workers), what="the spare one")
    spare = next(worker for worker in pool.workers if worker.state == "spare")
    with pytest.raises(shoal.WorkerDied):
        pool.submit(t.die).result()
    assert pool.submit(t.pid).result() == spare.pid


def test_without_spare_there_is_none(pool_factory, gate):
    pool = pool_factory(1, spare=False)
    future = pool.submit(gate.enter)
    gate.wait_until_entered()
    time.sleep(0.15)
    assert pool.statistics().spare == 0
    assert pool.statistics().workers_started == 1
    gate.open()
    future.result()


def test_retries_are_counted(pool, log):
    pool.using(retries=2, backoff_s=0).submit(t.die_times, log, 2).result()
    numbers = pool.statistics()
    assert (numbers.retried, numbers.workers_lost, numbers.done, numbers.failed) == (2, 2, 1, 0)


def test_tasks_taken_from_the_dead_unharmed_are_counted(pool_factory, gate):
    pool = pool_factory(1)
    for n in range(50):
        pool.submit(t.square, n).result()
    future = pool.submit(_enter_and_die, gate)
    behind = pool.map(t.square, range(50))
    gate.open()
    with pytest.raises(shoal.WorkerDied):
        future.result()
    assert list(behind) == [n * n for n in range(50)]
    numbers = pool.statistics()
    assert (numbers.failed, numbers.done, numbers.retried) == (1, 100, 0)


def _enter_and_die(gate):
    gate.enter()
    t.die()


def test_obituaries_are_kept_the_latest_hundred_of_them(pool_factory):
    pool = pool_factory(1)
    for n in range(3):
        pool.using(label=f"number {n}").submit(t.die).exception()
    deaths = pool.statistics().deaths
    assert [death.task for death in deaths] == ["number 0", "number 1", "number 2"]
    assert {death.signal for death in deaths} == {"SIGKILL"}


def test_processor_time_of_workers_is_counted_live_and_after_they_ended(pool_factory):
    pool = pool_factory(1, spare=False)
    pool.submit(_burn, 0.15).result()
    assert 0.1 < pool.statistics().cpu_s < 10
    pool.shutdown()
    assert 0.1 < pool.statistics().cpu_s < 10


def _burn(seconds):
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def test_uptime_counts_from_the_first_use(pool):
    assert pool.statistics().uptime_s == 0.0
    pool.submit(t.nothing).result()
    one = pool.statistics().uptime_s
    two = pool.statistics().uptime_s
    assert 0 < one <= two < 60


def test_numbers_stay_after_shutdown(pool):
    list(pool.map(t.square, range(10)))
    pool.shutdown()
    numbers = pool.statistics()
    assert (numbers.done, numbers.workers, numbers.running, numbers.queued) == (10, 0, 0, 0)


def test_dropped_items_of_a_closed_imap_are_not_left_running(pool, gate):
    results = pool.imap(t.Gate.enter, [gate] * 100, buffersize=20)
    import threading

    thread = threading.Thread(target=_next_or_none, args=(results,))
    thread.start()
    gate.wait_until_entered()
    gate.open()
    thread.join()
    results.close()
    eventually(lambda: pool.statistics().running + pool.statistics().queued == 0, what="the rest to be dropped")


def _next_or_none(results):
    next(results, None)


def test_numbers_add_up_after_a_storm(pool):
    """Successes, failures, deaths, cancellations and maps given up: in the end each task is counted once."""
    futures = [pool.submit((t.square, t.fail, t.die)[n % 3], n) for n in range(30)]
    cancelled = sum(future.cancel() for future in futures[20:])
    for future in futures:
        if not future.cancelled():
            future.exception()
    list(pool.imap(t.fail_if_odd, range(40), errors="skip"))
    pool.shutdown()
    numbers = pool.statistics()
    assert numbers.submitted == 70
    assert numbers.cancelled == cancelled
    assert numbers.done + numbers.failed + numbers.cancelled == 70


# --- workers ------------------------------------------------------------------------------------


def test_workers_tell_pid_state_task_and_time(pool_factory, gate):
    pool = pool_factory(1, spare=False)
    future = pool.using(label="my task").submit(gate.enter)
    gate.wait_until_entered()
    (worker,) = pool.workers
    assert (worker.state, worker.task, worker.done) == ("busy", "my task", 0)
    assert is_alive(worker.pid)
    assert worker.running_s >= 0
    gate.open()
    future.result()
    (worker,) = pool.workers
    assert (worker.state, worker.task, worker.running_s, worker.done) == ("idle", None, None, 1)


def test_workers_name_the_call_they_run(pool_factory, gate):
    pool = pool_factory(1, spare=False)
    future = pool.submit(gate.enter, 42)
    gate.wait_until_entered()
    assert pool.workers[0].task == "Gate.enter(42)"
    gate.open()
    future.result()


def test_workers_name_the_item_of_a_map_they_run(pool_factory, gate):
    pool = pool_factory(1, spare=False)
    results = pool.map(_enter_on_three, [gate] * 5, range(5))
    gate.wait_until_entered()
    assert pool.workers[0].task.startswith("_enter_on_three(")
    assert pool.workers[0].task.endswith(", 3)")
    gate.open()
    assert list(results) == [0, 1, 2, 3, 4]


def _enter_on_three(gate, n):
    if n == 3:
        gate.enter()
    return n


def test_a_workers_pid_is_the_one_its_tasks_see(pool_factory):
    pool = pool_factory(1, spare=False)
    pid = pool.submit(t.pid).result()
    assert [worker.pid for worker in pool.workers] == [pid]
    assert pid != os.getpid()


def test_a_replacement_has_a_number_of_its_own(pool_factory):
    pool = pool_factory(1, spare=False)
    pool.submit(t.nothing).result()
    (first,) = pool.workers
    pool.submit(t.die).exception()
    pool.submit(t.nothing).result()
    eventually(lambda: len(pool.workers) == 1, what="the dead one to be put away")
    (second,) = pool.workers
    assert second.number != first.number
    assert second.pid != first.pid


def test_each_worker_leads_a_process_group_of_its_own(pool):
    for pid, group in pool.map(_pid_and_group, range(50)):
        assert pid == group != os.getpgrp()


def _pid_and_group(_):
    return os.getpid(), os.getpgrp()
