"""What one worker is handed at once (B1, B2), and how a function's pace is learned."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal._pool.batching import LONG_S, MOST_BYTES, MOST_ITEMS, PREFETCH_S, SOON, WHOLE, Pace, rule, share

costs = st.none() | st.just(0.0) | st.floats(1e-9, 100.0)
held = st.just(0.0) | st.floats(0.0, 10.0)
grains = st.sampled_from([SOON, WHOLE])


def pace(cost_s):
    made = Pace()
    made.cost_s = cost_s
    return made


@given(costs, grains, st.integers(1, 10**7), st.integers(1, 500), st.floats(0, 1e12))
def test_an_empty_worker_always_gets_something(cost_s, grain, waiting, workers, item_bytes):
    learned = pace(cost_s)
    learned.item_bytes = item_bytes
    assert share(learned, grain, 0.0, waiting, workers, 0) >= 1  # B1


@given(st.floats(1e-9, 10.0), st.integers(1, 10**7), st.integers(1, 500))
def test_a_task_of_unknown_cost_waits_for_an_empty_worker(held_s, waiting, workers):
    assert share(pace(None), WHOLE, held_s, waiting, workers, 0) == 0  # B2
    assert share(pace(None), WHOLE, 0.0, waiting, workers, 0) == 1


@given(costs, grains, held, st.integers(1, 10**7), st.integers(1, 500), st.integers(0, 10**7))
def test_a_share_is_bounded_in_items_in_time_and_by_what_others_need(cost_s, grain, held_s, waiting, workers, owed):
    count = share(pace(cost_s), grain, held_s, waiting, workers, owed)
    assert 0 <= count <= MOST_ITEMS
    assert count <= max(1, (waiting + owed) // (2 * workers))
    if cost_s and count > 1:
        assert held_s + count * cost_s <= grain.hold_s * (1 + 1e-9)


@given(st.floats(0, 1e9), st.integers(1, 10**7))
def test_a_share_of_many_is_bounded_in_bytes(item_bytes, waiting):
    learned = pace(1e-7)
    learned.item_bytes = item_bytes
    count = share(learned, WHOLE, 0.0, waiting, 2, 0)
    assert count == 1 or count * item_bytes <= MOST_BYTES


@given(st.floats(LONG_S, 100.0), held, st.integers(1, 10**6), st.integers(1, 100))
def test_long_tasks_go_one_by_one_and_at_most_one_ahead(cost_s, held_s, waiting, workers):
    count = share(pace(cost_s), WHOLE, held_s, waiting, workers, 0)
    assert count <= 1
    if held_s > 0 and (cost_s >= PREFETCH_S or held_s >= 1.5 * cost_s or waiting <= 4 * workers):
        assert count == 0


@pytest.mark.parametrize("grain", [SOON, WHOLE])
def test_a_worker_that_is_half_full_is_left_alone(grain):
    assert share(pace(1e-5), grain, grain.hold_s / 2, 10**6, 2, 0) == 0
    assert share(pace(1e-5), grain, grain.hold_s / 4, 10**6, 2, 0) > 100


@pytest.mark.parametrize(
    ("cost_s", "item_bytes", "says"),
    [
        (None, 0, "one at a time, until"),
        (0.1, 0, "one at a time: sending"),
        (0.01, 0, "one at a time, one ahead"),
        (1e-4, 0, "up to 1,500 at a time (150 ms of work)"),
        (1e-8, 0, "up to 50,000 at a time (the most at once)"),
        (1e-4, 1 << 20, "up to 16 at a time (16 MiB of arguments)"),
        (0.0, 0, "up to 50,000 at a time"),
    ],
)
def test_the_rule_is_said_in_words(cost_s, item_bytes, says):
    learned = pace(cost_s)
    learned.item_bytes = item_bytes
    assert rule(learned, WHOLE).startswith(says)


def test_what_a_worker_holds_counts_against_its_part():
    assert share(pace(1e-4), WHOLE, 0.0, 100, 2, 100) == 50
    assert share(pace(1e-4), WHOLE, 30e-4, 100, 2, 100) == 20
    assert share(pace(1e-4), WHOLE, 60e-4, 100, 2, 100) == 0


@pytest.mark.parametrize("waiting", [8, 100, 100_000])
def test_pieces_get_smaller_towards_the_end(waiting):
    shares = []
    left = waiting
    while left:
        shares.append(min(left, share(pace(1e-7), WHOLE, 0.0, left, 2, 0)))
        left -= shares[-1]
    assert shares == sorted(shares, reverse=True)
    assert shares[-1] == 1


# --- learning -----------------------------------------------------------------------------------


def test_the_first_sample_is_believed():
    learned = pace(None)
    learned.learn(10, 0.5)
    assert learned.cost_s == 0.05


@given(st.floats(1e-9, 10.0), st.integers(1, 1000), st.floats(0.0, 10.0))
def test_an_estimate_stays_between_what_it_was_and_what_was_seen(cost_s, count, elapsed_s):
    learned = pace(cost_s)
    learned.learn(count, elapsed_s)
    low, high = sorted([cost_s, elapsed_s / count])
    assert low * (1 - 1e-9) <= learned.cost_s <= high * (1 + 1e-9)


def test_cheaper_is_believed_sooner_than_dearer():
    cheaper, dearer = pace(1.0), pace(1.0)
    cheaper.learn(1, 0.0)
    dearer.learn(1, 2.0)
    assert 1.0 - cheaper.cost_s > dearer.cost_s - 1.0


def test_an_estimate_follows_a_function_that_changes():
    learned = pace(10.0)
    for _ in range(20):
        learned.learn(1, 0.001)
    assert math.isclose(learned.cost_s, 0.001, rel_tol=0.01)


def test_a_heavy_item_is_believed_at_once_and_a_light_one_slowly():
    learned = pace(None)
    learned.weigh(10, 1000)
    learned.weigh(1, 10_000)
    assert learned.item_bytes == 10_000
    learned.weigh(1, 0)
    assert learned.item_bytes == 5_000
