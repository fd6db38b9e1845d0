"""`Pool.map` as `Executor.map` is documented, and `starmap`."""

from __future__ import annotations

import concurrent.futures
import gc
import itertools
import os
import threading
import time
import weakref

import pytest

import shoal
from tests.process import pool_tasks as t
from tests.support import eventually


class Thing:
    pass


def make_thing(_):
    return Thing()


# --- what comes out -----------------------------------------------------------------------------


def test_map_gives_results_in_the_order_of_the_items(pool):
    assert list(pool.map(t.square, range(1000))) == [n * n for n in range(1000)]


def test_map_keeps_the_order_when_early_items_take_longest(pool):
    naps = [0.05, 0.0, 0.03, 0.0, 0.01, 0.0]
    assert list(pool.map(t.nap, naps, range(6))) == [0, 1, 2, 3, 4, 5]


def test_map_returns_an_iterator(pool):
    results = pool.map(t.square, range(3))
    assert iter(results) is results
    assert next(results) == 0


def test_map_of_nothing_is_empty(pool):
    assert list(pool.map(t.square, [])) == []
    assert list(pool.map(t.square)) == []


def test_map_over_several_iterables_ends_with_the_shortest(pool):
    assert list(pool.map(t.add, [1, 2, 3], [10, 20, 30, 40])) == [11, 22, 33]
    assert list(pool.map(t.add, [1, 2, 3], [])) == []
    assert list(pool.map(pow, itertools.count(2), [2, 3])) == [4, 27]


@pytest.mark.parametrize("kind", [list, tuple, iter, set, dict.fromkeys, "generator", "range"])
@pytest.mark.start_methods("forkserver")
def test_map_takes_any_iterable(pool, kind):
    items = range(5) if kind == "range" else (n for n in range(5)) if kind == "generator" else kind(range(5))
    assert list(pool.map(t.square, items)) == [0, 1, 4, 9, 16]


def test_map_over_text_and_bytes_and_dictionaries_takes_their_items(pool):
    assert list(pool.map(str.upper, "abc")) == ["A", "B", "C"]
    assert list(pool.map(t.square, b"\x01\x02")) == [1, 4]
    assert sorted(pool.map(t.identity, {"a": 1, "b": 2})) == ["a", "b"]


@pytest.mark.parametrize("chunksize", [1, 7, 1000])
@pytest.mark.start_methods("forkserver")
def test_map_takes_a_chunksize_and_gives_the_same(pool, chunksize):
    assert list(pool.map(t.square, range(50), chunksize=chunksize)) == [n * n for n in range(50)]


def test_map_refuses_a_bad_chunksize_at_once(pool):
    with pytest.raises(ValueError, match="chunksize"):
        pool.map(t.square, range(3), chunksize=0)
    with pytest.raises(ValueError, match="chunksize"):
        pool.map(t.square, range(3), chunksize=-1)


def test_map_gives_each_kind_of_value_back_unchanged(pool):
    values = [
        None,
        0,
        -1,
        2**200,
        1.5,
        "ü\ud800",
        b"\0",
        (1, (2,)),
        [[]],
        {"a": {1}},
        frozenset([1]),
        range(3),
        t.square,
    ]
    assert list(pool.map(t.identity, values)) == values


def test_map_shares_nothing_between_items(pool):
    """Two items that are one object arrive as copies, as if each had been sent alone or not; both are whole."""
    shared = [1]
    assert list(pool.map(t.identity, [shared, shared])) == [[1], [1]]


def test_map_of_a_hundred_thousand_items_is_right(pool):
    assert sum(pool.map(t.square, range(100_000))) == sum(n * n for n in range(100_000))


def test_two_maps_may_be_read_side_by_side(pool):
    squares, naps = pool.map(t.square, range(200)), pool.map(t.identity, range(200))
    assert list(zip(squares, naps, strict=True)) == [(n * n, n) for n in range(200)]


def test_a_map_may_be_fed_from_another(pool):
    assert list(pool.map(t.square, pool.map(t.square, range(20)))) == [n**4 for n in range(20)]


