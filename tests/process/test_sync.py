"""Locks and their kin through real workers: one object for all, wherever it travels, and defined when somebody is killed."""

from __future__ import annotations

import copy
import dataclasses
import os
import pickle
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import pytest

import shoal
from shoal._sync import lock as lock_module
from tests.process import pool_tasks, sync_tasks
from tests.process.sync_tasks import Box
from tests.support import HANG_LIMIT_S, eventually

KINDS = [
    shoal.Lock,
    shoal.RLock,
    shoal.Semaphore,
    shoal.BoundedSemaphore,
    shoal.Event,
    shoal.Condition,
    lambda: shoal.Barrier(2),
]


# --- travelling ---------------------------------------------------------------------------------


def test_each_is_the_same_wherever_it_goes_and_when_it_comes_back(pool):
    made = [make() for make in KINDS]
    nested = {"a": [Box(tuple(made))], "b": np.zeros(4)}
    back = pool.submit(pool_tasks.identity, nested).result()
    assert list(back["a"][0].lock) == made
    assert back["a"][0].lock[0] is not made[0]
    assert next(iter(pool.map(pool_tasks.identity, [made[0]]))) == made[0]


def test_a_lock_is_one_lock_as_argument_inside_others_captured_and_kept(pool_factory):
    lock = shoal.Lock()
    pool = pool_factory(1, initializer=sync_tasks.keep, initargs=(Box(lock),))
    ways = {
        "an argument": lambda: pool.submit(sync_tasks.is_held, lock),
        "a keyword": lambda: pool.submit(sync_tasks.is_held, lock=lock),
        "captured": lambda: pool.submit(lambda: (lock.locked(),)[0]),
        "an attribute": lambda: pool.submit(lambda box: box.lock.locked(), Box(lock)),
        "an initializer's": lambda: pool.submit(sync_tasks.kept_is_held),
        "a method of it": lambda: pool.submit(lock.locked),
    }
    for name, way in ways.items():
        with lock:
            assert way().result() is True, name
        assert way().result() is False, name
    assert pool.submit(sync_tasks.kept).result().lock == lock


def test_a_lock_made_in_a_task_is_returned_and_outlives_its_worker(pool):
    lock = pool.submit(shoal.Lock).result()
    with lock:
        assert pool.submit(sync_tasks.is_held, lock).result()
    with pytest.raises(shoal.WorkerDied):
        pool.submit(pool_tasks.die).result()
    with lock:
        assert pool.submit(sync_tasks.is_held, lock).result()


@pytest.mark.start_methods("fork")
def test_forked_workers_inherit_what_they_find(pool_factory):
    sync_tasks.keep(Box(shoal.Lock()))
    pool = pool_factory(1)
    with sync_tasks.kept().lock:
        assert pool.submit(sync_tasks.kept_is_held).result()
    sync_tasks.STATE.clear()


def test_a_forked_child_does_not_hold_what_its_parent_holds():
    lock, semaphore = shoal.Lock(), shoal.Semaphore(2)
    with lock, semaphore:
        pid = os.fork()
        if pid == 0:
            right = not lock.acquire(False) and lock.holder == os.getppid()
            try:
                lock.release()
                right = False
            except RuntimeError:
                pass
            os._exit(0 if right else 1)
        assert os.waitpid(pid, 0)[1] == 0
        assert semaphore.statistics().holders == {os.getpid(): 1}
        assert lock.locked()


@pytest.mark.start_methods("forkserver")
def test_where_a_copy_would_be_made_it_is_refused(pool):
    lock = shoal.Lock()
    with pytest.raises(TypeError, match="cannot be pickled to bytes"):
        pickle.dumps({"lock": lock})
    with pytest.raises(shoal.NotPicklable, match="cannot be pickled to bytes"):
        shoal.share([lock])
    with pytest.raises(TypeError, match="cannot be pickled to bytes"):
        pool.submit(lambda: pickle.dumps(lock, 5)).result()
    for made in [make() for make in KINDS]:
        for copied in (copy.copy, copy.deepcopy):
            with pytest.raises(TypeError, match="cannot be pickled to bytes or copied"):
                copied(made)


# --- working together ---------------------------------------------------------------------------


