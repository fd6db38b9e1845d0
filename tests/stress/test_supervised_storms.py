"""Thousands of random kills of supervised children, of actors and of their callers: counts are exact in the end."""

from __future__ import annotations

import pytest

from tests.crash import tree_storms

pytestmark = pytest.mark.hang_limit(900)


@pytest.mark.parametrize("strategy", ["one_for_one", "one_for_all", "rest_for_one"])
def test_a_thousand_kills_of_supervised_children(strategy):
    tree_storms.kill_children(strategy, 1000)


def test_a_thousand_kills_of_an_actor_that_others_call(tmp_path):
    tree_storms.kill_actor(tmp_path, 1000, callers=3)
