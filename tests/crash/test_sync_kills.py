"""Locks and their kin, with a process killed at every step of the real code: the others go on, and count right.

Each test forks a child for each step of an operation and kills it there; where that takes long, for one step of several,
unless SHOAL_TEST_EVERY_STEP is set. See `_sync/README.md`.
"""

from __future__ import annotations

import signal
from concurrent.futures import ThreadPoolExecutor

import pytest

import shoal
from shoal._os import mutex
from shoal._sync import cells
from tests.crash.line_kills import children
from tests.support import HANG_LIMIT_S, eventually

#: A step of the protocol that a killed process owed is made up for within this. Seconds; generous.
SOON_S = 5.0


@pytest.fixture
def word():
    """Words that the children share with the test."""
    words = cells.make(64).words(0, 8)
    yield words
    words.release()  # pytest keeps it until the audit is over


@pytest.fixture
def beside():
    """A thread of the test that waits for something."""
    with ThreadPoolExecutor(1) as threads:
        yield threads


# --- locks --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [shoal.Lock, shoal.RLock])
def test_a_lock_is_free_and_tells_its_next_owner_wherever_its_holder_is_killed(kind, word):
    lock = kind()

    def use():
        with lock:
            word[0] = 1
            word[0] = 0

    steps = 0
    for child in children(use, fine=True):
        child.wait()
        with lock.acquire(timeout=HANG_LIMIT_S) as hold:
            assert hold.abandoned_by in (None, child.pid)
            assert hold.abandoned or not word[0], "it died inside, and nobody was told"
            word[0] = 0
        with lock as hold:
            assert not hold.abandoned
        steps += 1
    assert steps > 10


def test_a_reentrant_lock_held_twice_by_the_dead_is_held_once_by_the_next(word):
    lock = shoal.RLock()

    def use():
        with lock, lock:
            word[0] = 1

    for child in children(use):
        child.wait()
        assert lock.acquire(timeout=HANG_LIMIT_S)
        lock.release()
        assert not lock.locked()


def test_a_lock_is_free_wherever_one_is_killed_that_waits_for_it(word):
    lock = shoal.Lock()

    def use():
        with lock:
            word[0] = 1
            word[0] = 0

    lock.acquire()
    for child in children(use):
        eventually(lambda child=child: child.ended() or lock.statistics().queued, what="the child to queue")
        lock.release()
        child.wait()
        hold = lock.acquire(timeout=HANG_LIMIT_S)
        assert hold
        assert hold.abandoned or not word[0]
        word[0] = 0
        lock.release()
        assert lock.acquire(block=False)  # nobody is at the door
    lock.release()


def test_a_lock_is_free_wherever_one_is_stopped_that_waits_for_it():
    """L5: unless it has the mutex already, that is, holds the lock; then it is free when it dies."""
    lock, held, free = shoal.Lock(), 0, 0

    def use():
        with lock:
            pass

    lock.acquire()
    for child in children(use, by=signal.SIGSTOP, stride=3):
        eventually(lambda child=child: child.stopped() or lock.statistics().queued, what="the child to queue")
        before = child.stopped()
        lock.release()
        eventually(child.stopped, what="the child to be stopped")
        hold = lock.acquire(timeout=HANG_LIMIT_S if before else 0.3)
        child.kill()
        if hold:
            free += 1
        else:
            held += 1
            assert mutex.try_lock(lock._mutex) == mutex.OWNER_DIED
            mutex.unlock(lock._mutex)
            assert lock.acquire(block=False)
    assert held
    assert free
    lock.release()


# --- semaphores ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [shoal.Semaphore, shoal.BoundedSemaphore])
def test_permits_come_back_wherever_their_holder_is_killed(kind):
    semaphore = kind(2)

    def use():
        semaphore.acquire()
        with semaphore:
            pass
        semaphore.release()

    for child in children(use):
        child.wait()
        assert semaphore.acquire(block=False)
        assert semaphore.acquire(block=False)
        assert not semaphore.acquire(block=False)
        semaphore.release(2)
        assert semaphore.statistics().holders == {}


