"""Children killed at random, hundreds of times: after each death the tree is as OTP would have it."""

from __future__ import annotations

import os
import random
import signal

import pytest

import shoal
from tests.process.supervised import Counter, Waits, sleeps
from tests.support import eventually, is_alive

KILLS = 70
CHILDREN = 3


def concerned(strategy, victim):
    """Who gets a new process when the child at this place dies."""
    return {"one_for_one": {victim}, "one_for_all": set(range(CHILDREN))}.get(strategy, set(range(victim, CHILDREN)))


@pytest.mark.parametrize("strategy", ["one_for_one", "one_for_all", "rest_for_one"])
def test_after_each_of_many_kills_exactly_those_concerned_are_new(strategy):
    chance = random.Random(strategy)
    with shoal.Supervisor(strategy, intensity=KILLS, period=1e6) as tree:
        children = [tree.start([Waits, sleeps, Counter][place], shutdown="kill") for place in range(CHILDREN)]
        for number in range(KILLS):
            before = [child.pid for child in children]
            victim = chance.randrange(CHILDREN)
            os.kill(before[victim], signal.SIGKILL)
            new = concerned(strategy, victim)
            wait_until_new(tree, children, before, new)
            for place, pid in enumerate(before):
                assert (children[place].pid != pid) == (place in new), f"kill {number} of {victim}: child {place}"
                assert is_alive(pid) == (place not in new)
            assert tree.statistics().restarts == number + 1
        statistics = tree.statistics()
        assert (statistics.exits, statistics.failed_starts) == (KILLS, 0)
    assert tree.statistics().state == "stopped"


def wait_until_new(tree, children, before, new):
    def is_done():
        infos = tree.children()
        return all(infos[place].state == "up" and infos[place].pid != before[place] for place in new)

    eventually(is_done, what=f"children {new} to be restarted")


def test_kills_of_several_at_once_are_all_made_up_for():
    """Whatever the order in which deaths are noticed: in the end everybody runs, and each exit was dealt with."""
    chance = random.Random(7)
    for strategy in ("one_for_one", "one_for_all", "rest_for_one"):
        with shoal.Supervisor(strategy, intensity=1000, period=1e6) as tree:
            children = [tree.start(sleeps, shutdown="kill") for _ in range(3)]
            for _ in range(15):
                before = [child.pid for child in children]
                victims = chance.sample(range(3), 2)
                for victim in victims:
                    if before[victim] is not None:
                        os.kill(before[victim], signal.SIGKILL)
                wait_until_new(tree, children, before, set(victims))
            eventually(lambda: all(child.state == "up" for child in children), what="everybody to be up")


def test_nested_trees_heal_from_the_bottom():
    chance = random.Random(3)
    with shoal.Supervisor("one_for_all", intensity=100, period=1e6) as tree:
        inner = shoal.Supervisor("one_for_one", intensity=0)
        leaves = [inner.add(sleeps, shutdown="kill") for _ in range(2)]
        witness = tree.start(sleeps, shutdown="kill")
        tree.start(inner)
        for _ in range(20):
            before = [leaf.pid for leaf in leaves]
            witnessed = witness.pid
            os.kill(chance.choice(before), signal.SIGKILL)  # inner gives up, the outer one restarts all
            eventually(
                lambda: (
                    witness.state == "up"
                    and witness.pid not in (None, witnessed)
                    and all(leaf.state == "up" and leaf.pid not in (None, *before) for leaf in leaves)
                ),
                what="the tree to be healed",
            )
        assert tree.statistics().restarts == 20
