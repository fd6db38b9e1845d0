"""What `explain()` says: in words that fit the numbers, of anything a pool may have run."""

from __future__ import annotations

import copy
import dataclasses
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

import shoal
from shoal._pool import auto, explaining
from shoal._pool.batching import SOON, WHOLE, Pace, rule


def report(**changes):
    given_values = {
        "function": "resize",
        "tasks": 1000,
        "cost_s": 0.00012,
        "handed_over": 10,
        "largest": 200,
        "taken_back": 0,
        "rule": "one at a time",
    }
    return shoal.FunctionReport(**{**given_values, **changes})


def auto_report(**changes):
    given_values = {
        "function": "resize",
        "tasks_here": 20,
        "tasks_sent": 980,
        "workers": 2,
        "cost_s": 0.001,
        "reason": "980 tasks of 1 ms were left",
    }
    return shoal.AutoReport(**{**given_values, **changes})


EXPLANATION = shoal.Explanation(workers=2, functions=(report(), report(function="rotate")), auto=auto_report())


@pytest.mark.parametrize("one", [report(), auto_report(), EXPLANATION, shoal.Explanation(workers=1)], ids=str)
def test_reports_are_values(one):
    assert pickle.loads(pickle.dumps(one)) == one == copy.deepcopy(one)
    assert hash(one) == hash(copy.copy(one))
    assert type(one).__name__ in repr(one)
    assert not hasattr(one, "__dict__")
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(one, dataclasses.fields(one)[0].name, 3)
    assert one != report(function="other")


def test_an_explanation_names_the_last_map_the_pool_and_each_function_in_order():
    text = str(EXPLANATION)
    places = [text.index(word) for word in ('workers="auto"', "pool of 2 workers", "resize: 1,000 tasks", "rotate:")]
    assert places == sorted(places)


def test_a_pool_that_was_not_used_says_so():
    assert str(shoal.Explanation(workers=2)) == "pool of 2 workers\nnothing has been run on it"
    assert str(shoal.Explanation(workers=1)).startswith("pool of 1 worker\n")


@pytest.mark.parametrize(
    ("changes", "said", "never"),
    [
        ({"tasks": 1, "handed_over": 1, "largest": 1}, "1 task,", "1 tasks"),
        ({"tasks": 1, "handed_over": 1, "largest": 1}, "1 piece", "1 pieces"),
        ({"tasks": 1234567}, "1,234,567 tasks", "1234567"),
        ({"tasks": 0, "cost_s": None}, "not measured yet", "None"),
        ({"taken_back": 1}, "1 task came back before ", "1 tasks"),
        ({"taken_back": 4321}, "4,321 tasks came back before they had begun", "4321"),
        ({"taken_back": 0}, "", "came back"),
        ({"cost_s": 0.00012}, "120 us", "e-"),
        ({"tasks": 10**7, "handed_over": 3}, "", "e+"),
        ({"cost_s": 5000.0}, "5,000 s", "e+"),
    ],
)
def test_a_function_report_is_written_for_people(changes, said, never):
    text = str(report(**changes))
    assert said in text
    assert never not in text


def test_an_auto_report_is_written_for_people():
    assert "20 tasks in this process, 980 by up to 2 workers" in str(auto_report())
    assert "1 task in this process\n" in str(auto_report(tasks_here=1, tasks_sent=0, workers=0))
    assert not str(auto_report(reason="")).endswith("\n")


numbers = st.integers(0, 10**12)


@given(
    st.text(max_size=20),
    numbers,
    st.none() | st.floats(0, 1e9),
    numbers,
    numbers,
    numbers,
    st.sampled_from([SOON, WHOLE]),
    st.floats(0, 1e12),
)
def test_any_numbers_make_a_text(function, tasks, cost_s, handed_over, largest, taken_back, grain, item_bytes):
    pace = Pace()
    pace.cost_s, pace.item_bytes = cost_s, item_bytes
    one = report(
        function=function,
        tasks=tasks,
        cost_s=cost_s,
        handed_over=handed_over,
        largest=largest,
        taken_back=taken_back,
        rule=rule(pace, grain),
    )
    text = str(shoal.Explanation(workers=1, functions=(one,)))
    assert function in text
    assert "None" not in text.replace(function, "")


@pytest.mark.parametrize(("cost_s", "said"), [(None, "one at a time"), (1.0, "one at a time"), (1e-6, "up to ")])
def test_the_rule_says_how_many_go_at_a_time(cost_s, said):
    pace = Pace()
    pace.cost_s = cost_s
    assert rule(pace, WHOLE).startswith(said)


def test_before_anything_was_run_there_is_an_explanation(monkeypatch):
    monkeypatch.setattr(auto, "last", None)
    with shoal.Pool(3) as pool:
        assert pool.explain() == shoal.Explanation(workers=3)
    assert pool.explain() == shoal.Explanation(workers=3)  # nor after it was closed


def test_only_the_default_pool_tells_of_the_last_map():
    shoal.map(abs, [-1], workers="auto")
    assert shoal.explain().auto == explaining.of_pool(1, None, with_auto=True).auto
    assert shoal.explain().auto.function == "abs"
    with shoal.Pool(1) as pool:
        assert pool.explain().auto is None
