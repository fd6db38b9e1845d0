"""A function is pickled once if its name says it all (N1), and again if it may have changed (N2)."""

from __future__ import annotations

import functools
import operator
import threading

import pytest

import shoal._pool.functions as functions_module
from shoal._pool.functions import FunctionBook
from shoal._wire import codec
from shoal._wire.frames import parts_of
from shoal.errors import NotPicklable


@pytest.fixture
def book():
    return FunctionBook(main_is_lost=False)


def rebuilt(record):
    _, payload, buffers = record.form
    return codec.unpack(payload, [b"".join(parts_of(buffer)) for buffer in buffers])


class Model:
    def __init__(self, weight):
        self.weight = weight

    def predict(self, x):
        return self.weight * x

    def __call__(self, x):
        return x - self.weight


def test_a_named_function_has_one_record_for_ever(book):
    first = book.record(len)
    assert book.record(len) is first
    assert rebuilt(first) is len
    assert book.record(Model) is book.record(Model)


def test_a_closure_of_the_same_value_is_known_again_and_of_another_is_not(book):
    def make(k):
        return lambda x: x + k

    one, same, other = book.record(make(1)), book.record(make(1)), book.record(make(2))
    assert one is same
    assert other is not one
    assert rebuilt(one)(1) == 2
    assert rebuilt(other)(1) == 3


def test_an_object_that_changed_is_sent_as_it_is_now(book):
    model = Model(2)
    before = book.record(model.predict)
    model.weight = 3
    after = book.record(model.predict)
    assert after is not before
    assert rebuilt(after)(10) == 30
    assert book.record(model) is not after
    assert rebuilt(book.record(model))(10) == 7


def test_a_partial_is_known_by_what_it_holds(book):
    assert book.record(functools.partial(pow, 2)) is book.record(functools.partial(pow, 2))
    assert book.record(functools.partial(pow, 2)) is not book.record(functools.partial(pow, 3))


def test_functions_that_share_an_array_are_told_apart(book):
    numpy = pytest.importorskip("numpy")
    shared = numpy.ones(10_000)
    added = book.record(functools.partial(operator.add, shared))
    multiplied = book.record(functools.partial(operator.mul, shared))
    assert added is not multiplied
    assert rebuilt(multiplied)(5)[0] == 5
    assert book.record(functools.partial(operator.add, shared)) is added


def test_what_cannot_be_called_or_sent_is_refused_at_once(book):
    with pytest.raises(TypeError, match="must be callable, not 3"):
        book.record(3)
    lock = threading.Lock()
    with pytest.raises(NotPicklable, match="the function"):
        book.record(lambda: lock)


def test_old_functions_are_forgotten_once_each(book, monkeypatch):
    monkeypatch.setattr(functions_module, "REMEMBERED", 3)
    records = [book.record(functools.partial(pow, number)) for number in range(5)]
    assert book.take_forgotten() == [record.form[0] for record in records[:2]]
    assert book.take_forgotten() == []
    assert book.record(functools.partial(pow, 0)) is not records[0]


def test_a_function_that_holds_much_is_forgotten_with_its_job(book):
    data = bytes(2 * functions_module.REMEMBERED_BYTES)
    record = book.record(functools.partial(len, data))
    assert book.take_forgotten() == []
    book.release(record)
    assert book.take_forgotten() == [record.form[0]]
    small = book.record(functools.partial(len, b""))
    book.release(small)
    assert book.take_forgotten() == []


def test_a_name_workers_do_not_know_is_replaced_by_value_once(book, monkeypatch):
    import __main__

    def guarded(x):
        return x + 1

    monkeypatch.setattr(guarded, "__module__", "__main__")
    monkeypatch.setattr(guarded, "__qualname__", "guarded")
    monkeypatch.setattr(__main__, "guarded", guarded, raising=False)
    record = book.record(guarded)
    number = record.form[0]
    assert isinstance(record.form[1], bytes)  # a mere name
    assert book.by_value(record, guarded)
    assert record.form[0] != number
    monkeypatch.delattr(__main__, "guarded")
    assert rebuilt(record)(1) == 2
    assert not book.by_value(record, guarded)


def test_functions_of_a_lost_main_go_by_value_from_the_start(monkeypatch):
    def of_main(x):
        return 2 * x

    monkeypatch.setattr(of_main, "__module__", "__main__")
    record = FunctionBook(main_is_lost=True).record(of_main)
    assert rebuilt(record)(4) == 8


def test_numbers_are_unique_across_threads(book):
    found = []

    def work(k):
        found.extend(book.record(functools.partial(pow, k, number)) for number in range(50))

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({record.form[0] for record in found}) == 200
