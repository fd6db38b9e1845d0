"""An option object that exists is valid (S1), and a bad value is refused in words that say what is right (S2)."""

from __future__ import annotations

import dataclasses
import math
import pickle
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal._settings import LONGEST_S, PoolOptions, TaskOptions, check_count, check_timeout, parse_bytes


def refuses(kind, message):
    return pytest.raises(kind, match=f"^{re.escape(message)}$")


# --- sizes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given_value", "size_bytes"),
    [
        (1, 1),
        ("1", 1),
        ("1048576", 1 << 20),
        ("1b", 1),
        ("500MB", 500 * 1000**2),
        ("500m", 500 * 1000**2),
        ("2GiB", 2 << 30),
        (" 2 gib ", 2 << 30),
        ("1.5 KiB", 1536),
        ("3TB", 3 * 1000**4),
        ("1TiB", 1 << 40),
    ],
)
def test_size_is_read_as_people_write_it(given_value, size_bytes):
    assert parse_bytes("memory_limit", given_value) == size_bytes


@pytest.mark.parametrize("bad", ["", "GiB", "2 gigs", "-1GB", "1e3", "2GiB!", "1,5GB", "nan", "0x10"])
def test_text_that_is_not_a_size_is_refused_with_examples(bad):
    message = f'memory_limit={bad!r} is not a size; write it like "2GiB", "500MB" or 1048576'
    with refuses(ValueError, message):
        parse_bytes("memory_limit", bad)


@pytest.mark.parametrize("bad", [0, -1, "0", "0.0001 KB"])
def test_size_must_be_positive_and_the_error_shows_what_was_given(bad):
    with refuses(ValueError, f"memory_limit must be positive, not {bad!r}"):
        parse_bytes("memory_limit", bad)


@pytest.mark.parametrize("bad", [True, 1.5, None, b"2GiB", [1]])
def test_size_of_another_type_is_refused(bad):
    with refuses(TypeError, f'memory_limit must be bytes as an int, or text like "2GiB", not {bad!r}'):
        parse_bytes("memory_limit", bad)


@given(st.integers(1, 10**15), st.sampled_from(["", "b", "kB", "KiB", "M", "GiB", "tb"]))
def test_whole_numbers_of_a_unit_are_exact(count, unit):
    one = parse_bytes("x", f"1{unit}")
    assert parse_bytes("x", f"{count} {unit}") == count * one


# --- time limits --------------------------------------------------------------------------------


@pytest.mark.parametrize(("given_value", "seconds"), [(None, None), (1, 1.0), (0.001, 0.001), (LONGEST_S, LONGEST_S)])
def test_time_limit_is_seconds_or_none(given_value, seconds):
    limit = check_timeout("timeout", given_value)
    assert limit == seconds
    assert limit is None or type(limit) is float


@pytest.mark.parametrize("endless", [math.inf, LONGEST_S * 1.01, 10**400])
def test_time_limit_that_nobody_lives_to_see_is_none(endless):
    assert check_timeout("timeout", endless) is None


@pytest.mark.parametrize("bad", [0, 0.0, -1, math.nan, -math.inf])
def test_time_limit_must_be_above_zero(bad):
    with refuses(ValueError, f"timeout must be above 0 seconds, or None for no limit, not {bad!r}"):
        check_timeout("timeout", bad)


@pytest.mark.parametrize("bad", ["3", True, [1], 1j])
def test_time_limit_of_another_type_is_refused(bad):
    with refuses(TypeError, f"timeout must be seconds as a number, or None for no limit, not {bad!r}"):
        check_timeout("timeout", bad)


# --- counts -------------------------------------------------------------------------------------


@given(st.integers(), st.integers())
def test_count_is_returned_as_it_is_or_refused_but_never_clamped(value, least):
    if value >= least:
        assert check_count("workers", value, least=least) == value
    else:
        with refuses(ValueError, f"workers must be at least {least}, not {value}"):
            check_count("workers", value, least=least)