def test_a_permit_is_not_lost_wherever_one_is_killed_that_waits_for_it():
    semaphore = shoal.Semaphore(1)

    def use():
        with semaphore:
            pass

    semaphore.acquire()
    for child in children(use, stride=7):
        eventually(lambda child=child: child.ended() or semaphore.statistics().waiting, what="the child to wait")
        semaphore.release()
        child.wait()
        assert semaphore.acquire(timeout=SOON_S)
        assert semaphore.get_value() == 0
    semaphore.release()
    assert (semaphore.get_value(), semaphore.statistics().waiting) == (1, 0)


def test_who_waits_gets_the_permit_wherever_its_giver_is_killed(beside, word):
    semaphore = shoal.Semaphore(1)

    def use():
        semaphore.acquire()
        word[0] = 1
        eventually(lambda: word[1], what="the go-ahead")
        semaphore.release()

    for child in children(use, stride=5):
        eventually(lambda child=child: child.ended() or word[0], what="the child to hold it")
        waiting = beside.submit(semaphore.acquire, timeout=HANG_LIMIT_S)
        eventually(lambda w=waiting: w.done() or semaphore.statistics().waiting, what="the thread to wait")
        word[1] = 1
        child.wait()
        assert waiting.result(SOON_S)
        semaphore.release()
        assert semaphore.get_value() == 1
        word[0] = word[1] = 0


# --- conditions ---------------------------------------------------------------------------------


def consume(condition, word):
    """Wait for an item and take it."""
    with condition:
        while not word[0]:
            condition.wait()
        word[0] -= 1


def test_who_waits_gets_the_item_wherever_its_producer_is_killed(beside, word):
    condition = shoal.Condition()

    def produce():
        with condition:
            word[0] += 1
            condition.notify()

    for child in children(produce, stride=2):
        waiting = beside.submit(consume, condition, word)
        child.wait()
        if not word[0] and not waiting.done():  # killed before there was an item
            with condition:
                word[0] += 1
                condition.notify()
        waiting.result(SOON_S)
        assert word[0] == 0
    assert condition.statistics().waiting == 0


def test_a_notification_is_not_lost_wherever_its_receiver_is_killed(beside, word):
    condition = shoal.Condition(shoal.Lock())

    def use():
        consume(condition, word)
        word[1] = 1  # it has the item

    for child in children(use, stride=7):
        eventually(lambda child=child: child.ended() or condition.statistics().waiting, what="the child to wait")
        waiting = beside.submit(consume, condition, word)
        eventually(
            lambda child=child: condition.statistics().waiting == 2 - child.ended(), what="the thread to wait behind it"
        )
        with condition:
            word[0] += 1
            condition.notify()
        child.wait()
        if not word[0] and not waiting.done():  # the child had taken it
            with condition:
                word[0] += 1
                condition.notify()
        waiting.result(SOON_S)
        assert condition.statistics().waiting == 0


# --- barriers and events ------------------------------------------------------------------------


@pytest.mark.parametrize("acts", [False, True])
def test_a_barrier_is_passed_or_names_the_dead_wherever_one_is_killed(beside, acts):
    barrier = shoal.Barrier(2, (lambda: None) if acts else None)

    def attempt():
        try:
            return barrier.wait()
        except shoal.BrokenBarrierError as error:
            return error

    def use():
        eventually(lambda: barrier.n_waiting, what="the other one")
        barrier.wait()

    for child in children(use, stride=13):
        waiting = beside.submit(attempt)
        if child.wait():  # perhaps before it had come, which nobody can know
            try:
                waiting.result(0.3)
            except TimeoutError:
                barrier.abort()
        outcome = waiting.result(SOON_S)
        if isinstance(outcome, shoal.BrokenBarrierError):
            assert "abort" in outcome.reason or outcome.pid == child.pid
        barrier.reset()
    assert outcome == 0


def test_an_event_that_is_set_wakes_who_waits_wherever_its_setter_is_killed(beside):
    event = shoal.Event()
    for child in children(event.set):
        waiting = beside.submit(event.wait)
        child.wait()
        if not event.is_set():
            event.set()
        assert waiting.result(SOON_S)
        event.clear()
    assert not event.is_set()


def test_an_event_can_be_used_wherever_one_is_killed_that_clears_or_awaits_it():
    event = shoal.Event()

    def use():
        event.wait()
        event.clear()

    event.set()
    for child in children(use):
        child.wait()
        event.set()
        assert event.wait(0)
