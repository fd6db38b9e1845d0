"""Errors on their way home: readable, complete, and never more than the one task."""

from __future__ import annotations

import pickle
import re
import sys
import threading
import traceback

import pytest

import shoal
from tests.process import pool_tasks as t

# --- what is raised arrives -----------------------------------------------------------------------


class Custom(Exception):
    def __init__(self, code, text="custom"):
        super().__init__(text)
        self.code = code

    def __reduce__(self):
        return Custom, (self.code, str(self))


class CannotRebuild(Exception):
    """The usual mistake: more arguments than `args` remembers."""

    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")


class HoldsALock(Exception):
    def __init__(self, text):
        super().__init__(text)
        self.lock = threading.Lock()


class NoText(Exception):
    def __str__(self):
        raise RuntimeError("no text for you")


class FailsToPickle(Exception):
    def __reduce__(self):
        raise RuntimeError("not today")


class RebuiltAsSomethingElse(Exception):
    def __reduce__(self):
        return str, ("not an exception",)


class ExitsWhenRebuilt(Exception):
    def __reduce__(self):
        return sys.exit, (7,)


def raise_(kind, *args):
    raise kind(*args)


def raise_chain():
    try:
        t.fail("the first")
    except ValueError as error:
        raise KeyError("the second") from error


def raise_with_notes():
    error = ValueError("noted")
    error.add_note("mind the gap")
    raise error


def raise_group():
    raise ExceptionGroup("both", [ValueError("one"), ExceptionGroup("inner", [KeyError("two")])])


def deep_call(depth):
    return deep_call(depth - 1) if depth else t.fail("at the bottom")


def test_the_remote_traceback_is_the_cause_and_names_the_line(pool):
    error = pool.submit(t.fail, "told you").exception()
    assert isinstance(error.__cause__, shoal.RemoteTraceback)
    text = str(error.__cause__)
    assert 'pool_tasks.py", line' in text
    assert "in fail" in text
    assert "raise ValueError(message)" in text
    assert text.rstrip('"\n').endswith("ValueError: told you")


def test_an_uncaught_error_prints_both_tracebacks_readably(run_script, start_method):
    done = run_script(f"""
        import shoal

        def inner(x):
            return 1 / x

        def outer(x):
            return inner(x)

        if __name__ == "__main__":
            with shoal.Pool(1, start_method={start_method!r}) as pool:
                pool.submit(outer, 0).result()
    """)
    assert done.returncode == 1
    printed = done.stderr
    assert printed.count("ZeroDivisionError: division by zero") == 2
    assert "The above exception was the direct cause of the following exception:" in printed
    remote, _, local = printed.partition("The above exception was the direct cause")
    assert "return 1 / x" in remote
    assert "return inner(x)" in remote
    assert "pool.submit(outer, 0).result()" in local
    assert "_worker" not in remote  # the worker's own frames tell nothing


def test_attributes_of_an_exception_travel(pool):
    error = pool.submit(raise_, Custom, 42, "with code").exception()
    assert type(error) is Custom
    assert (error.code, str(error)) == (42, "with code")


def test_notes_of_an_exception_travel(pool):
    assert pool.submit(raise_with_notes).exception().__notes__ == ["mind the gap"]


def test_a_chain_of_exceptions_is_told_in_the_remote_traceback(pool):
    error = pool.submit(raise_chain).exception()
    assert isinstance(error, KeyError)
    assert "ValueError: the first" in str(error.__cause__)
    assert "direct cause" in str(error.__cause__)


def test_an_exception_group_travels_whole(pool):
    error = pool.submit(raise_group).exception()
    assert isinstance(error, ExceptionGroup)
    assert isinstance(error.exceptions[1].exceptions[0], KeyError)


