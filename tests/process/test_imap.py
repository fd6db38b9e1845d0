"""`imap`: any source, any order, errors as asked, in bounded memory."""

from __future__ import annotations

import gc
import itertools
import threading
import time
import weakref

import pytest

import shoal
from tests.process import pool_tasks as t
from tests.support import HANG_LIMIT_S, eventually

# --- sources ------------------------------------------------------------------------------------


def test_imap_of_an_endless_source_gives_as_much_as_is_taken(pool):
    results = pool.imap(t.square, itertools.count())
    assert list(itertools.islice(results, 200)) == [n * n for n in range(200)]
    results.close()


def test_imap_of_nothing_is_empty(pool):
    assert list(pool.imap(t.square, [])) == []
    assert list(pool.imap(t.square, [], ordered=False)) == []


def test_imap_needs_an_iterable(pool):
    with pytest.raises(TypeError, match="at least one iterable"):
        pool.imap(t.square)
    with pytest.raises(TypeError, match="iterable"):
        list(pool.imap(t.square, 3))


def test_imap_over_several_sources_ends_with_the_shortest(pool):
    assert list(pool.imap(t.add, itertools.count(), [10, 20, 30])) == [10, 21, 32]


@pytest.mark.parametrize("ordered", [True, False])
def test_results_before_a_failing_source_come_first_and_then_its_error(pool, ordered):
    def source():
        yield from range(7)
        raise OSError("the disk is gone")

    results = pool.imap(t.identity, source(), ordered=ordered)
    got = [next(results) for _ in range(7)]
    assert sorted(got) == list(range(7))
    with pytest.raises(OSError, match="the disk is gone"):
        next(results)


