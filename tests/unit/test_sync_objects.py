"""`Lock`, `RLock`, `Semaphore`, `Event`, `Condition` and `Barrier` as one process sees them: the habits of `threading`'s."""

from __future__ import annotations

import dataclasses
import math
import pickle
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from fractions import Fraction

import numpy as np
import pytest

import shoal
from shoal._sync import board, deadlines, states
from shoal._sync import lock as lock_module
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


@pytest.fixture
def beside():
    with ThreadPoolExecutor(4) as threads:
        yield threads


def in_thread(function, *arguments, **named):
    with ThreadPoolExecutor(1) as one:
        return one.submit(function, *arguments, **named).result(HANG_LIMIT_S)


def can_be_had(lock):
    """Whether a lock is free; leaves it so."""
    with lock.acquire(False) as hold:
        return bool(hold)


@pytest.mark.parametrize("make", KINDS)
def test_each_says_what_it_is_and_how_it_stands(make):
    one, other = make(), make()
    assert repr(one).startswith(f"<shoal.{type(one).__name__}")
    assert one != other
    assert len({one, other, one}) == 2
    assert one != 1
    picture = one.statistics()
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(picture, dataclasses.fields(picture)[0].name, 1)
    with pytest.raises(TypeError, match="cannot be pickled to bytes"):
        pickle.dumps(one, 5)


WAITS = [
    lambda timeout: shoal.Lock().acquire(timeout=timeout),
    lambda timeout: shoal.Lock().acquire(False, timeout),
    lambda timeout: shoal.RLock().acquire(timeout=timeout),
    lambda timeout: shoal.Semaphore(1).acquire(timeout=timeout),
    lambda timeout: shoal.Semaphore(0).acquire(False, timeout),
    lambda timeout: shoal.Event().wait(timeout),
    lambda timeout: shoal.Condition().wait(timeout),
    lambda timeout: shoal.Condition().wait_for(lambda: True, timeout),
    lambda timeout: shoal.Condition().acquire(timeout=timeout),
    lambda timeout: shoal.Barrier(1).wait(timeout),
    lambda timeout: shoal.Barrier(2, timeout=timeout),
]


@pytest.mark.parametrize("wait", WAITS)
def test_a_timeout_that_is_no_number_is_refused_also_where_nobody_would_wait(wait):
    with pytest.raises(ValueError, match="timeout must be seconds.*nan"):
        wait(float("nan"))
    with pytest.raises(ValueError, match="nan"):
        wait(np.float32("nan"))
    for wrong in ("1", b"1", [1], 1j, timedelta(1)):
        with pytest.raises(TypeError, match="timeout must be seconds as a number"):
            wait(wrong)


@pytest.mark.parametrize(
    ("given", "limit_s"),
    [
        (0, 0.0),
        (-5, 0.0),
        (-math.inf, 0.0),
        (2, 2.0),
        (np.float32(0.5), 0.5),
        (Fraction(1, 4), 0.25),
        (True, 1.0),
        (math.inf, None),
        (10**400, None),
    ],
)
def test_a_timeout_is_seconds_from_nought_to_a_century(given, limit_s):
    assert deadlines.seconds(given) == limit_s


# --- locks --------------------------------------------------------------------------------------

both = pytest.mark.parametrize("kind", [shoal.Lock, shoal.RLock])


@both
def test_a_lock_is_held_and_released(kind):
    lock = kind()
    assert not lock.locked()
    assert lock.acquire() == True  # noqa: E712 - as code written for `threading` may compare
    assert lock.locked()
    assert not in_thread(lock.acquire, False)
    assert not in_thread(lock.acquire, blocking=False)
    assert not in_thread(lock.acquire, timeout=0.001)
    assert not in_thread(lock.acquire, True, -1)
    lock.release()
    assert not lock.locked()
    with lock as hold:
        assert hold
        assert (hold.abandoned, hold.abandoned_by) == (False, None)
        assert lock.holder == lock.statistics().holder
    with lock.acquire(timeout=1):
        assert lock.locked()
    assert not lock.locked()


@both
def test_a_hold_that_was_not_got_is_false_and_cannot_be_entered(kind):
    lock = kind()
    lock.acquire()
    missed = in_thread(lock.acquire, timeout=0)
    assert missed == False  # noqa: E712
    with pytest.raises(TimeoutError, match="another thread of this process holds it"), missed:
        pass
    with pytest.raises(RuntimeError, match="not acquired"):
        missed.release()
    lock.release()


