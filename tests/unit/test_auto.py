"""`workers="auto"` in one process: what is run here, how often it looks, what it says (A1, A2, A3). Time is a model."""

from __future__ import annotations

import itertools
import threading
from types import SimpleNamespace

import pytest

import shoal
from shoal._os import cpus
from shoal._pool import auto, choice, default
from shoal._pool.auto import show


class Clock:
    """Stands still but for what the function under test says it takes."""

    def __init__(self):
        self.now = 50.0

    def __call__(self):
        return self.now

    def take(self, seconds):
        self.now += seconds


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr(auto, "perf_counter", made)
    return made


@pytest.fixture
def looks(monkeypatch, clock):
    """Nobody is ever brought in; lists (tasks left, their cost) for each time that was asked."""
    asked = []

    def choose(left, cost_s, carry_s, **_):
        asked.append((left, cost_s))
        return 0

    monkeypatch.setattr(choice, "choose", choose)
    monkeypatch.setattr(cpus, "usable_cpus", lambda: 8)
    monkeypatch.setattr(default, "running_pool", lambda: None)
    return asked


def run(fn, items, errors="raise", *, star=False):
    return auto.run(fn, items, errors, 0, star=star)


def costing(clock, cost):
    """A function that takes `cost(item)` seconds of the model's clock."""

    def fn(item):
        clock.take(cost(item))
        return -item

    return fn


# --- each item once, in order -------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 2, 511, 512, 513, 5000])
@pytest.mark.parametrize("cost_s", [1e-8, 1e-4, 0.3])
def test_each_item_is_run_once_and_in_order(clock, looks, count, cost_s):
    seen = []

    def fn(item):
        clock.take(cost_s)
        seen.append(item)
        return -item

    assert run(fn, range(count)) == [-n for n in range(count)]
    assert seen == list(range(count))
    assert (auto.last.here, auto.last.sent, auto.last.workers) == (count, 0, 0)


@pytest.mark.parametrize("kind", [list, tuple, iter, range])
def test_any_iterable_will_do(kind):
    items = range(10) if kind is range else kind(list(range(10)))
    assert shoal.map(str, items, workers="auto") == [str(n) for n in range(10)]


def test_the_shortest_of_several_iterables_ends_it():
    assert shoal.map(pow, [2, 3, 4], (n for n in [5, 2]), workers="auto") == [32, 9]
    assert shoal.map(max, [1, 5], [3, 3], [2, 2], workers="auto") == [3, 5]


def test_what_the_function_does_to_the_list_it_came_from_does_not_matter():
    source = list(range(100))

    def fn(item):
        source.clear()
        return item

    assert shoal.map(fn, source, workers="auto") == list(range(100))