@pytest.mark.parametrize("make", [shoal.Lock, shoal.RLock, shoal.Semaphore, shoal.Condition])
def test_a_counter_protected_by_it_is_exact(pool, make):
    protection, counter = make(), shoal.zeros(1, "i8")
    list(pool.starmap(sync_tasks.count, [(protection, counter, 300)] * 4))
    assert counter[0] == 1200


def test_an_event_set_in_a_worker_is_seen_by_all(pool):
    event = shoal.Event()
    waiting = pool.submit(sync_tasks.wait, event, HANG_LIMIT_S)
    pool.submit(sync_tasks.set_it, event).result()
    assert waiting.result()
    assert event.wait(HANG_LIMIT_S)


def test_items_under_a_condition_reach_one_each(pool):
    condition, items = shoal.Condition(), shoal.zeros(1, "i8")
    waiting = [pool.submit(sync_tasks.take, condition, items, HANG_LIMIT_S) for _ in range(2)]
    for _ in range(2):
        with condition:
            items[0] += 1
            condition.notify()
    assert all(one.result() for one in waiting)
    assert items[0] == 0


# --- deaths -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [shoal.Lock, shoal.RLock])
def test_the_next_owner_of_a_lock_is_told_who_died_with_it(pool, kind):
    lock = kind()
    with pytest.raises(shoal.WorkerDied) as death:
        pool.submit(sync_tasks.hold_and_die, lock).result()
    assert pool.submit(sync_tasks.enter, lock).result()[1] == death.value.obituary.pid
    with lock as hold:
        assert not hold.abandoned
    assert lock.statistics().abandoned == 1


def test_a_waiter_gets_the_lock_when_its_holder_is_killed(pool):
    lock = shoal.Lock()
    holder = pool.submit(lambda: lock.acquire() and threading.Event().wait())
    eventually(lock.locked, what="the worker to hold it")
    with ThreadPoolExecutor(1) as beside:
        waiting = beside.submit(lock.acquire, timeout=HANG_LIMIT_S)
        eventually(lambda: lock.statistics().queued, what="the thread to wait")
        pid = lock.holder
        holder.cancel()
        hold = waiting.result()
        assert hold.abandoned_by == pid
        beside.submit(lock.release).result()


@contextmanager
def zombie(body: Callable[[], object]) -> Iterator[int]:
    """A child that runs `body` and is killed, and not reaped meanwhile; its pid."""
    pid = os.fork()
    if pid == 0:
        try:
            body()
        finally:
            os.kill(os.getpid(), signal.SIGKILL)
    try:
        yield pid
    finally:
        os.waitpid(pid, 0)


def test_a_zombie_holds_no_lock():
    lock = shoal.Lock()
    with zombie(lock.acquire) as pid:
        eventually(lambda: lock.statistics().holder is None and lock._words[lock_module.OWNER], what="it to be dead")
        assert not lock.locked()
        with lock.acquire(False) as hold:
            assert hold.abandoned_by == pid


def test_who_waits_is_told_of_a_holder_that_died_though_it_is_a_zombie():
    condition = shoal.Condition()
    with condition, zombie(condition.acquire) as pid:
        assert condition.wait(HANG_LIMIT_S)
        assert condition.abandoned_by == pid


@pytest.mark.start_methods("forkserver", "fork")
def test_permits_of_a_killed_worker_come_back(pool):
    semaphore = shoal.BoundedSemaphore(2)
    semaphore.acquire()
    with pytest.raises(shoal.WorkerDied):
        pool.submit(sync_tasks.hold_and_die, semaphore).result()
    assert semaphore.acquire(block=False)
    assert not semaphore.acquire(timeout=0.001)
    assert semaphore.statistics().holders == {os.getpid(): 2}
    semaphore.release(2)
    assert dataclasses.astuple(semaphore.statistics())[:3] == (2, 0, {})


