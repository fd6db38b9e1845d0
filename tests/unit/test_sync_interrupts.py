"""Ctrl-C at any point: who is interrupted has either done it or not, and nobody else notices (L4, B4, S1)."""

from __future__ import annotations

import errno
import gc
import random
import signal
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

import shoal
from shoal._os import futex
from shoal._sync import lock as lock_module
from tests.support import HANG_LIMIT_S, eventually
from tests.unit.interrupts import Interrupt, interrupted_everywhere

#: The points of `interrupts.py` are read off the byte codes of this Python. Real signals come on all of them, further down.
by_points = pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="the points are those of Python 3.11")


@pytest.fixture
def beside():
    with ThreadPoolExecutor(2) as threads:
        yield threads


@contextmanager
def signals(handler, pause_s):
    """Send this thread a signal again and again. Not by a timer: the watchdog has that."""
    dice, over, me = random.Random(1), threading.Event(), threading.get_ident()

    def send():
        while not over.wait(pause_s(dice)):
            signal.pthread_kill(me, signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, handler)
    sender = threading.Thread(target=send)
    gc.disable()  # a collection may call somebody's callback (hypothesis has one), in which Python swallows what is raised
    sender.start()
    try:
        yield
    finally:
        over.set()
        sender.join()
        gc.enable()
        signal.signal(signal.SIGUSR1, before)


def is_free(lock):
    with ThreadPoolExecutor(1) as one:
        return one.submit(lambda: bool(lock.acquire(False) and (lock.release() or True))).result()


@by_points
@pytest.mark.parametrize("kind", [shoal.Lock, shoal.RLock])
def test_a_lock_is_held_or_not_wherever_its_caller_is_interrupted(kind):
    lock = kind()

    def use():
        with lock:
            pass

    def check(where):
        if lock._is_mine():
            assert where in ("release", "__exit__"), "held, though it was not acquired"
            lock.release()
        with lock as hold:
            assert not hold.abandoned
        assert is_free(lock)

    assert interrupted_everywhere(use, check) > 2


def at_the_first(monkeypatch, name, where, handler):
    """Have `handler` run, as if a signal had come, as the function of `mutex` comes back from `where` for the first time."""
    real, done = getattr(lock_module.mutex, name), []

    def function(address, *arguments):
        got = real(address, *arguments)
        if address == where and not done:
            done.append(1)
            handler()
        return got

    monkeypatch.setattr(lock_module.mutex, name, function)
    return done


@pytest.mark.parametrize("contended", [False, True])
def test_a_lock_is_not_lost_though_a_handler_wanted_it_as_its_thread_had_just_taken_it(contended, monkeypatch):
    lock, told = shoal.Lock(), []

    def handler():
        with pytest.raises(RuntimeError, match="already"):
            lock.acquire()
        told.append(bool(lock.acquire(False)))

    done = at_the_first(monkeypatch, "lock" if contended else "try_lock_now", lock._mutex, handler)
    lock._words[lock_module.QUEUED] = contended  # then it goes by the door
    with lock:
        assert not is_free(lock)
    assert (done, told) == ([1], [False])
    assert is_free(lock)


def test_a_door_of_a_dead_waiter_is_in_order_though_a_handler_raised_as_one_was_told(monkeypatch, beside):
    lock, over = shoal.Lock(), threading.Event()
    with ThreadPoolExecutor(1) as one:  # ends with the door
        one.submit(lock_module.mutex.lock, lock._cell.address).result()
    real = lock_module.mutex.answer

    def answer(address, number):
        if number == errno.EOWNERDEAD:
            monkeypatch.undo()
            raise Interrupt
        return real(address, number)

    held = beside.submit(lambda: lock.acquire() and over.wait(HANG_LIMIT_S) and lock.release())
    eventually(lock.locked, what="the lock to be held")
    monkeypatch.setattr(lock_module.mutex, "answer", answer)
    with pytest.raises(Interrupt):
        lock.acquire()
    assert not lock.acquire(timeout=0.001)
    over.set()
    held.result(HANG_LIMIT_S)
    with lock:
        pass


def test_an_abandoned_lock_stays_so_though_a_handler_uses_it_while_one_asks_the_kernel(monkeypatch):
    """Which is done by taking it for a moment."""
    lock = shoal.RLock()
    with ThreadPoolExecutor(1) as one:
        one.submit(lock.acquire).result()
    eventually(lambda: not lock.locked(), what="the kernel to put the thread away")

    def handler():
        with lock:
            pass

    done = at_the_first(monkeypatch, "try_lock", lock._mutex, handler)
    assert lock._is_abandoned()
    assert done
    assert not lock._is_mine()
    with lock as hold:
        assert hold.abandoned
    assert is_free(lock)


@by_points
def test_a_lock_that_is_abandoned_stays_so_until_somebody_has_it():
    lock = shoal.Lock()
    told = []

    def check(_where):
        lock.release() if lock._is_mine() else None
        with lock as hold:
            told.append(hold.abandoned)
        abandon()

    def abandon():
        with ThreadPoolExecutor(1) as one:
            one.submit(lock.acquire).result()
        eventually(lambda: not lock.locked(), what="the kernel to put the thread away")

    abandon()
    assert interrupted_everywhere(lock.acquire, check) > 3
    assert all(told)
    lock.release()


