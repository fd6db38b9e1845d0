"""Children killed at random, hundreds of times: after each death the tree is as OTP would have it."""

from __future__ import annotations

import os
import random
import signal

import pytest

import shoal
from tests.crash import tree_storms
from tests.process.supervised import sleeps
from tests.support import eventually

#: More where a kill costs less.
KILLS = {"one_for_one": 120, "one_for_all": 40, "rest_for_one": 50}


@pytest.mark.parametrize("strategy", KILLS)
def test_after_each_of_many_kills_exactly_those_concerned_are_new(strategy):
    tree_storms.kill_children(strategy, KILLS[strategy])


@pytest.mark.parametrize("strategy", ["one_for_one", "one_for_all", "rest_for_one"])
def test_kills_of_several_at_once_are_all_made_up_for(strategy):
    """Whatever the order in which deaths are noticed: in the end everybody runs, and each exit was dealt with."""
    chance = random.Random(strategy)
    with shoal.Supervisor(strategy, intensity=1000, period=1e6) as tree:
        children = [tree.start(sleeps, shutdown="kill") for _ in range(3)]
        for _ in range(15):
            before = [child.pid for child in children]
            victims = chance.sample(range(3), 2)
            for victim in victims:
                os.kill(before[victim], signal.SIGKILL)
            tree_storms.wait_until_new(tree, before, set(victims))
            eventually(lambda: all(child.state == "up" for child in children), what="everybody to be up")


def test_nested_trees_heal_from_the_bottom():
    chance = random.Random(3)
    with shoal.Supervisor("one_for_all", intensity=100, period=1e6) as tree:
        inner = shoal.Supervisor("one_for_one", intensity=0)
        leaves = [inner.add(sleeps, shutdown="kill") for _ in range(2)]
        witness = tree.start(sleeps, shutdown="kill")
        tree.start(inner)

        def is_new(child, before):
            return child.state == "up" and child.pid not in (None, *before)

        for _ in range(15):
            before = [witness.pid, *(leaf.pid for leaf in leaves)]
            os.kill(chance.choice(before[1:]), signal.SIGKILL)  # inner gives up, the outer one restarts all
            eventually(
                lambda before=before: all(is_new(one, before) for one in (witness, *leaves)),
                what="the tree to be healed",
            )
        assert tree.statistics().restarts == 15