def test_a_source_that_fails_at_once_fails_the_iteration(pool):
    with pytest.raises(ZeroDivisionError):
        list(pool.imap(t.identity, (1 // n for n in [0])))


@pytest.mark.parametrize("errors", ["return", "skip"])
def test_the_error_of_a_source_is_raised_whatever_errors_says(pool, errors):
    """It is no task's error: nothing can stand in its place."""

    def source():
        yield 1
        raise OSError("the disk is gone")

    results = pool.imap(t.identity, source(), errors=errors)
    assert next(results) == 1
    with pytest.raises(OSError, match="the disk is gone"):
        next(results)


def test_a_slow_source_does_not_hold_back_results_that_are_there(pool):
    """Each item is handed on before the source is asked for the next for ever."""
    release = threading.Event()

    def source():
        yield 1
        yield 2
        release.wait(HANG_LIMIT_S)
        yield 3

    results = pool.imap(t.square, source(), buffersize=2)
    assert next(results) == 1
    threading.Timer(0.05, release.set).start()
    assert list(results) == [4, 9]


def test_the_source_is_pulled_in_the_thread_that_iterates(pool):
    threads = set()

    def source():
        for n in range(20):
            threads.add(threading.current_thread())
            yield n

    assert list(pool.imap(t.square, source())) == [n * n for n in range(20)]
    assert threads == {threading.current_thread()}


def test_nothing_is_pulled_before_somebody_iterates(pool):
    source = t.CountedSource()
    results = pool.imap(t.square, source)
    assert source.pulled == 0
    assert next(results) == 0
    results.close()


def test_a_generator_as_source_may_use_the_pool_itself(pool):
    def source():
        for n in range(5):
            yield pool.submit(t.square, n).result()

    assert list(pool.imap(t.square, source())) == [n**4 for n in range(5)]


def test_a_source_may_be_another_imap(pool):
    inner = pool.imap(t.square, range(50), ordered=False)
    assert sorted(pool.imap(t.square, inner, ordered=False)) == sorted(n**4 for n in range(50))


# --- order --------------------------------------------------------------------------------------


def test_ordered_results_come_in_the_order_of_the_items(pool):
    naps = [0.05, 0, 0.02, 0, 0.01, 0]
    assert list(pool.imap(t.nap, naps, range(6))) == [0, 1, 2, 3, 4, 5]


def test_unordered_results_come_as_they_are_ready(pool, gate):
    results = pool.imap(_enter_if_first, [gate] * 10, range(10), ordered=False)
    first = [next(results) for _ in range(9)]
    assert sorted(first) == list(range(1, 10))
    gate.open()
    assert list(results) == [0]


def _enter_if_gate(what):
    if isinstance(what, t.Gate):
        what.enter()


def _enter_if_first(gate, n):
    if n == 0:
        gate.enter()
    return n


def test_unordered_gives_each_result_exactly_once(pool):
    assert sorted(pool.imap(t.identity, range(5000), ordered=False)) == list(range(5000))


# --- errors -------------------------------------------------------------------------------------


@pytest.mark.parametrize("ordered", [True, False])
def test_raise_raises_the_first_error_and_gives_up_the_rest(pool_factory, ordered):
    pool = pool_factory(1)
    results = pool.imap(t.fail_on, itertools.count(), ordered=ordered)
    got = []
    with pytest.raises(ValueError, match="bad 3") as caught:
        for value in results:
            got.append(value)  # noqa: PERF402 - what came before the error counts
    assert got == [0, 1, 2]
    assert any("task 3" in note for note in caught.value.__notes__)
    assert pool.submit(t.square, 2).result() == 4
    eventually(lambda: pool.statistics().running == 0, what="the rest to be given up")


@pytest.mark.parametrize("ordered", [True, False])
def test_return_puts_the_error_in_the_place_of_the_result(pool, ordered):
    outcome = list(pool.imap(t.fail_if_odd, range(20), ordered=ordered, errors="return"))
    assert sorted(value for value in outcome if isinstance(value, int)) == list(range(0, 20, 2))
    assert sum(isinstance(value, ValueError) for value in outcome) == 10
    if ordered:
        assert [isinstance(value, ValueError) for value in outcome] == [bool(n % 2) for n in range(20)]


def test_return_tells_deaths_too(pool):
    outcome = list(pool.imap(_die_on_three, range(6), errors="return"))
    assert isinstance(outcome[3], shoal.WorkerDied)
    assert [value for n, value in enumerate(outcome) if n != 3] == [0, 1, 2, 4, 5]


def _die_on_three(n):
    if n == 3:
        t.die()
    return n


def test_skip_leaves_errors_out(pool):
    assert list(pool.imap(t.fail_if_odd, range(20), errors="skip")) == list(range(0, 20, 2))
    assert pool.statistics().failed == 10


def test_an_item_that_cannot_be_pickled_is_one_error_like_any_other(pool):
    outcome = list(pool.imap(t.identity, [1, threading.Lock(), 3], errors="return"))
    assert outcome[0] == 1
    assert outcome[2] == 3
    assert isinstance(outcome[1], shoal.NotPicklable)


def test_a_result_that_cannot_be_pickled_is_one_error_like_any_other(pool):
    outcome = list(pool.imap(_lock_on_two, range(5), errors="return"))
    assert [value for n, value in enumerate(outcome) if n != 2] == [0, 1, 3, 4]
    assert isinstance(outcome[2], shoal.NotPicklable)


def _lock_on_two(n):
    return threading.Lock() if n == 2 else n


@pytest.mark.parametrize("call", ["imap", "map of shoal"])
def test_an_unknown_way_of_errors_is_refused_at_once(pool, call):
    with pytest.raises(ValueError, match="errors must be one of 'raise', 'return', 'skip', not 'ignore'"):
        if call == "imap":
            pool.imap(t.square, [1], errors="ignore")
        else:
            shoal.map(t.square, [1], errors="ignore", workers=1)


# --- bounds -------------------------------------------------------------------------------------


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("buffersize", [1, 2, 7])
def test_never_more_than_buffersize_items_are_pulled_and_not_yielded(pool, buffersize, ordered):
    source = t.CountedSource()
    results = pool.imap(t.square, source, buffersize=buffersize, ordered=ordered)
    for taken in range(1, 60):
        next(results)
        assert source.pulled - taken < buffersize + 1
    results.close()


def test_a_buffersize_of_one_runs_one_after_the_other(pool):
    assert list(pool.imap(t.square, range(30), buffersize=1)) == [n * n for n in range(30)]


@pytest.mark.parametrize("bad", [0, -2])
def test_a_buffersize_below_one_is_refused(pool, bad):
    with pytest.raises(ValueError, match="buffersize must be at least 1"):
        pool.imap(t.square, range(3), buffersize=bad)


def test_a_blocked_first_result_does_not_let_the_source_run_away(pool, gate):
    """In order, nothing can be yielded while the first is missing; pulling on would never end."""
    source = t.CountedSource()
    results = pool.imap(_enter_if_first, itertools.repeat(gate), source, buffersize=50)
    got = []
    thread = threading.Thread(target=lambda: got.append(next(results)))
    thread.start()
    gate.wait_until_entered()
    eventually(lambda: pool.statistics().done >= 49, what="all that may run to have run")
    assert source.pulled == 50
    gate.open()
    thread.join(HANG_LIMIT_S)
    assert got == [0]
    results.close()


def test_quick_items_behind_a_stuck_one_get_a_worker_that_was_not_started_yet(pool_factory, gate):
    """The function is known to be quick, so the only worker was given all of them; the second has yet to be started."""
    pool = pool_factory(2)
    quick = t.Log(gate.folder + "/none")
    assert list(pool.map(_enter_if_gate, [quick] * 50)) == [None] * 50
    results = pool.imap(_enter_if_gate, itertools.chain([gate], itertools.repeat(quick, 49)), buffersize=50)
    first = threading.Thread(target=lambda: next(results))
    first.start()
    gate.wait_until_entered()
    eventually(lambda: pool.statistics().done >= 99, what="the quick ones to have run")
    gate.open()
    first.join(HANG_LIMIT_S)
    results.close()


def test_work_sent_to_a_worker_while_it_was_stuck_is_taken_back_too(pool_factory, gate):
    """What the worker has not read yet lies in its socket; the function was quick until now, so more of it was sent."""
    pool = pool_factory(2)
    quick = t.Log(gate.folder + "/none")
    assert list(pool.map(_enter_if_gate, [quick] * 50)) == [None] * 50
    blocked = pool.submit(_enter_if_gate, gate)
    gate.wait_until_entered()
    futures = [pool.submit(_enter_if_gate, quick) for _ in range(200)]
    assert [future.result() for future in futures] == [None] * 200
    gate.open()
    blocked.result()


def test_results_before_a_stuck_one_of_the_same_piece_do_not_wait_for_it(pool_factory, gate):
    pool = pool_factory(1)
    quick = t.Log(gate.folder + "/none")
    assert list(pool.map(_enter_if_gate, [quick] * 200)) == [None] * 200
    results = pool.imap(_enter_if_gate, [quick] * 60 + [gate] + [quick] * 9, buffersize=70)
    assert list(itertools.islice(results, 60)) == [None] * 60
    gate.wait_until_entered()
    gate.open()
    assert len(list(results)) == 10


@pytest.mark.start_methods("forkserver", "fork")
def test_two_hundred_thousand_items_take_bounded_memory(pool):
    """Items of a kilobyte: all of them at once would be 200 MB."""
    for _ in itertools.islice(pool.imap(len, itertools.repeat(bytes(1000)), ordered=False), 1000):
        pass
    before, most, total = t.memory_kb(), 0, 0
    for n, size in enumerate(pool.imap(len, (bytes(1000) for _ in range(200_000)))):
        total += size
        if n % 1000 == 0:
            most = max(most, t.memory_kb())
    assert total == 200_000_000
    assert most - before < 100_000


def test_a_slow_consumer_is_not_flooded(pool):
    """Results wait in the workers' hands, not in ours, when nobody takes them."""
    source = t.CountedSource()
    results = pool.imap(t.square, source)
    next(results)
    time.sleep(0.05)
    assert source.pulled < 200_000
    seen = source.pulled
    time.sleep(0.02)
    assert source.pulled == seen
    results.close()


def test_the_iterator_does_not_keep_a_result_it_has_yielded(pool):
    results = pool.imap(_thing, range(3), buffersize=1)
    for _ in range(3):
        thing = next(results)
        seen = weakref.ref(thing)
        del thing
        gc.collect()
        assert seen() is None
    results.close()


class Thing:
    pass


def _thing(_):
    return Thing()


# --- giving up ----------------------------------------------------------------------------------


def test_closing_the_iterator_stops_running_tasks(pool, gate):
    results = pool.imap(_enter_if_second, itertools.repeat(gate), itertools.count(), ordered=False)
    next(results)
    gate.wait_until_entered()
    results.close()
    eventually(lambda: pool.statistics().running == 0, what="the running task to be stopped")
    assert pool.submit(t.square, 2).result() == 4


def _enter_if_second(gate, n):
    if n == 1:
        gate.enter()
    return n


def test_closing_the_iterator_closes_nothing_else(pool, gate):
    other = pool.submit(gate.enter, "other")
    gate.wait_until_entered()
    results = pool.imap(t.square, itertools.count())
    next(results)
    results.close()
    gate.open()
    assert other.result() == "other"


def test_leaving_the_loop_gives_up_the_rest(pool_factory, log):
    pool = pool_factory(1)
    for n in pool.imap(t.log_and_return, itertools.repeat(log), itertools.count(), buffersize=4):
        if n == 5:
            break
    gc.collect()
    assert pool.submit(t.square, 2).result() == 4
    assert len(log.lines()) <= 11


def test_an_exception_in_the_loop_gives_up_the_rest(pool):
    with pytest.raises(KeyError):
        for _ in pool.imap(t.nap, itertools.repeat(0.001)):
            raise KeyError
    gc.collect()
    pool.shutdown()  # would never end otherwise


def test_shutting_down_in_the_middle_ends_the_iteration(pool):
    results = pool.imap(t.identity, itertools.count())
    assert next(results) == 0
    pool.shutdown(wait=False, cancel_futures=True)
    with pytest.raises((shoal.PoolClosed, shoal.Cancelled)):
        for _ in results:
            pass


def test_imap_may_be_iterated_by_several_streams_at_once(pool):
    streams = [pool.imap(t.add, itertools.repeat(base), range(100)) for base in (0, 1000, 2000)]
    for n, triple in enumerate(zip(*streams, strict=True)):
        assert triple == (n, 1000 + n, 2000 + n)


def test_imap_under_options_obeys_them(pool):
    outcome = list(pool.using(timeout=0.4, label="mine").imap(t.nap, [0, 60, 0], errors="return"))
    assert [outcome[0], outcome[2]] == [None, None]
    assert isinstance(outcome[1], shoal.TaskTimeout)
    assert str(outcome[1]).startswith("mine ran longer")


def test_imap_keeps_its_pool_alive(start_method):
    """The iterator may be all that is left of a pool; when it has ended the pool may go."""
    results = shoal.Pool(2, start_method=start_method).imap(t.square, range(20_000))
    gc.collect()
    assert sum(1 for _ in results) == 20_000


def test_map_with_a_buffersize_keeps_its_pool_alive(start_method):
    results = shoal.Pool(2, start_method=start_method).map(t.square, range(200), buffersize=3)
    gc.collect()
    assert list(results) == [n * n for n in range(200)]


def test_a_view_keeps_its_pool_alive(start_method):
    view = shoal.Pool(2, start_method=start_method).using(timeout=30)
    gc.collect()
    assert view.submit(t.square, 3).result() == 9