def test_a_map_may_be_read_by_another_thread(pool):
    results = pool.map(t.square, range(100))
    with concurrent.futures.ThreadPoolExecutor(1) as threads:
        assert threads.submit(list, results).result() == [n * n for n in range(100)]


def test_an_item_of_a_large_map_may_be_large(pool):
    items = [os.urandom(300_000) if n % 5 == 0 else b"small" for n in range(20)]
    assert list(pool.map(t.identity, items)) == items


# --- when it works ------------------------------------------------------------------------------


def test_map_begins_before_it_is_iterated(pool, log):
    results = pool.map(t.log_and_return, [log] * 3, range(3))
    eventually(lambda: len(log.lines()) == 3, what="the tasks to run although nobody asked for results")
    assert list(results) == [0, 1, 2]


def test_map_reads_its_iterables_at_once(pool):
    pulled = []

    def source():
        for n in range(5):
            pulled.append(n)
            yield n

    results = pool.map(t.square, source())
    assert pulled == [0, 1, 2, 3, 4]
    assert list(results) == [0, 1, 4, 9, 16]


def test_map_does_not_see_what_happens_to_its_list_later(pool, gate):
    blockers = [pool.submit(gate.enter) for _ in range(2)]
    items = [1, 2, 3]
    results = pool.map(t.square, items)
    items.clear()
    gate.open()
    assert list(results) == [1, 4, 9]
    concurrent.futures.wait(blockers)


def test_map_with_a_buffersize_pulls_no_more_than_that_ahead(pool):
    source = t.CountedSource()
    results = pool.map(t.square, source, buffersize=3)
    taken = [next(results) for _ in range(10)]
    assert taken == [n * n for n in range(10)]
    assert source.pulled <= 13
    results.close()


def test_map_with_a_buffersize_begins_at_once(pool, log):
    source = t.CountedSource()
    results = pool.map(t.log_and_return, [log] * 100, source, buffersize=4)
    assert source.pulled == 4
    eventually(lambda: len(log.lines()) == 4, what="the first four to run")
    assert [next(results) for _ in range(6)] == list(range(6))
    results.close()


def test_map_with_a_buffersize_keeps_order_and_ends(pool):
    assert list(pool.map(t.square, range(100), buffersize=4)) == [n * n for n in range(100)]
    assert list(pool.map(t.add, range(5), range(5), buffersize=1)) == [0, 2, 4, 6, 8]


@pytest.mark.parametrize("bad", [0, -1])
@pytest.mark.start_methods("forkserver")
def test_map_refuses_a_buffersize_below_one(pool, bad):
    with pytest.raises(ValueError, match="buffersize"):
        pool.map(t.square, range(3), buffersize=bad)


def test_map_with_a_buffersize_refuses_what_is_no_number(pool):
    with pytest.raises(TypeError, match="buffersize"):
        pool.map(t.square, range(3), buffersize=1.5)


def test_the_iterator_does_not_keep_a_result_it_has_yielded(pool):
    results = pool.map(make_thing, range(3))
    for _ in range(3):
        thing = next(results)
        seen = weakref.ref(thing)
        del thing
        gc.collect()
        assert seen() is None
    results.close()


def test_a_map_that_nobody_reads_runs_all_the_same(pool, log):
    """`executor.map(f, items)` as a statement of its own is in many programs."""
    pool.map(t.log_and_return, [log] * 20, range(20))
    gc.collect()
    pool.shutdown()
    assert sorted(map(int, log.lines())) == list(range(20))


def test_dropping_an_iterator_that_was_begun_gives_up_the_rest(pool_factory, gate, log):
    pool = pool_factory(1)
    results = pool.map(_enter_or_log, [None, gate, *[log] * 50], range(52))
    assert next(results) == 0
    gate.wait_until_entered()
    del results
    gc.collect()
    assert pool.submit(t.square, 2).result() == 4
    gate.open()
    assert log.lines() == []


def _enter_or_log(what, n):
    if isinstance(what, t.Gate):
        what.enter()
    elif what is not None:
        what.add(n)
    return n


# --- errors -------------------------------------------------------------------------------------


def test_the_error_of_an_item_is_raised_in_its_turn(pool):
    results = pool.map(t.fail_on, range(6))
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="bad 3"):
        next(results)
    with pytest.raises(StopIteration):
        next(results)