@pytest.mark.parametrize("bad", [True, 2.0, "2", None])
def test_count_must_be_an_int(bad):
    with refuses(TypeError, f"workers must be an int, not {bad!r}"):
        check_count("workers", bad, least=1)


# --- options of a task --------------------------------------------------------------------------


def test_options_left_alone_mean_no_limit_and_one_run():
    options = TaskOptions()
    assert (options.timeout, options.retries, options.retry_on, options.label) == (None, 0, None, None)


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"timeout": 0}, ValueError, "timeout must be above 0 seconds, or None for no limit, not 0"),
        ({"retries": -1}, ValueError, "retries must be at least 0, not -1"),
        ({"retries": 1.0}, TypeError, "retries must be an int, not 1.0"),
        ({"backoff_s": -0.1}, ValueError, "backoff_s must be 0 or more seconds, not -0.1"),
        ({"backoff_s": math.inf}, ValueError, "backoff_s must be 0 or more seconds, not inf"),
        ({"backoff_s": math.nan}, ValueError, "backoff_s must be 0 or more seconds, not nan"),
        ({"backoff_s": "1"}, TypeError, "backoff_s must be seconds as a number, not '1'"),
        ({"backoff_s": True}, TypeError, "backoff_s must be seconds as a number, not True"),
        ({"label": 3}, TypeError, "label must be text, not 3"),
        ({"retry_on": "ValueError"}, TypeError, "retry_on takes exception classes, not 'ValueError'"),
        ({"retry_on": 3}, TypeError, "retry_on takes exception classes, not 3"),
        ({"retry_on": int}, TypeError, "retry_on takes exception classes, not <class 'int'>"),
        ({"retry_on": (OSError, "x")}, TypeError, "retry_on takes exception classes, not 'x'"),
    ],
)
def test_bad_option_is_refused_at_once_and_wherever_it_is_given(changes, kind, message):
    with refuses(kind, message):
        TaskOptions(**changes)
    with refuses(kind, message):
        TaskOptions().using(**changes)


@pytest.mark.parametrize("several", [OSError, (OSError,), [OSError], {OSError}])
def test_exceptions_to_retry_on_may_be_one_or_several(several):
    assert TaskOptions(retry_on=several).retry_on == (OSError,)


def test_retrying_on_nothing_differs_from_the_default():
    assert TaskOptions(retry_on=()).retry_on == ()


def test_using_changes_a_copy():
    first = TaskOptions(retries=2)
    second = first.using(timeout=3)
    assert (first.timeout, second.timeout, second.retries) == (None, 3.0, 2)


def test_unknown_option_is_refused_with_the_known_ones():
    message = "no such option: priority, timout; the options are timeout, retries, retry_on, backoff_s, label"
    with refuses(TypeError, message):
        TaskOptions().using(timout=3, priority=1)


# --- options of a pool --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"workers": 0}, ValueError, "workers must be at least 1, not 0"),
        ({"workers": None}, TypeError, "workers must be an int, not None"),
        (
            {"start_method": "thread"},
            ValueError,
            "start_method must be one of 'forkserver', 'spawn', 'fork', not 'thread'",
        ),
        ({"start_method": None}, ValueError, "start_method must be one of 'forkserver', 'spawn', 'fork', not None"),
        ({"capture": "off"}, ValueError, "capture must be one of 'prefix', 'inherit', not 'off'"),
        ({"initializer": "setup"}, TypeError, "initializer must be callable, not 'setup'"),
        ({"max_tasks_per_worker": 0}, ValueError, "max_tasks_per_worker must be at least 1, not 0"),
    ],
)
def test_pool_refuses_a_bad_option(changes, kind, message):
    with refuses(kind, message):
        PoolOptions(**{"workers": 2} | changes)


@pytest.mark.parametrize(
    "options", [TaskOptions(timeout=3, retry_on=OSError), PoolOptions(workers=2)], ids=["task", "pool"]
)
def test_options_cannot_be_changed_and_cross_a_process(options):
    name = dataclasses.fields(options)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(options, name, 1)
    assert pickle.loads(pickle.dumps(options)) == options