def test_a_map_inside_a_map_is_a_map():
    inner = lambda n: sum(shoal.map(abs, range(-n, 0), workers="auto"))
    assert shoal.map(inner, range(20), workers="auto") == [n * (n + 1) // 2 for n in range(20)]
    assert shoal.explain().auto.tasks_here == 20  # the outer one ended last


# --- errors ------------------------------------------------------------------------------------


def odd_ones_fail(n):
    if n % 2:
        raise ValueError(f"odd {n}")
    return n


@pytest.mark.parametrize("errors", ["return", "skip"])
def test_errors_are_returned_or_skipped_as_asked(clock, errors):
    outcome = shoal.map(odd_ones_fail, range(1000), workers="auto", errors=errors)
    if errors == "skip":
        assert outcome == list(range(0, 1000, 2))
    else:
        assert outcome[::2] == list(range(0, 1000, 2))
        assert [str(error) for error in outcome[1::2]] == [f"odd {n}" for n in range(1, 1000, 2)]
        assert outcome[777].__notes__ == ["in task 777 of the map: odd_ones_fail(777)"]


@pytest.mark.parametrize("kind", [ValueError, StopIteration, SystemExit, KeyError, RecursionError, MemoryError])
def test_the_first_error_ends_the_map_and_says_whose_it_is(clock, kind):
    ran = []

    def fn(a, b):
        ran.append(a)
        if a == 3:
            raise kind("three")
        return a

    with pytest.raises(kind) as caught:
        shoal.map(fn, range(10), "abcdefghij", workers="auto")
    assert caught.value.__notes__ == [
        "in task 3 of the map: test_the_first_error_ends_the_map_and_says_whose_it_is.fn(3, 'd')"
    ]
    assert ran == [0, 1, 2, 3]


def test_an_error_that_takes_no_note_is_raised_all_the_same():
    class Bare(Exception):
        __slots__ = ()

        def add_note(self, note):
            raise AttributeError

    def fn(item):
        raise Bare

    with pytest.raises(Bare):
        shoal.map(fn, [1], workers="auto")


@pytest.mark.parametrize("errors", ["return", "skip"])
def test_ctrl_c_is_no_error_of_a_task(errors):
    def fn(item):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        shoal.map(fn, range(3), workers="auto", errors=errors)


def test_many_errors_cost_no_more_than_their_number(monkeypatch):
    """Where items cannot be sent, all are one block; after an error the rest of it is not copied again."""
    copies = []

    class Items(list):
        def __getitem__(self, where):
            copies.append(where)
            return super().__getitem__(where)

    def fn(item):
        raise ValueError

    monkeypatch.setattr(auto.Course, "_failed", lambda course, index, error: auto.FAILED)
    monkeypatch.setattr(auto.Course, "_finished", lambda course: course.results)
    assert len(run(fn, Items(range(5000)), "skip")) == 5000
    assert len(copies) < 200


# --- how often it looks ---------------------------------------------------------------------------


def test_short_maps_are_not_looked_at(clock, looks):
    run(costing(clock, lambda n: 1e-6), range(1000))
    assert looks == []


def test_looks_come_at_growing_intervals(clock, looks):
    run(costing(clock, lambda n: 1e-4), range(100_000))  # 10 s
    assert 5 < len(looks) < 25
    lefts = [left for left, _ in looks]
    assert lefts == sorted(lefts, reverse=True)
    done = [100_000 - left for left in lefts]
    assert all(later >= 1.4 * sooner for sooner, later in itertools.pairwise(done))


@pytest.mark.parametrize("count", [2, 50])
def test_the_first_look_does_not_wait_for_a_second_long_item(clock, looks, count):
    run(costing(clock, lambda n: 2.0), range(count))
    assert looks[:1] == ([(count - 1, pytest.approx(2.0))] if count > 2 else [])


def test_a_dear_first_call_does_not_make_the_others_dear(clock, looks):
    run(costing(clock, lambda n: 0.5 if n == 0 else 1e-6), range(300_000))
    assert all(cost_s == pytest.approx(1e-6, rel=0.5) for _, cost_s in looks[1:])


def test_cheap_items_are_run_in_blocks_of_bounded_number(clock, looks):
    """The next may cost a thousand times what the last did: the clock is looked at in between."""
    ran_dear = []

    def cost(n):
        if n < 100_000:
            return 1e-8
        if not looks:
            ran_dear.append(n)
        return 0.01

    run(costing(clock, cost), range(200_000))
    assert len(ran_dear) <= 2 * auto._BLOCK


@pytest.mark.parametrize("per_batch", [1e-7, 1e-5])
def test_the_clock_is_looked_at_about_once_a_batch(clock, looks, per_batch, monkeypatch):
    reads = []

    def read():
        reads.append(None)
        return clock.now

    monkeypatch.setattr(auto, "perf_counter", read)
    total = 100_000
    run(costing(clock, lambda n: per_batch), range(total))
    assert len(reads) <= 3 * max(total * per_batch / auto.BATCH_S, total / auto._BLOCK) + 40


# --- what keeps it here --------------------------------------------------------------------------


def long_map(clock, items, errors="raise"):
    """A map that would be worth workers, if it could be sent."""

    RESULTS[:] = clock, None
    return run(echo, items, errors)


class NoReduce:
    def __reduce__(self):
        raise RuntimeError("not this one")


class NoRebuild:
    def __reduce__(self):
        return _refuse, ()


RESULTS = []  # a clock, and what `give` returns: it is pickled by its name


def echo(item):
    RESULTS[0].take(0.01)
    return item


def give(_):
    clock, result = RESULTS
    clock.take(0.01)
    return result


def _refuse():
    raise LookupError("cannot be rebuilt")


@pytest.mark.parametrize(
    ("item", "why"),
    [(threading.Lock(), "cannot be sent"), (NoReduce(), "not this one"), (NoRebuild(), "cannot be rebuilt")],
    ids=["lock", "refuses to be pickled", "refuses to be rebuilt"],
)
@pytest.mark.parametrize("place", ["items", "results"])
def test_what_cannot_be_sent_is_run_here(clock, looks, item, why, place):
    if place == "items":
        assert long_map(clock, [item] * 1000) == [item] * 1000
    else:
        RESULTS[:] = clock, item
        assert run(give, range(1000)) == [item] * 1000
    assert looks == []
    assert why in auto.last.reason
    assert (auto.last.here, auto.last.workers) == (1000, 0)


@pytest.mark.parametrize(
    ("processors", "worker", "why"), [(1, False, "one processor only"), (8, True, "this is a worker")]
)
def test_where_workers_would_be_of_no_use_nobody_asks(clock, looks, monkeypatch, processors, worker, why):
    from shoal._os import interpreter

    monkeypatch.setattr(cpus, "usable_cpus", lambda: processors)
    monkeypatch.setattr(interpreter, "is_worker", lambda: worker)
    assert long_map(clock, range(1000)) == list(range(1000))
    assert looks == []
    assert why in auto.last.reason


def test_a_pool_that_is_busy_is_said_to_be(clock, looks, monkeypatch):
    engine = SimpleNamespace(vacancies=lambda: (0, 0))
    monkeypatch.setattr(default, "running_pool", lambda: SimpleNamespace(_engine_now=lambda: engine))
    long_map(clock, range(1000))
    assert "every worker of the default pool was busy" in auto.last.reason


# --- bad arguments -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"errors": "bogus"}, ValueError, "errors must be one of 'raise', 'return', 'skip', not 'bogus'"),
        ({"retries": -1}, ValueError, "retries must be at least 0, not -1"),
        ({"retries": True}, TypeError, "retries must be an int, not True"),
        ({"retries": False}, TypeError, "retries must be an int, not False"),
        ({"retries": 0.0}, TypeError, "retries must be an int, not 0.0"),
        ({"timeout": 0}, ValueError, "timeout must be above 0 seconds"),
        ({"timeout": "1"}, TypeError, "timeout must be seconds as a number"),
        ({"timeout": float("nan")}, ValueError, "timeout must be above 0 seconds"),
    ],
)
@pytest.mark.parametrize("items", [[], [1]])
def test_bad_options_are_refused_as_everywhere(options, error, said, items):
    with pytest.raises(error, match=said):
        shoal.map(abs, items, workers="auto", **options)