@both
def test_only_the_thread_that_acquired_a_lock_releases_it(kind):
    lock = kind()
    with pytest.raises(RuntimeError, match="nobody holds it"):
        lock.release()
    with lock, pytest.raises(RuntimeError, match="another thread of this process"):
        in_thread(lock.release)
    assert not lock.locked()


def test_a_lock_is_not_waited_for_by_its_holder():
    lock = shoal.Lock()
    with lock:
        with pytest.raises(RuntimeError, match="for ever"):
            lock.acquire()
        assert not lock.acquire(False)
        assert not lock.acquire(timeout=0.001)
        assert lock.locked()
    assert not lock.locked()


def test_a_reentrant_lock_is_free_when_it_was_released_as_often():
    lock = shoal.RLock()
    with lock:
        with lock:
            assert lock.acquire(False)
        lock.release()
        assert not in_thread(lock.acquire, False)
    assert in_thread(can_be_had, lock)


@both
def test_a_thread_that_ends_with_a_lock_is_a_dead_holder(kind):
    lock = kind()
    assert in_thread(lock.acquire)
    eventually(lambda: not lock.locked(), what="the kernel to put the thread away")
    with lock as hold:
        assert hold.abandoned
    with lock as hold:
        assert not hold.abandoned
    assert lock.statistics().abandoned == 1


def test_threads_that_come_and_go_are_looked_at_seldom_and_not_kept(monkeypatch):
    looked = []
    monkeypatch.setattr(lock_module, "thread_lives", looked.append)
    lock = shoal.Lock()
    for _ in range(100):
        in_thread(can_be_had_here, lock)
    assert len(lock_module._threads) <= lock_module._look_at
    assert len(looked) <= 200
    monkeypatch.undo()
    lock_module._threads[lock_module._local.state[1]] = lock_module._local.state[0]


def can_be_had_here(lock):
    with lock:
        return True


def test_a_held_lock_stays_mapped_though_nobody_has_it():
    lock = shoal.Lock()
    lock.acquire()
    address = lock._mutex
    del lock
    held = next(held for held in lock_module._threads.values() if address in held)
    lock_module.mutex.unlock(address)
    del held[address]


@both
def test_a_lock_lets_in_one_thread_at_a_time(beside, kind):
    lock, counts = kind(), [0]

    def count():
        for _ in range(200):
            with lock:
                seen = counts[0]
                time.sleep(0)
                counts[0] = seen + 1

    list(beside.map(lambda _: count(), range(3)))
    assert counts == [600]
    assert not lock.statistics().queued


def test_who_does_not_wait_takes_a_free_lock_though_somebody_is_at_the_door():
    lock = shoal.Lock()
    lock._words[lock_module.QUEUED] = True
    assert in_thread(can_be_had, lock)


@both
def test_a_lock_that_is_not_had_in_time_is_given_up_when_the_time_is_over(kind, beside):
    """Also behind somebody who is at the door."""
    lock = kind()
    with lock:
        first = beside.submit(lambda: bool(lock.acquire() and (lock.release() or True)))
        eventually(lambda: lock.statistics().queued, what="one to be at the door")
        begun = time.monotonic()
        assert not in_thread(lock.acquire, timeout=0.005)
        assert time.monotonic() - begun >= 0.005
    assert first.result(HANG_LIMIT_S)


# --- semaphores ---------------------------------------------------------------------------------


def test_a_semaphore_counts():
    semaphore = shoal.Semaphore(2)
    assert semaphore.acquire()
    with semaphore:
        assert semaphore.locked()
        assert not semaphore.acquire(block=False)
        assert not semaphore.acquire(timeout=0.001)
        assert not semaphore.acquire(blocking=False)
    semaphore.release(3)
    assert semaphore.get_value() == 4
    assert semaphore.statistics() == dataclasses.replace(semaphore.statistics(), value=4, waiting=0, holders={})


def test_a_bounded_semaphore_is_not_released_too_often():
    semaphore = shoal.BoundedSemaphore(2)
    with semaphore:
        with pytest.raises(ValueError, match="more often"):
            semaphore.release(2)
    with pytest.raises(ValueError, match="more often"):
        semaphore.release()
    assert semaphore.get_value() == 2