@pytest.mark.parametrize(
    ("kind", "args"),
    [
        (OSError, (2, "No such file", "a.txt")),
        (UnicodeDecodeError, ("utf-8", b"\xff", 0, 1, "bad")),
        (StopIteration, ("value",)),
        (MemoryError, ()),
        (RecursionError, ("deep",)),
        (AssertionError, ("assert",)),
        (TimeoutError, ("a timeout of its own",)),
        (shoal.PoolClosed, ()),
        (SyntaxError, ("bad", ("file.py", 1, 2, "text"))),
    ],
    ids=lambda value: getattr(value, "__name__", None) or "",
)
def test_exceptions_of_the_language_arrive_as_themselves(pool, kind, args):
    if kind is shoal.PoolClosed:
        error = pool.submit(_raise_pool_closed).exception()
        assert error.reason == "another pool"
    else:
        error = pool.submit(raise_, kind, *args).exception()
        assert error.args == kind(*args).args
        assert str(error) == str(kind(*args))
    assert type(error) is (type(kind(*args)) if args else kind)  # an OSError chooses its own subclass


def _raise_pool_closed():
    raise shoal.PoolClosed(reason="another pool")


def test_a_stop_iteration_from_a_task_does_not_end_a_map_early(pool):
    """Inside a generator it would turn into RuntimeError; either way it must not look like the end."""
    outcome = list(pool.imap(_stop_on_two, range(5), errors="return"))
    assert len(outcome) == 5
    assert isinstance(outcome[2], StopIteration)
    with pytest.raises((StopIteration, RuntimeError)) as caught:
        pool.starmap(_stop_on_two, [(n,) for n in range(5)])
    assert "StopIteration" in repr(caught.value) or "StopIteration" in str(caught.value)


def _stop_on_two(n):
    if n == 2:
        raise StopIteration
    return n


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, GeneratorExit])
def test_a_wish_to_end_the_process_never_ends_ours(pool, kind):
    error = pool.submit(raise_, kind, "out").exception()
    assert isinstance(error, shoal.RemoteError)
    assert error.type_name == kind.__name__
    assert error.message == "out"
    assert "tried to end its process" in error.why
    assert pool.submit(t.square, 3).result() == 9
    assert pool.statistics().workers_lost == 0


def test_sys_exit_in_an_item_of_a_map_fails_that_item(pool):
    outcome = list(pool.imap(t.leave, range(4), errors="return"))
    assert [one.type_name for one in outcome] == ["SystemExit"] * 4


