"""Large data comes back equal, in every shape and nesting; nobody's copy is anybody else's.

Sizes lie around both thresholds: in the pickle, in the frame, in the arena.
"""

from __future__ import annotations

import functools
from array import array as plain_array

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.process import data_tasks as tasks
from tests.process.data_tasks import Box, Spec, assert_same
from tests.support import eventually

SIZES = [1_000, 70_000, 200_000, 300_000, 3_000_000]
LARGE = 3_000_000


def bytes_to_shapes(nbytes, dtype):
    items = max(1, nbytes // np.dtype(dtype).itemsize)
    return st.sampled_from([
        (items,), (items // 7 + 1, 7), (3, items // 12 + 1, 4), (2, 1, items // 6 + 1, 3), (), (0,), (5, 0, 2),
    ])  # fmt: skip


@st.composite
def specs(draw):
    dtype = draw(st.sampled_from(tasks.DTYPES))
    shape = draw(bytes_to_shapes(draw(st.sampled_from([100, *SIZES[1:]])), dtype))
    return Spec(dtype, shape, draw(st.sampled_from(tasks.LAYOUTS)), draw(st.integers(0, 99)))


def used_bytes(pool):
    return pool._engine.depot.used_bytes


def all_returns(pool):
    eventually(lambda: used_bytes(pool) == 0, what="every block to come back", limit_s=10)


# --- round trips --------------------------------------------------------------------------------


def test_any_array_in_any_nesting_comes_back_equal(pool):
    """To the worker, which compares it with its own; and back."""

    @settings(max_examples=60, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(specs(), st.sampled_from(sorted(tasks.WRAPS)))
    def check(spec, wrap):
        value = tasks.made(spec, wrap)
        assert_same(pool.submit(tasks.check_and_return, value, spec, wrap).result(), value)
        assert_same(value, tasks.made(spec, wrap))

    check()
    all_returns(pool)


def test_any_array_made_by_a_task_comes_back_equal_from_a_map(pool):
    @settings(max_examples=15, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(st.lists(st.tuples(specs(), st.sampled_from(sorted(tasks.WRAPS))), min_size=1, max_size=6))
    def check(items):
        for got, item in zip(pool.starmap(tasks.made, items), items, strict=True):
            assert_same(got, tasks.made(*item))

    check()
    all_returns(pool)


def bytes_and_their_like(nbytes):
    data = (bytes(range(256)) * (nbytes // 256 + 1))[: nbytes - nbytes % 8]
    views = [memoryview(data), memoryview(bytearray(data)), memoryview(data).cast("H")]
    if data:
        views += [memoryview(data).cast("B", (2, len(data) // 2)), memoryview(data)[::-2]]
    return [data, bytearray(data), plain_array("H", data), data.decode("latin-1"), *views]


def test_bytes_and_their_like_come_back_as_they_were(pool):
    for nbytes in (0, 8, *SIZES):
        values = bytes_and_their_like(nbytes)
        for value in values:
            assert_same(pool.submit(tasks.identity, value).result(), value)
        assert_same(list(pool.map(tasks.identity, values)), values)
        assert_same(pool.submit(tasks.identity, {"all": values}).result(), {"all": values})
    del value, values
    all_returns(pool)


def test_objects_inside_arrays_and_arrays_inside_objects(pool):
    values = np.array([None, "x", (1, 2), {"a": np.arange(3)}, b"y" * 300_000], dtype=object)
    got = pool.submit(tasks.identity, Box("objects", values)).result().content
    assert got.dtype == object
    assert (got[0], got[1], got[2], got[4]) == (None, "x", (1, 2), b"y" * 300_000)
    assert_same(got[3]["a"], np.arange(3))


def test_an_error_carries_its_array_home(pool):
    error = pool.submit(tasks.fail_with, tasks.filled(3, LARGE)).exception()
    assert tasks.seen(error.args[1]) == 3


@pytest.mark.start_methods("forkserver")
@pytest.mark.parametrize("library", ["pandas", "polars", "pyarrow"])
def test_data_frames_come_back_equal(pool, library):
    module = pytest.importorskip(library)
    columns = {"a": np.arange(100_000), "b": np.linspace(0, 1, 100_000), "c": [f"text {n}" for n in range(100_000)]}
    frame = {"pandas": "DataFrame", "polars": "DataFrame", "pyarrow": "table"}[library]
    table = getattr(module, frame)(columns)
    back = pool.submit(tasks.identity, {"table": table, "part": table[10:20]}).result()
    assert back["table"].equals(table)
    assert back["part"].equals(table[10:20])


# --- nobody's copy is anybody else's ------------------------------------------------------------


def test_a_task_that_writes_to_its_argument_harms_nobody(pool):
    fills = range(2, 12)
    for nbytes in SIZES:
        mine = tasks.filled(1, nbytes)
        futures = [pool.submit(tasks.scribble, mine, fill) for fill in fills]
        assert [future.result() for future in futures] == [(1, fill) for fill in fills]
        assert pool.starmap(tasks.scribble, [(mine, fill) for fill in fills]) == [(1, fill) for fill in fills]
        assert list(pool.imap(tasks.scribble, [mine] * 10)) == [(1, 255)] * 10
        assert tasks.seen(mine) == 1


@pytest.mark.parametrize("limit", [None, 1], ids=["arena", "no arena"])
def test_an_argument_is_what_it_was_when_it_was_submitted(pool_factory, limit):
    pool = pool_factory(1, shared_memory_limit=limit)
    for nbytes in SIZES:
        mine = tasks.filled(0, nbytes)
        pool.submit(tasks.nap_and_see, 0.02, mine)  # what follows has to wait
        futures = []
        for fill in range(1, 6):
            mine[...] = fill
            futures.append(pool.submit(tasks.seen, mine))
            futures.append(pool.submit(tasks.seen, np.frombuffer(bytearray(mine), np.uint8)))
        mine[...] = 99
        assert [future.result() for future in futures] == [n for fill in range(1, 6) for n in (fill, fill)]


def test_what_a_function_holds_is_what_it_was_when_it_was_submitted(pool_factory):
    pool = pool_factory(1)
    for nbytes in SIZES:
        pool.submit(tasks.nap_and_see, 0.02, np.zeros(1, np.uint8))
        mine = tasks.filled(1, nbytes)
        closure = lambda: (int(mine.min()), int(mine.max()))
        bound = functools.partial(tasks.seen, mine)
        first = [pool.submit(closure), pool.submit(bound)]
        mine[...] = 2
        second = [pool.submit(closure), pool.submit(bound)]
        mine[...] = 3
        assert [future.result() for future in first] == [(1, 1), 1]
        assert [future.result() for future in second] == [(2, 2), 2]
        assert pool.submit(closure).result() == (3, 3)


def test_what_a_function_held_returns_when_it_is_done(pool):
    mine = tasks.filled(1, LARGE)
    assert pool.submit(lambda: tasks.seen(mine)).result() == 1
    assert list(pool.map(functools.partial(tasks.sum_of_both, mine), [mine] * 4)) == [2] * 4
    all_returns(pool)


@pytest.mark.parametrize("nbytes", [70_000, LARGE])
def test_every_worker_has_the_initializers_argument_and_its_own(pool_factory, nbytes):
    initial = tasks.filled(5, nbytes)
    pool = pool_factory(2, initializer=tasks.remember, initargs=(initial,), max_tasks_per_worker=3)
    futures = [pool.submit(tasks.see_remembered) for _ in range(12)]
    assert [future.result() for future in futures] == [5] * 12


def test_a_buffer_may_be_resized_while_tasks_with_it_wait(pool_factory):
    pool = pool_factory(1)
    pool.submit(tasks.nap_and_see, 0.05, np.zeros(1, np.uint8))
    for nbytes in SIZES:
        data = bytearray(nbytes)
        future = pool.submit(tasks.identity, data)
        data += b"more"
        assert future.result() == bytes(nbytes)


# --- one copy -----------------------------------------------------------------------------------


def test_an_array_in_many_tasks_is_stored_once(pool):
    mine = tasks.filled(4, 8_000_000)
    assert list(pool.map(tasks.seen, [mine] * 40)) == [4] * 40
    assert pool.starmap(tasks.scribble, [(mine, n % 250) for n in range(40)])[0] == (4, 0)
    assert pool._engine.depot.held_bytes < 3 * mine.nbytes  # two threads may store at once
    futures = [pool.submit(tasks.seen, mine) for _ in range(40)]
    assert pool._engine.depot.held_bytes < 6 * mine.nbytes  # one that is done before the next comes leaves it lent
    assert [future.result() for future in futures] == [4] * 40


def test_memory_is_used_again(pool):
    for fill in range(30):
        assert tasks.seen(pool.submit(tasks.identity, tasks.filled(fill, LARGE)).result()) == fill
    assert pool._engine.depot.held_bytes <= 4 * LARGE
    all_returns(pool)


def test_memory_is_given_back_when_idle(pool_factory, monkeypatch):
    monkeypatch.setattr("shoal._pool.depot.TRIM_S", 0.05)
    pool = pool_factory(1)
    for fill in range(3):
        assert tasks.seen(pool.submit(tasks.identity, tasks.filled(fill, LARGE)).result()) == fill
    eventually(lambda: pool._engine.depot.held_bytes == 0, what="warm memory to be given back", limit_s=10)
    eventually(lambda: arenas_mapped(pool.workers[0].pid) == 0, what="the worker's to be given back", limit_s=10)


def arenas_mapped(pid):
    with open(f"/proc/{pid}/maps", encoding="utf-8") as file:
        return sum("/memfd:shoal-arena" in line for line in file)


def test_a_workers_own_memory_returns_as_well(pool_factory):
    pool = pool_factory(1)
    held = [pool.submit(tasks.filled, n, LARGE).result() for n in range(5)]
    assert pool.submit(tasks.arena_figures).result()["lent"] == 5
    held.clear()
    eventually(lambda: pool.submit(tasks.arena_figures).result()["lent"] == 0, what="the leases of results to end")
    assert pool.submit(tasks.arena_figures).result()["used_bytes"] == 0
    for n in range(10):
        pool.submit(tasks.filled, n, LARGE).result()
    assert pool.submit(tasks.arena_figures).result()["held_bytes"] <= 7 * LARGE