@pytest.mark.parametrize(("value", "error"), [(-1, ValueError), ("a", TypeError), (1.5, TypeError)])
def test_a_semaphore_refuses_what_is_no_number_of_permits(value, error):
    with pytest.raises(error):
        shoal.Semaphore(value)
    with pytest.raises(ValueError, match="cannot release"):
        shoal.Semaphore().release(0)
    for wrong in ("a", 1.5):
        with pytest.raises(TypeError):
            shoal.Semaphore().release(wrong)


@pytest.mark.parametrize(("value", "room"), [(0, 64), (64, 64), (100, 100), (512, 512), (100_000, 512)])
def test_a_semaphore_notes_as_many_holders_as_it_has_permits_from_64_to_512(value, room):
    semaphore = shoal.Semaphore(value)
    for who in range(1, 600):
        if semaphore._board.step(board.Note(), states.acquire, who, 0, semaphore._board.room).answer != states.YES:
            break
    assert semaphore._board.room == room
    assert len(semaphore._board.read().holders) == min(value, room)


def test_who_waits_for_a_permit_is_served_in_turn(beside):
    semaphore, served = shoal.Semaphore(0), []

    def wait(name):
        semaphore.acquire()
        served.append(name)

    for name in range(4):
        beside.submit(wait, name)
        eventually(lambda name=name: semaphore.statistics().waiting == name + 1, what="it to wait")
    for name in range(4):
        semaphore.release()
        eventually(lambda name=name: len(served) == name + 1, what="one to be served")
    assert served == [0, 1, 2, 3]


def test_those_without_a_slot_get_their_permits_too(monkeypatch):
    monkeypatch.setattr(board, "SLOTS", 1)
    monkeypatch.setattr(board, "POLL_S", 0.0005)
    semaphore = shoal.Semaphore(0)
    semaphore._board.slots = 1
    with ThreadPoolExecutor(4) as many:
        waiting = [many.submit(semaphore.acquire) for _ in range(4)]
        semaphore.release(4)
        assert all(one.result(HANG_LIMIT_S) for one in waiting)
    assert semaphore.get_value() == 0


# --- events -------------------------------------------------------------------------------------


def test_an_event_is_set_and_cleared(beside):
    event = shoal.Event()
    assert not event.is_set()
    assert not event.wait(0.001)
    waiting = [beside.submit(event.wait) for _ in range(3)]
    event.set()
    event.set()
    assert all(one.result(HANG_LIMIT_S) for one in waiting)
    assert event.wait(0)
    assert event.statistics().sets == 1
    event.clear()
    event.clear()
    assert not event.is_set()


def test_an_event_that_is_cleared_at_once_still_wakes_who_waited(beside, monkeypatch):
    event, asleep = shoal.Event(), threading.Event()
    real = board.futex.wait

    def wait(*arguments):
        asleep.set()
        return real(*arguments)

    monkeypatch.setattr(board.futex, "wait", wait)
    waiting = beside.submit(event.wait)
    asleep.wait()
    event.set()
    event.clear()
    assert waiting.result(HANG_LIMIT_S)


# --- conditions ---------------------------------------------------------------------------------


@pytest.mark.parametrize("lock", [None, shoal.Lock, shoal.RLock])
def test_a_condition_tells_those_who_wait_in_turn(beside, lock):
    condition, told = shoal.Condition(lock and lock()), []

    def wait(name):
        with condition:
            assert condition.wait(HANG_LIMIT_S)
            told.append(name)

    for name in range(4):
        beside.submit(wait, name)
        eventually(lambda name=name: condition.statistics().waiting == name + 1, what="it to wait")
    for count, many in ((1, 1), (3, 2)):
        with condition:
            condition.notify(many)
        eventually(lambda count=count: len(told) == count, what="them to be told")
        assert sorted(told) == list(range(count))
    with condition:
        condition.notify_all()
    eventually(lambda: len(told) == 4, what="the last one to be told")


def test_a_condition_is_used_with_its_lock():
    condition = shoal.Condition()
    for use in (condition.wait, condition.notify, condition.notify_all, condition.release):
        with pytest.raises(RuntimeError):
            use()
    with pytest.raises(TypeError, match=r"shoal\.Lock"):
        shoal.Condition(threading.Lock())
    with condition as hold:
        assert hold.abandoned is condition.abandoned is False
        assert not condition.wait(0.001)
        assert condition.statistics().waiting == 0