@pytest.mark.parametrize("workers", ["Auto", "", "2", b"auto", True, 0, -1, 1.5])
def test_a_wrong_number_of_workers_is_refused(workers):
    with pytest.raises((TypeError, ValueError), match="workers must be"):
        shoal.map(abs, [1], workers=workers)


@pytest.mark.parametrize("items", [[], [1]])
def test_a_function_that_is_none_is_refused_shortly(items):
    with pytest.raises(TypeError, match="the function to run must be callable, not ") as caught:
        shoal.map([0] * 1000, items, workers="auto")
    assert len(str(caught.value)) < 150


def test_no_iterable_is_no_task():
    assert shoal.map(abs, workers="auto") == []


# --- words -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(2.5, "2.5 s"), (59.96, "60 s"), (0.25, "250 ms"), (0.0012345, "1.23 ms"), (4.2e-5, "42 us"), (0.0, "0 us")],
)
def test_a_time_is_shown_with_its_unit(seconds, text):
    assert show(seconds) == text


@pytest.mark.parametrize("seconds", [999.9e-9, 999.6e-6, 999.9999e-3, 1000.0, 3600.0, 86400.0, 1e-9])
def test_a_time_is_never_shown_with_a_power_of_ten(seconds):
    assert "e" not in show(seconds).replace(" s", "")
