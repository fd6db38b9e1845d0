"""What locks and their kin stand on: mutexes, futexes, cells and guards, in one process."""

from __future__ import annotations

import copy
import ctypes
import errno
import pickle
import threading
import time

import pytest

from shoal._memory import segments
from shoal._os import futex, mutex
from shoal._sync import cells
from shoal._sync.guard import Guard
from shoal._wire import codec
from shoal.errors import NotPicklable
from tests.support import eventually


def make_cell():
    """Not a fixture: pytest keeps those until the leak audit is over."""
    made = cells.make(256)
    mutex.make(made.address)
    return made


def in_thread(function, *arguments):
    """What it returns in a thread of its own, which then has ended."""
    result = []
    thread = threading.Thread(target=lambda: result.append(function(*arguments)))
    thread.start()
    thread.join()
    return result[0]


# --- mutexes ------------------------------------------------------------------------------------


def test_a_mutex_belongs_to_the_thread_that_locked_it():
    cell = make_cell()
    assert mutex.try_lock(cell.address) == mutex.LOCKED
    assert mutex.try_lock(cell.address) == mutex.OWN
    assert in_thread(mutex.try_lock, cell.address) == mutex.BUSY
    assert in_thread(mutex.lock, cell.address, 0.001) == mutex.BUSY
    assert not in_thread(mutex.unlock, cell.address)
    assert mutex.unlock(cell.address)
    assert not mutex.unlock(cell.address)


def test_a_mutex_of_a_thread_that_ended_goes_to_the_next_one_who_is_told():
    cell = make_cell()
    assert in_thread(mutex.lock, cell.address) == mutex.LOCKED
    assert mutex.lock(cell.address, 1) == mutex.OWNER_DIED
    assert mutex.unlock(cell.address)
    assert mutex.lock(cell.address) == mutex.LOCKED
    assert mutex.unlock(cell.address)


def test_who_gives_up_a_mutex_it_was_just_told_of_leaves_it_in_order():
    cell = make_cell()
    in_thread(mutex.lock, cell.address)
    eventually(lambda: mutex.try_lock_now(cell.address) == errno.EOWNERDEAD, what="the kernel to put the thread away")
    mutex.give_up(cell.address)  # interrupted before it could make it consistent (M2)
    assert mutex.try_lock(cell.address) == mutex.LOCKED
    mutex.give_up(cell.address)
    mutex.give_up(cell.address)  # not ours: nothing happens
    assert mutex.lock(cell.address) == mutex.LOCKED
    assert mutex.unlock(cell.address)


@pytest.mark.parametrize("error", [TimeoutError, KeyboardInterrupt])
def test_a_mutex_is_in_order_though_a_handler_raised_as_one_was_told_of_a_death(error, monkeypatch):
    """Also an OSError, such as the TimeoutError of an alarm."""
    cell = make_cell()
    in_thread(mutex.lock, cell.address)
    real = mutex.answer

    def answer(address, number):
        if number == errno.EOWNERDEAD:
            raise error
        return real(address, number)

    limit, found = mutex._Timespec(), mutex._Answer()
    monkeypatch.setattr(mutex, "answer", answer)
    with pytest.raises(error):
        mutex._lock_until(cell.address, limit, ctypes.addressof(limit), 60, found)
    monkeypatch.undo()
    assert in_thread(mutex.try_lock, cell.address) == mutex.LOCKED
    mutex.lock(cell.address, 1)
    mutex.give_up(cell.address)


# --- futexes ------------------------------------------------------------------------------------


def test_a_futex_does_not_sleep_on_a_word_that_has_changed():
    cell = make_cell()
    word = cell.words(64, 1, "I")
    word[0] = 7
    assert futex.wait(cell.address + 64, 6, 60)
    assert not futex.wait(cell.address + 64, 7, 0.001)
    assert futex.wake(cell.address + 64) == 0


def test_a_futex_wakes_who_sleeps():
    cell = make_cell()
    word, slept = cell.words(64, 1, "I"), []
    thread = threading.Thread(target=lambda: slept.append(futex.wait(cell.address + 64, 0, 60)))
    thread.start()
    while not futex.wake(cell.address + 64, futex.EVERYBODY):
        time.sleep(0)
    thread.join()
    assert (slept, word[0]) == ([True], 0)


# --- cells --------------------------------------------------------------------------------------


def test_cells_share_a_segment_until_it_is_full_and_begin_with_zeros():
    made = [cells.make(100) for _ in range(3)]
    assert len({segments.find(cell.view).id for cell in made}) == 1
    assert all(cell.address % 64 == 0 and cell.view.nbytes == 128 and not any(cell.view) for cell in made)
    large = cells.make(cells.SLAB_BYTES)
    assert segments.find(large.view).size == cells.SLAB_BYTES
    assert len({cell.address for cell in (*made, large)}) == 4


def test_a_segment_goes_with_its_last_cell():
    before = len(segments._by_id)
    one, two = cells.make(64), cells.make(64)
    assert len(segments._by_id) == before + 1
    del one
    assert len(segments._by_id) == before + 1
    del two
    assert len(segments._by_id) == before


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_a_cell_is_refused_where_a_pickle_would_copy_it(protocol):
    cell = make_cell()
    with pytest.raises(TypeError, match="cannot be pickled to bytes"):
        pickle.dumps([cell], protocol)
    with pytest.raises(TypeError, match="cannot be pickled to bytes"):
        copy.deepcopy(cell)


def test_a_cell_that_arrives_as_a_copy_is_refused():
    cell = make_cell()
    with cells.passing:
        data = pickle.dumps(cell, 5)
    with pytest.raises(TypeError, match="mere copy"):
        pickle.loads(data)


@pytest.mark.parametrize("wrap", [lambda cell: cell, lambda cell: {"a": [cell]}, lambda cell: lambda: cell])
def test_a_cell_is_passed_beside_its_pickle(wrap):
    cell = make_cell()
    buffers = []
    payload = codec.pack(wrap(cell), buffers, ("the argument of", len))
    back = codec.unpack(payload, buffers)
    back = back() if callable(back) else back["a"][0] if isinstance(back, dict) else back
    assert back.address == cell.address
    assert back is not cell


def test_what_cannot_travel_beside_a_cell_is_still_named():
    cell = make_cell()
    with pytest.raises(NotPicklable, match="lock"):
        codec.pack((cell, threading.Lock()), [], ("the argument of", len))
    assert not cells.passing.on


# --- guards -------------------------------------------------------------------------------------


def test_a_guard_is_left_whatever_happens_inside():
    cell = make_cell()
    guard = Guard(cell.address)
    assert guard.run(lambda a: a + 1, 1) == 2
    with pytest.raises(ZeroDivisionError):
        guard.run(lambda: 1 / 0)
    assert in_thread(guard.run, lambda: "inside") == "inside"


def test_a_guard_does_not_wait_for_its_own_thread():
    cell = make_cell()
    guard = Guard(cell.address)
    with pytest.raises(RuntimeError, match="interrupted"):
        guard.run(lambda: guard.run(lambda: None))
    assert guard.enter() == mutex.LOCKED
    assert guard.enter() == mutex.OWN
    guard.leave()
    assert in_thread(guard.enter) == mutex.LOCKED  # and ends inside
    assert guard.run(lambda: "the next one") == "the next one"