def test_a_condition_notifies_a_number_of_waiters():
    condition = shoal.Condition()
    with condition:
        condition.notify(0)
        for wrong, error in (("a", TypeError), (1.5, TypeError), (None, TypeError), (-1, ValueError)):
            with pytest.raises(error):
                condition.notify(wrong)


def test_a_condition_gives_the_lock_back_as_often_as_it_was_held():
    condition = shoal.Condition()
    with condition, condition:
        assert not condition.wait(0)
        condition.release()
        assert not in_thread(condition.acquire, False)
        condition.acquire()
    assert in_thread(can_be_had, condition)


def test_a_condition_waits_for_what_is_asked(beside):
    condition, numbers = shoal.Condition(), []

    def wait():
        with condition:
            return condition.wait_for(lambda: len(numbers) > 2 and numbers, HANG_LIMIT_S)

    waiting = beside.submit(wait)
    for number in range(3):
        with condition:
            numbers.append(number)
            condition.notify()
    assert waiting.result(HANG_LIMIT_S) == [0, 1, 2]
    with condition:
        assert not condition.wait_for(lambda: False, 0.001)


def test_those_without_a_slot_are_notified_too(monkeypatch):
    monkeypatch.setattr(board, "POLL_S", 0.0005)
    condition = shoal.Condition()
    condition._board.slots = 1

    def wait():
        with condition:
            ready.append(1)
            return condition.wait(HANG_LIMIT_S)

    ready = []
    with ThreadPoolExecutor(3) as many:
        waiting = [many.submit(wait) for _ in range(3)]
        eventually(lambda: len(ready) == 3, what="all to come")
        with condition:
            condition.notify_all()
        assert all(one.result(HANG_LIMIT_S) for one in waiting)


# --- barriers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("acts", [False, True])
def test_a_barrier_is_passed_together_again_and_again(beside, acts):
    done = []
    barrier = shoal.Barrier(3, (lambda: done.append(1)) if acts else None)
    for round_ in range(3):
        places = list(beside.map(lambda _: barrier.wait(HANG_LIMIT_S), range(3)))
        assert sorted(places) == [0, 1, 2]
        assert len(done) == acts * (round_ + 1)
    assert (barrier.parties, barrier.n_waiting, barrier.broken) == (3, 0, False)


def test_a_barrier_breaks_when_one_has_waited_too_long(beside):
    barrier = shoal.Barrier(3, timeout=HANG_LIMIT_S)
    waiting = beside.submit(barrier.wait)
    eventually(lambda: barrier.n_waiting == 1, what="one to wait")
    with pytest.raises(shoal.BrokenBarrierError, match="longer than its timeout"):
        barrier.wait(0.001)
    with pytest.raises(threading.BrokenBarrierError):
        waiting.result(HANG_LIMIT_S)
    assert barrier.broken
    with pytest.raises(shoal.BrokenBarrierError):
        barrier.wait()
    barrier.reset()
    assert not barrier.broken


@pytest.mark.parametrize("way", ["abort", "reset"])
def test_a_barrier_breaks_for_all_who_wait(beside, way):
    barrier = shoal.Barrier(3)
    waiting = beside.submit(barrier.wait)
    eventually(lambda: barrier.n_waiting == 1, what="one to wait")
    getattr(barrier, way)()
    with pytest.raises(shoal.BrokenBarrierError, match=way):
        waiting.result(HANG_LIMIT_S)
    assert barrier.broken is (way == "abort")
    assert barrier.statistics().waiting == 0


def test_a_barrier_whose_action_fails_is_broken(beside):
    barrier = shoal.Barrier(2, lambda: 1 / 0)
    waiting = beside.submit(barrier.wait)
    eventually(lambda: barrier.n_waiting == 1, what="one to wait")
    with pytest.raises(ZeroDivisionError):
        barrier.wait()
    with pytest.raises(shoal.BrokenBarrierError, match="action failed"):
        waiting.result(HANG_LIMIT_S)


def test_a_barrier_for_nobody_is_refused():
    with pytest.raises(ValueError, match="at least 1"):
        shoal.Barrier(0)
    assert shoal.Barrier(1).wait() == 0
