"""Somebody reads while anybody waits, in every order of the threads' steps (R1, R2, R3).

The real `Role`: two threads with one preemption at any byte code or two at any line, three with one at any line. Each thread waits for one message, as `Engine.wait` does it; nobody else reads, so a lead that stays
free while somebody sleeps is a deadlock, which the scheduler reports.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest

import shoal._pool.role as role_module
from shoal._pool.role import Role
from tests.model.interleave import Condition, Deadlock, Lock, interleavings

FILES = {role_module.__file__, __file__}


@pytest.fixture(autouse=True)
def scheduled_locks(monkeypatch):
    here = SimpleNamespace(Lock=Lock, Condition=Condition, get_ident=role_module.threading.get_ident)
    monkeypatch.setattr(role_module, "threading", here)


class Scene:
    """Messages that arrive in a given order, and threads that wait for one each."""

    def __init__(self, order):
        self.role = Role()
        self.to_read = list(order)
        self.there = [False] * len(order)
        self.conditions = [Condition() for _ in order]
        self.reading = 0

    def read_one(self):
        self.reading += 1
        assert self.reading == 1  # R1
        message = self.to_read.pop(0)
        self.there[message] = True
        self.reading -= 1
        with self.conditions[message]:
            self.conditions[message].notify_all()

    def wait_for(self, message):
        try:
            while not self.there[message]:
                if self.role.take():
                    try:
                        while not self.there[message]:
                            self.read_one()
                    finally:
                        self.role.leave()
                else:
                    self.role.follow(lambda: self.there[message], self.conditions[message], None)
        finally:
            self.role.pass_on()

    def glance(self, message):
        """Wait for a message as a caller does whose patience ends: it follows once and goes."""
        try:
            if not self.role.take():
                self.role.follow(lambda: True, self.conditions[message], None)
            else:
                self.role.leave()
        finally:
            self.role.pass_on()


def scene(order, glances=0):
    def make():
        now = Scene(order)
        bodies = [lambda n=n: now.wait_for(n) for n in range(len(order))]
        bodies += [lambda: now.glance(0)] * glances

        def check():
            assert all(now.there)
            assert not now.role._followers
            assert not now.role._lead.locked()

        return bodies, check

    return make


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_two_threads_in_every_order(order):
    assert interleavings(scene(order), FILES) > 100
    assert interleavings(scene(order), FILES, preemptions=2, fine=False) > 500


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_three_threads_in_every_order_of_lines(order):
    assert interleavings(scene(order), FILES, fine=False) > 500


def test_one_who_only_glances_does_not_swallow_the_wake_up():
    assert interleavings(scene((1, 0), glances=1), FILES, fine=False) > 200


def test_the_search_finds_a_role_that_nobody_is_told_of(monkeypatch):
    monkeypatch.setattr(Role, "pass_on", lambda self: None)
    with pytest.raises((Deadlock, AssertionError)):
        interleavings(scene((1, 0)), FILES, fine=False)