# --- what cannot travel ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "args", "said"),
    [
        (CannotRebuild, ("one", "two"), "one and two"),
        (HoldsALock, ("locked",), "locked"),
        (FailsToPickle, ("never",), "never"),
        (RebuiltAsSomethingElse, ("else",), "else"),
        (ExitsWhenRebuilt, ("exit",), "exit"),
        (NoText, (), ""),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_an_exception_that_cannot_travel_is_told_as_text(pool, kind, args, said):
    error = pool.submit(raise_, kind, *args).exception()
    if isinstance(error, kind):  # it can, after all
        return
    assert isinstance(error, shoal.RemoteError)
    assert kind.__name__ in error.type_name
    assert said in error.message
    assert "in raise_" in error.traceback_text
    assert pool.submit(t.square, 3).result() == 9
    assert pool.statistics().workers_lost == 0


@pytest.mark.parametrize("value", ["lock", "generator", "module state", "nested"])
def test_a_result_that_cannot_travel_is_one_clear_error(pool, value):
    error = pool.submit(make_unpicklable, value).exception()
    assert isinstance(error, shoal.NotPicklable)
    assert "the result of make_unpicklable" in str(error)
    if value == "nested":
        assert error.path == "['deep'][1]"
        assert "lock" in error.culprit
    assert pool.submit(t.square, 3).result() == 9


def make_unpicklable(value):
    return {
        "lock": threading.Lock,
        "generator": lambda: (n for n in range(3)),
        "module state": sys._getframe,
        "nested": lambda: {"fine": 1, "deep": [0, threading.Lock()]},
    }[value]()


def test_an_argument_that_cannot_travel_is_refused_on_the_submitting_line(pool):
    with pytest.raises(shoal.NotPicklable, match="argument 0 of square") as caught:
        pool.submit(t.square, {"a": [1, threading.Lock()]})
    assert "['a'][1]" in caught.value.path
    assert isinstance(caught.value, pickle.PicklingError)
    assert pool.submit(t.square, 3).result() == 9
    assert pool.statistics().submitted == 1


class ExplodesWhenLoaded:
    def __reduce__(self):
        return raise_, (RuntimeError, "boom")


def test_an_argument_that_explodes_in_the_worker_fails_its_task(pool):
    error = pool.submit(t.identity, ExplodesWhenLoaded()).exception()
    assert isinstance(error, RuntimeError)
    assert str(error) == "boom"
    assert pool.submit(t.square, 3).result() == 9


def test_an_item_that_explodes_in_the_worker_fails_alone(pool):
    outcome = list(pool.imap(t.identity, [1, ExplodesWhenLoaded(), 3], errors="return"))
    assert (outcome[0], outcome[2]) == (1, 3)
    assert isinstance(outcome[1], RuntimeError)


@pytest.mark.parametrize("error", [RuntimeError, SystemExit, KeyboardInterrupt], ids=lambda kind: kind.__name__)
def test_a_result_that_explodes_at_home_is_one_clear_error(pool, error):
    failure = pool.submit(return_bomb, error).exception()
    assert isinstance(failure, shoal.RemoteError)
    assert "the result of" in failure.why
    assert "cannot be rebuilt in this process" in failure.why
    assert failure.type_name == error.__name__
    assert pool.submit(t.square, 3).result() == 9


class Bomb:
    def __init__(self, error):
        self.error = error

    def __reduce__(self):
        return raise_, (self.error, "boom")


def return_bomb(error, *_rest):
    return Bomb(error)


def test_a_result_of_a_map_that_explodes_at_home_fails_alone(pool):
    outcome = list(pool.imap(_bomb_on_two, range(5), errors="return"))
    assert [value for n, value in enumerate(outcome) if n != 2] == [0, 1, 3, 4]
    assert isinstance(outcome[2], shoal.RemoteError)
    assert pool.statistics().failed == 1


def _bomb_on_two(n):
    return Bomb(RuntimeError) if n == 2 else n


def test_a_function_that_explodes_when_loaded_fails_its_tasks_and_no_others(pool):
    fn = ExplodingFunction()
    assert isinstance(pool.submit(fn).exception(), RuntimeError)
    outcome = list(pool.imap(fn, range(4), errors="return"))
    assert [type(one) for one in outcome] == [RuntimeError] * 4
    assert pool.submit(t.square, 3).result() == 9


class ExplodingFunction:
    def __call__(self, *_args):
        return 1

    def __reduce__(self):
        return raise_, (RuntimeError, "boom")


# --- deep and large -------------------------------------------------------------------------------


def nested(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


def test_a_result_nested_too_deeply_is_one_clear_error(pool):
    error = pool.submit(nested, 100_000).exception()
    assert isinstance(error, shoal.NotPicklable)
    assert "nested too deeply" in str(error)
    assert pool.submit(t.square, 3).result() == 9


def test_an_argument_nested_too_deeply_is_refused_on_the_submitting_line(pool):
    value = nested(100_000)
    with pytest.raises(shoal.NotPicklable, match="nested too deeply"):
        pool.submit(t.identity, value)
    while value:  # taken apart by hand: dropping it whole would recurse as deeply
        value = value[0]


def test_recursion_without_end_in_a_task_is_its_own_error(pool):
    error = pool.submit(deep_call, 10**9).exception()
    assert isinstance(error, RecursionError)
    assert pool.submit(t.square, 3).result() == 9


def test_a_deep_traceback_arrives_and_is_not_endless(pool):
    error = pool.submit(deep_call, 400).exception()
    assert isinstance(error, ValueError)
    assert "at the bottom" in str(error)
    assert len(str(error.__cause__)) < 200_000


def test_an_exception_with_an_endless_message_arrives(pool):
    error = pool.submit(raise_, ValueError, "x" * 5_000_000).exception()
    assert isinstance(error, ValueError)


@pytest.mark.stress  # eight gigabytes are touched on its way
@pytest.mark.start_methods("forkserver")
@pytest.mark.hang_limit(180)
def test_a_result_of_more_than_two_gigabytes_arrives(pool_factory):
    pool = pool_factory(1)
    result = pool.submit(bytes, (1 << 31) + 5).result()
    assert len(result) == (1 << 31) + 5
    del result
    assert pool.submit(t.square, 3).result() == 9


# --- text of errors -------------------------------------------------------------------------------


class ReprUsesThePool:
    pool = None

    def __repr__(self):
        pool = type(self).pool
        return f"<{pool.statistics().submitted if pool is not None else 'no pool'}>"

    def __reduce__(self):
        return ReprUsesThePool, ()


@pytest.fixture
def known_pool(pool):
    ReprUsesThePool.pool = pool
    yield pool
    ReprUsesThePool.pool = None


def test_an_argument_whose_repr_uses_the_pool_does_not_stop_it(known_pool):
    error = known_pool.submit(t.die, ReprUsesThePool()).exception()
    assert isinstance(error, shoal.WorkerDied)
    assert re.search(r"die\(<\d+>\)", str(error))


def test_an_argument_whose_repr_uses_the_pool_can_be_shown_among_the_workers(known_pool, gate):
    future = known_pool.submit(gate.enter, ReprUsesThePool())
    gate.wait_until_entered()
    tasks = [worker.task for worker in known_pool.workers]
    assert any(task and task.startswith("Gate.enter(<") for task in tasks)
    gate.open()
    future.result()


class NoRepr:
    def __repr__(self):
        raise RuntimeError("no repr for you")


def test_an_argument_without_a_repr_does_not_spoil_the_error(pool):
    error = pool.submit(t.die, NoRepr()).exception()
    assert isinstance(error, shoal.WorkerDied)
    assert "NoRepr whose repr() raised" in str(error)


def test_long_arguments_are_cut_in_errors(pool):
    error = pool.submit(t.die, "x" * 10_000, list(range(10_000)), a=b"y" * 10_000).exception()
    assert len(error.args[0].splitlines()[0]) < 300


def test_every_error_of_the_pool_survives_pickle(pool):
    died = pool.submit(t.die).exception()
    late = pool.using(timeout=0.3).submit(t.hang).exception()
    exited = pool.submit(t.leave, 3).exception()
    for error in (died, late, exited):
        again = pickle.loads(pickle.dumps(error))
        assert type(again) is type(error)
        assert str(again) == str(error)


def test_the_same_error_can_be_raised_again_and_again(pool):
    future = pool.submit(t.fail, "again")
    for _ in range(3):
        with pytest.raises(ValueError, match="again"):
            future.result()
    assert len("".join(traceback.format_exception(future.exception()))) < 10_000


# --- deaths ---------------------------------------------------------------------------------------


def test_a_death_is_told_with_signal_task_and_stack(pool):
    with pytest.raises(shoal.WorkerDied) as caught:
        pool.submit(t.die, "a.png").result()
    told = caught.value.obituary
    assert (told.signal, told.exit_code, told.task) == ("SIGKILL", None, "die('a.png')")
    assert told.pid > 0
    assert (told.attempt, told.attempts) == (1, 1)
    assert told.peak_memory_bytes > 1_000_000
    assert "was killed by SIGKILL while running die('a.png'), attempt 1 of 1" in str(caught.value)


def test_an_exit_is_told_with_its_code(pool):
    with pytest.raises(shoal.WorkerDied, match="exited with code 17 while running") as caught:
        pool.submit(_exit_at_once, 17).result()
    assert (caught.value.obituary.exit_code, caught.value.obituary.signal) == (17, None)


def _exit_at_once(code):
    import os

    os._exit(code)


def test_a_crash_in_native_code_shows_the_python_line_it_came_from(pool):
    with pytest.raises(shoal.WorkerDied, match="SIGSEGV") as caught:
        pool.submit(_crash).result()
    assert "in _crash" in caught.value.obituary.python_stack


def _crash():
    import ctypes

    ctypes.string_at(0)