@pytest.mark.start_methods("forkserver", "fork")
def test_a_barrier_names_the_party_that_was_killed(pool_factory):
    pool = pool_factory(1, spare=False)
    barrier = shoal.Barrier(3)
    pid = pool.submit(os.getpid).result()
    party = pool.submit(sync_tasks.wait, barrier, None)
    with ThreadPoolExecutor(1) as beside:
        waiting = beside.submit(barrier.wait)
        eventually(lambda: barrier.n_waiting == 2, what="both to wait")
        party.cancel()
        with pytest.raises(shoal.BrokenBarrierError, match="it died") as broken:
            waiting.result(HANG_LIMIT_S)
    assert broken.value.pid == pid
    assert barrier.statistics().broken_by == pid


def test_the_permits_of_more_than_64_dead_processes_come_back():
    """As many as the semaphore was made with."""
    count = 80
    semaphore = shoal.Semaphore(count)
    for _ in range(count):
        pid = os.fork()
        if pid == 0:
            os._exit(0 if semaphore.acquire(False) else 1)
        assert os.waitpid(pid, 0)[1] == 0
    assert [semaphore.acquire(False) for _ in range(count + 1)] == [True] * count + [False]


# --- who is stopped -----------------------------------------------------------------------------


@contextmanager
def stopped(body: Callable[[], object], when: Callable[[], object]) -> Iterator[int]:
    """A child that runs `body` and is stopped when that waits; its pid. Killed afterwards."""
    pid = os.fork()
    if pid == 0:
        try:
            body()
            signal.pause()
        finally:
            os._exit(1)
    try:
        eventually(when, what="the child to wait")
        os.kill(pid, signal.SIGSTOP)
        assert os.WIFSTOPPED(os.waitpid(pid, os.WUNTRACED)[1])
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


@pytest.mark.parametrize("kind", [shoal.Lock, shoal.RLock])
def test_nobody_waits_for_one_that_is_stopped_while_it_waits_for_the_lock(kind):
    """L5. When it goes on it gets the lock."""
    lock = kind()
    lock.acquire()
    with stopped(lock.acquire, lambda: lock.statistics().queued) as pid:
        lock.release()
        for way in ({"block": False}, {"timeout": 0}, {"timeout": 0.001}, {"timeout": HANG_LIMIT_S}, {}):
            lock._words[lock_module.QUEUED] = True  # as it would be, had nobody been here before
            assert lock.acquire(**way), way
            lock.release()
        with ThreadPoolExecutor(3) as many:
            assert sum(many.map(lambda _: _enter_often(lock), range(3))) == 300
        os.kill(pid, signal.SIGCONT)
        eventually(lambda: lock.holder == pid, what="it to get the lock")
    with lock as hold:
        assert hold.abandoned_by == pid


def _enter_often(lock):
    for _ in range(100):
        with lock:
            pass
    return 100


def test_a_permit_that_was_granted_to_one_that_is_stopped_is_its_own_until_it_dies():
    semaphore = shoal.Semaphore(1)
    semaphore.acquire()
    with stopped(semaphore.acquire, lambda: semaphore.statistics().waiting):
        semaphore.release()
        assert not semaphore.acquire(timeout=0.15)
    assert semaphore.acquire(timeout=HANG_LIMIT_S)


def test_what_notify_told_one_that_is_stopped_is_its_own_until_it_dies():
    condition = shoal.Condition()

    def wait():
        with condition:
            condition.wait()

    with ThreadPoolExecutor(1) as beside, stopped(wait, lambda: condition.statistics().waiting):
        waiting = beside.submit(lambda: wait() or True)
        eventually(lambda: condition.statistics().waiting == 2, what="the thread to wait behind it")
        with condition:
            condition.notify()
        assert condition.statistics().waiting == 1
        with condition:
            condition.notify()
        assert waiting.result(HANG_LIMIT_S)


# --- fairness -----------------------------------------------------------------------------------


@pytest.mark.alone
@pytest.mark.start_methods("forkserver")
@pytest.mark.parametrize("count", [2, 4])
def test_nobody_starves(pool_factory, count):
    """The one that got the lock least often has a fair part of it. Generous: the machine may be busy."""
    pool = pool_factory(count)
    lock, barrier = shoal.Lock(), shoal.Barrier(count)
    results = [pool.submit(sync_tasks.contend, lock, barrier, 0.4) for _ in range(count)]
    got = [one.result()[0] for one in results]
    assert min(got) > 0.2 * sum(got) / count, got
