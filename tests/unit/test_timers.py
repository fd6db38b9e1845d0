"""Timers run once, in order of their times, and not before."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

import shoal._pool.timers as timers_module
from shoal._pool.timers import Timers


class Clock(SimpleNamespace):
    now = 100.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr(timers_module, "time", made)
    return made


def test_nothing_is_due_when_nothing_was_asked():
    timers = Timers()
    assert timers.wait_s() is None
    assert timers.take_due() == []


def test_actions_are_due_in_order_of_their_times_and_once(clock):
    timers, ran = Timers(), []
    for delay_s in (3, 1, 2):
        timers.after(delay_s, lambda delay_s=delay_s: ran.append(delay_s))
    assert timers.wait_s() == 1
    assert timers.take_due() == []
    clock.now += 2
    for action in timers.take_due():
        action()
    assert ran == [1, 2]
    assert timers.take_due() == []
    assert timers.wait_s() == 1


def test_actions_of_one_time_run_as_they_were_asked_for(clock):
    timers, ran = Timers(), []
    for number in range(10):
        timers.after(1.0, lambda number=number: ran.append(number))
    clock.now += 1
    for action in timers.take_due():
        action()
    assert ran == list(range(10))


def test_after_says_whether_somebody_must_wake_up_earlier(clock):
    timers = Timers()
    assert timers.after(5, print)
    assert not timers.after(6, print)
    assert timers.after(4, print)


def test_what_is_overdue_waits_no_negative_time(clock):
    timers = Timers()
    timers.after(-1, print)
    clock.now += 10
    assert timers.wait_s() == 0.0


@given(st.lists(st.integers(0, 100), max_size=30), st.integers(0, 100))
def test_exactly_what_is_due_is_taken(delays, passed):
    clock = Clock()
    before = timers_module.time
    timers_module.time = clock
    try:
        timers = Timers()
        for delay_s in delays:
            timers.after(delay_s, lambda delay_s=delay_s: delay_s)
        due = sorted(delay_s for delay_s in delays if clock.now + delay_s <= clock.now + passed)
        clock.now += passed
        assert [action() for action in timers.take_due()] == due
    finally:
        timers_module.time = before


def test_the_real_clock_is_the_monotonic_one():
    timers = Timers()
    timers.after(0.0, print)
    assert timers.wait_s() == 0.0
    assert len(timers.take_due()) == 1
    assert timers_module.time is time
