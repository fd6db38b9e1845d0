"""Semaphores, conditions and barriers in every order of steps, with one death anywhere: nothing lost, doubled or stuck."""

from __future__ import annotations

import pytest

from shoal._sync import states
from tests.model.explore import Broken, explore
from tests.model.sync_world import BarrierWorld, ConditionWorld, SemaphoreWorld


@pytest.mark.parametrize(("permits", "count", "rounds"), [(1, 2, 2), (1, 3, 1), (2, 3, 1)])
def test_permits_are_exact_and_nobody_waits_for_ever(permits, count, rounds):
    """W3 to W5, whoever is killed between any two steps."""
    assert explore(SemaphoreWorld(permits, count, rounds)) > 100


@pytest.mark.parametrize("to_all", [False, True])
@pytest.mark.parametrize(("producers", "consumers"), [(1, 1), (1, 2), (2, 1)])
def test_nobody_waits_while_there_is_something_for_it(producers, consumers, to_all):
    assert explore(ConditionWorld(producers, consumers, to_all=to_all)) > 50


@pytest.mark.parametrize(("parties", "rounds", "acts"), [(2, 2, False), (2, 2, True), (3, 1, False)])
def test_a_barrier_is_passed_by_all_or_breaks_and_names_the_dead(parties, rounds, acts):
    assert explore(BarrierWorld(parties, rounds, acts=acts)) > 50


@pytest.mark.parametrize(
    "world", [SemaphoreWorld(1, 2, 1, deaths=0), ConditionWorld(1, 1, deaths=0), BarrierWorld(2, 2, deaths=0)]
)
def test_without_deaths_nobody_needs_the_recheck(world):
    world.recheck = False
    assert explore(world) > 10


# --- the search finds what is wrong -------------------------------------------------------------


@pytest.mark.parametrize("world", [SemaphoreWorld(1, 2, 1), ConditionWorld(1, 1), BarrierWorld(2, 2)])
def test_the_search_finds_a_waiter_that_never_looks_again(world):
    world.recheck = False
    with pytest.raises(Broken):
        explore(world)


def test_the_search_finds_permits_that_die_with_their_receiver(monkeypatch):
    monkeypatch.setattr(states, "_orphaned", lambda state, dead: 0)
    with pytest.raises(Broken, match="lost or doubled|come back"):
        explore(SemaphoreWorld(1, 2, 1))


def test_the_search_finds_a_notification_that_dies_with_its_receiver(monkeypatch):
    monkeypatch.setattr(states, "_orphaned", lambda state, dead: 0)
    with pytest.raises(Broken, match="something for those who wait"):
        explore(ConditionWorld(1, 2))


def test_the_search_finds_a_permit_that_comes_back_twice(monkeypatch):
    real = states.take

    def forgetful(state, slot, who, room):
        outcome = real(state, slot, who, room)
        if outcome.state is None:
            return outcome
        return outcome._replace(state=outcome.state._replace(value=outcome.state.value + 1))

    monkeypatch.setattr(states, "take", forgetful)
    with pytest.raises(Broken):
        explore(SemaphoreWorld(1, 2, 1))


def test_the_search_finds_a_barrier_that_forgets_who_belongs_to_it(monkeypatch):
    real = states.let_pass

    def forgetful(state, last=0):
        outcome = real(state, last)
        return outcome if outcome.state is None else outcome._replace(state=outcome.state._replace(holders=()))

    monkeypatch.setattr(states, "let_pass", forgetful)
    with pytest.raises(Broken):
        explore(BarrierWorld(2, 2))


def test_the_search_finds_a_death_of_the_notifier_that_nobody_is_told_of(monkeypatch):
    monkeypatch.setattr(states, "holder_died", lambda state: states._NO)
    with pytest.raises(Broken, match="something for those who wait"):
        explore(ConditionWorld(1, 1))