def test_an_error_says_which_item_it_was(pool):
    with pytest.raises(ValueError, match="bad 3") as caught:
        list(pool.map(t.fail_on, range(6)))
    assert any("task 3 of the map" in note and "fail_on(3)" in note for note in caught.value.__notes__)


def test_an_error_in_a_map_stops_what_has_not_run(pool_factory):
    pool = pool_factory(1)
    results = pool.map(t.nap, ["not a number", *[0.02] * 500])
    with pytest.raises(TypeError):
        next(results)
    began = time.monotonic()
    assert pool.submit(t.square, 2).result() == 4
    assert time.monotonic() - began < 5  # the rest would have taken ten seconds


def test_an_item_that_kills_its_worker_fails_alone(pool):
    results = pool.map(t.nap, [0.0, 0.0])
    future = pool.submit(t.die)
    assert list(results) == [None, None]
    with pytest.raises(shoal.WorkerDied):
        future.result()
    assert list(pool.map(t.square, range(20))) == [n * n for n in range(20)]


def test_a_failing_source_fails_the_call(pool):
    def source():
        yield 1
        raise KeyError("source")

    with pytest.raises(KeyError, match="source"):
        pool.map(t.square, source())


def test_an_item_that_cannot_be_pickled_fails_in_its_turn(pool):
    results = pool.map(t.identity, [1, 2, threading.Lock(), 4])
    assert [next(results), next(results)] == [1, 2]
    with pytest.raises(shoal.NotPicklable, match="lock"):
        next(results)
    assert pool.submit(t.square, 2).result() == 4


# --- timeout ------------------------------------------------------------------------------------


def test_the_timeout_of_map_counts_from_the_call(pool, gate):
    results = pool.map(t.Gate.enter, [gate] * 2, timeout=0.05)
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        list(results)
    assert time.monotonic() - began < 5


def test_results_before_the_timeout_of_map_are_given(pool):
    assert list(pool.map(t.nap, [0.05] * 2)) == [None] * 2  # both workers are there
    results = pool.map(t.nap, [0, 30], [1, 2], timeout=0.3)
    assert next(results) == 1
    with pytest.raises(concurrent.futures.TimeoutError):
        next(results)
    assert pool.submit(t.square, 2).result() == 4


def test_a_map_that_is_done_in_time_ignores_its_timeout(pool):
    results = pool.map(t.square, range(3), timeout=30)
    assert list(results) == [0, 1, 4]


def test_the_timeout_of_map_also_counts_with_a_buffersize(pool, gate):
    results = pool.map(t.Gate.enter, [gate] * 2, timeout=0.05, buffersize=2)
    with pytest.raises(TimeoutError):
        list(results)


# --- starmap ------------------------------------------------------------------------------------


def test_starmap_unpacks_each_item(pool):
    assert pool.starmap(t.add, [(1, 2), [3, 4], iter("ab")]) == [3, 7, "ab"]


def test_starmap_of_nothing_is_an_empty_list(pool):
    assert pool.starmap(t.add, []) == []


def test_starmap_raises_the_first_error_at_once(pool, gate):
    """It does not wait for the rest, which is given up: here it would never end."""
    with pytest.raises(ValueError, match="^first"):
        pool.starmap(_enter_or_fail, [(gate, None), (gate, "first"), (gate, None)])
    assert pool.submit(t.square, 2).result() == 4


def test_starmap_can_return_or_skip_errors(pool):
    returned = pool.starmap(t.fail_if_odd, [(n,) for n in range(4)], errors="return")
    assert [value if isinstance(value, int) else str(value) for value in returned] == [0, "odd 1", 2, "odd 3"]
    assert pool.starmap(t.fail_if_odd, [(n,) for n in range(4)], errors="skip") == [0, 2]


def test_starmap_refuses_an_unknown_way_of_errors(pool):
    with pytest.raises(ValueError, match="errors must be one of 'raise', 'return', 'skip'"):
        pool.starmap(t.add, [(1, 2)], errors="ignore")


def _enter_or_fail(gate, message):
    if message is not None:
        raise ValueError(message)
    gate.enter()
