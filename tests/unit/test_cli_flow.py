"""Outcomes come back beside their inputs, in order or as they settle, few at a time, and none is lost."""

from __future__ import annotations

import itertools
import threading
from concurrent.futures import Future

import pytest

from shoal.cli.flow import Flow


class Desk:
    """Stands where a pool stands: keeps what is submitted until the test settles it."""

    def __init__(self) -> None:
        self.futures: dict[str, Future[str]] = {}
        self.grew = threading.Condition()

    def submit(self, item: str) -> Future[str]:
        future: Future[str] = Future()
        with self.grew:
            self.futures[item] = future
            self.grew.notify_all()
        return future

    def has(self, count: int) -> None:
        with self.grew:
            assert self.grew.wait_for(lambda: len(self.futures) >= count, timeout=30)


def at_once(item: str) -> Future[str]:
    future: Future[str] = Future()
    if item.startswith("bad"):
        future.set_exception(ValueError(item))
    else:
        future.set_result(item.upper())
    return future


@pytest.mark.parametrize("ordered", [True, False])
def test_every_outcome_stands_beside_its_input(ordered):
    flow = Flow(at_once, iter(["a", "bad", "c"]), window=2, ordered=ordered)
    found = {outcome.input: outcome.result or str(outcome.error) for outcome in flow}
    assert found == {"a": "A", "bad": "bad", "c": "C"}


def test_no_inputs_give_no_outcomes():
    assert list(Flow(at_once, iter([]), window=2, ordered=True)) == []


def test_outcomes_come_in_the_order_of_inputs_though_settled_backwards():
    desk = Desk()
    flow = Flow(desk.submit, iter("abc"), window=8, ordered=True)

    def settle() -> None:
        desk.has(3)
        for item in "cba":
            desk.futures[item].set_result(item)

    threading.Thread(target=settle).start()
    assert [outcome.input for outcome in flow] == ["a", "b", "c"]


def test_outcomes_come_as_they_settle_when_order_does_not_matter():
    desk = Desk()
    flow = Flow(desk.submit, iter("abc"), window=8, ordered=False)
    outcomes = iter(flow)

    def settle(item: str) -> None:
        desk.has(3)
        desk.futures[item].set_result(item)

    for item in "bca":
        threading.Thread(target=settle, args=(item,)).start()
        assert next(outcomes).input == item
    assert list(outcomes) == []


def test_endless_inputs_are_taken_only_as_far_as_the_window():
    """F2: memory is bounded whatever the stream's length."""
    desk = Desk()
    taken = itertools.count()
    flow = Flow(desk.submit, (str(next(taken)) for _ in itertools.repeat(0)), window=4, ordered=True)
    outcomes = iter(flow)

    def settle(number: int) -> None:
        desk.has(number + 1)
        desk.futures[str(number)].set_result("")

    for index in range(10):
        threading.Thread(target=settle, args=(index,)).start()
        assert next(outcomes).index == index
        assert len(desk.futures) <= index + 1 + 4
    flow.stop()


def test_stop_keeps_what_has_settled_and_cancels_the_rest():
    """F3: a Ctrl-C keeps what is done, also what waited for its turn."""
    desk = Desk()
    flow = Flow(desk.submit, iter("abcd"), window=8, ordered=True)
    outcomes = iter(flow)

    def settle() -> None:
        desk.has(4)
        desk.futures["d"].set_result("d")
        desk.futures["b"].set_result("b")
        desk.futures["a"].set_result("a")

    threading.Thread(target=settle).start()
    assert next(outcomes).input == "a"
    assert next(outcomes).input == "b"
    flow.interrupt()
    assert list(outcomes) == []
    assert [outcome.input for outcome in flow.stop()] == ["d"]
    assert desk.futures["c"].cancelled()


def test_interrupt_wakes_a_flow_that_waits_for_its_inputs():
    """A slow standard input must not keep Ctrl-C waiting."""
    gate = threading.Event()

    def slow():
        yield "a"
        gate.wait(30)

    flow = Flow(at_once, slow(), window=8, ordered=True)
    outcomes = iter(flow)
    assert next(outcomes).input == "a"
    flow.interrupt()
    assert list(outcomes) == []
    gate.set()


def test_error_of_the_inputs_comes_after_the_outcomes_before_it():
    def failing():
        yield "a"
        yield "b"
        raise OSError("the disk is gone")

    outcomes = iter(Flow(at_once, failing(), window=8, ordered=True))
    assert [next(outcomes).input, next(outcomes).input] == ["a", "b"]
    with pytest.raises(OSError, match="the disk is gone"):
        next(outcomes)