@by_points
def test_a_reentrant_lock_is_held_as_often_as_before_wherever_its_caller_is_interrupted():
    lock = shoal.RLock()
    lock.acquire()

    def check(_where):
        assert lock._is_mine()
        assert lock._words[lock_module.DEPTH] == 0

    def again():
        with lock:
            pass

    def settle(where):
        if where in ("release", "__exit__"):  # interrupted on its way out
            lock._words[lock_module.DEPTH] = 0
        check(where)

    assert interrupted_everywhere(again, settle) > 2
    lock.release()
    assert is_free(lock)


@by_points
def test_no_permit_is_lost_wherever_acquire_is_interrupted():
    semaphore = shoal.Semaphore(2)

    def check(_where):
        assert semaphore.get_value() == 2
        assert not semaphore._board.read().line

    assert interrupted_everywhere(semaphore.acquire, check) > 5
    assert semaphore.get_value() == 1


@by_points
def test_no_place_in_the_line_is_left_wherever_a_waiter_is_interrupted():
    semaphore = shoal.Semaphore(0)

    def check(_where):
        assert not semaphore._board.read().line
        assert semaphore.get_value() == 0

    assert interrupted_everywhere(lambda: semaphore.acquire(timeout=0.001), check) > 20


@by_points
def test_a_condition_has_its_lock_again_wherever_its_waiter_is_interrupted():
    condition = shoal.Condition(shoal.Lock())

    def check(where):
        if not condition._lock._is_mine():
            assert where in ("acquire", "_is_mine", "_acquire_all", "_acquire_slowly", "_noted", "_queue", "lock"), (
                where
            )
            condition.acquire()
        assert not condition._board.read().line

    with condition:
        assert interrupted_everywhere(lambda: condition.wait(0.001), check) > 20
    assert is_free(condition)


@by_points
def test_a_barrier_has_nobody_waiting_wherever_one_is_interrupted():
    barrier = shoal.Barrier(2)

    def check(_where):
        assert barrier.n_waiting == 0
        barrier.reset()

    def wait():
        try:
            barrier.wait(0.001)
        except shoal.BrokenBarrierError:
            barrier.reset()

    assert interrupted_everywhere(wait, check) > 20


@pytest.mark.parametrize("kind", [shoal.Lock, shoal.RLock, shoal.Semaphore])
def test_a_storm_of_signals_that_raise_leaves_no_object_half_changed(kind):
    """Real signals, wherever they strike."""
    thing, struck = kind(), 0
    with thing:
        pass  # once in peace: the process looks itself up in /proc, and a descriptor is lost if that is interrupted

    def strike(*_):
        if armed:
            armed.clear()
            raise Interrupt

    def is_in_order():
        if isinstance(thing, shoal.Semaphore):
            if thing.get_value() == 0:
                thing.release()
            assert thing.get_value() == 1
        else:
            while thing._is_mine():
                thing.release()
            assert thing._words[lock_module.OWNER] == thing._words[lock_module.QUEUED] == 0
        assert thing.acquire(False)
        thing.release()

    armed = []
    with signals(strike, lambda dice: dice.uniform(2e-5, 4e-4)):
        while struck < 300:
            try:
                armed.append(1)
                while True:
                    with thing:
                        pass
            except Interrupt:
                struck += 1
            is_in_order()


def test_a_signal_handler_may_set_the_event_its_thread_awaits():
    event = shoal.Event()
    with signals(lambda *_: event.set(), lambda _: 0.005):
        assert event.wait(HANG_LIMIT_S)


def test_a_step_that_interrupts_a_step_of_its_own_thread_comes_before_it():
    """B2: as when a signal handler releases the semaphore that its thread is just acquiring."""
    semaphore = shoal.Semaphore(1)
    board, done = semaphore._board, []
    real = board._decoded

    class Nested(type(board)):
        __slots__ = ()

        def _decoded(self, version):
            state = real(version)
            if not done:
                done.append(1)
                semaphore.release()
            return state

    semaphore._board = Nested(board.cell)
    assert semaphore.acquire()
    assert semaphore.get_value() == 1


@pytest.mark.parametrize("way", ["lock", "semaphore", "event", "condition", "barrier"])
def test_ctrl_c_is_answered_at_once(way, beside):
    """Whatever one waits for; the wait is undone."""
    lock, semaphore, event = shoal.Lock(), shoal.Semaphore(0), shoal.Event()
    condition, barrier = shoal.Condition(), shoal.Barrier(2)
    holding = threading.Event()

    def hold():
        with lock:
            holding.wait()

    def interrupt(*_):
        if armed:
            armed.clear()
            raise Interrupt

    def wait():
        if way == "condition":
            with condition:
                condition.wait()
        else:
            {"lock": lock.acquire, "semaphore": semaphore.acquire, "event": event.wait, "barrier": barrier.wait}[way]()

    held = beside.submit(hold)
    eventually(lock.locked, what="the lock to be held")
    armed = [1]
    try:
        with signals(interrupt, lambda _: 0.01), pytest.raises(Interrupt):
            wait()
    finally:
        holding.set()
    held.result(HANG_LIMIT_S)
    assert is_free(lock)
    assert is_free(condition)
    assert (semaphore.statistics().waiting, barrier.n_waiting, condition.statistics().waiting) == (0, 0, 0)
    assert futex.wake(event._address) == 0
