"""Which functions can be sent, that they are fresh, and that each is sent to a worker once."""

from __future__ import annotations

import functools
import gc
import operator
import os
import textwrap
import weakref

import pytest

import shoal
from tests.process import pool_tasks as t
from tests.support import eventually

# --- kinds --------------------------------------------------------------------------------------


class Scaler:
    def __init__(self, factor):
        self.factor = factor

    def scale(self, x):
        return self.factor * x

    def __call__(self, x):
        return self.factor + x

    @classmethod
    def twice(cls, x):
        return cls(2).scale(x)

    @staticmethod
    def half(x):
        return x // 2

    class Inner:
        @staticmethod
        def deep(x):
            return -x


def outer(factor):
    def inner(x):
        return factor * x

    return inner


def functions():
    local = 3
    recursive = lambda n: 1 if n < 2 else n * recursive(n - 1)
    return {
        "function": (t.square, 25),
        "builtin": (abs, 5),
        "c function": (operator.neg, -5),
        "type": (str, "5"),
        "lambda": (lambda x: x + 1, 6),
        "lambda with capture": (lambda x: x + local, 8),
        "lambda with default": (lambda x, y=10: x + y, 15),
        "recursive lambda": (recursive, 120),
        "closure": (outer(4), 20),
        "nested closure": (lambda x: outer(2)(outer(3)(x)), 30),
        "bound method": (Scaler(7).scale, 35),
        "class method": (Scaler.twice, 10),
        "static method": (Scaler.half, 2),
        "static method of an inner class": (Scaler.Inner.deep, -5),
        "callable instance": (Scaler(100), 105),
        "partial": (functools.partial(t.add, 1), 6),
        "partial of a lambda": (functools.partial(lambda x, y: x * y, 3), 15),
        "partial of a bound method": (functools.partial(Scaler(2).scale), 10),
        "bound method of a builtin": ([9, 8, 7, 6, 5, 4].index, 4),
        "cached function": (cached, 25),
        "wrapped function": (wrapped, 6),
    }


def plus_one(fn):
    @functools.wraps(fn)
    def wrapper(x):
        return fn(x) + 1

    return wrapper


@plus_one
def wrapped(x):
    return x


@functools.lru_cache
def cached(x):
    return x * x


@pytest.mark.parametrize("kind", functions())
def test_every_kind_of_function_runs_by_submit_map_and_imap(pool, kind):
    fn, expected = functions()[kind]
    assert pool.submit(fn, 5).result() == expected
    assert list(pool.map(fn, [5, 5])) == [expected, expected]
    assert list(pool.imap(fn, [5])) == [expected]


def test_a_class_defined_in_a_function_travels_both_ways(pool):
    class Local:
        def __init__(self, value):
            self.value = value

        def __eq__(self, other):
            return self.value == other.value

        __hash__ = None

    assert pool.submit(lambda one: Local(one.value + 1), Local(1)).result() == Local(2)


def test_a_function_may_be_an_argument_or_a_result(pool):
    assert pool.submit(lambda fn: fn(4), lambda x: x * 2).result() == 8
    assert pool.submit(outer, 3).result()(5) == 15


def test_a_generator_function_fails_with_its_name_and_not_in_silence(pool):
    def generate():
        yield 1

    with pytest.raises(shoal.NotPicklable, match="the result of .*generate"):
        pool.submit(generate).result()


def test_a_function_that_holds_what_cannot_travel_is_refused_with_its_place(pool, tmp_path):
    with open(tmp_path / "file", "w") as handle:
        with pytest.raises(shoal.NotPicklable, match="captured 'handle'") as caught:
            pool.submit(lambda: handle.name)
    assert "TextIOWrapper" in caught.value.culprit


# --- freshness ----------------------------------------------------------------------------------


def test_a_closures_captured_value_is_that_of_the_moment_it_is_submitted(pool):
    value = 1

    def read():
        return value

    first = pool.submit(read)
    value = 2
    second = pool.submit(read)
    assert (first.result(), second.result()) == (1, 2)


def test_a_bound_methods_object_is_that_of_the_moment_it_is_submitted(pool):
    scaler = Scaler(1)
    first = pool.submit(scaler.scale, 10)
    scaler.factor = 2
    second = pool.submit(scaler.scale, 10)
    assert (first.result(), second.result()) == (10, 20)


def test_a_partials_arguments_are_those_of_the_moment_it_is_submitted(pool):
    numbers = [1]
    fn = functools.partial(t.add, numbers)
    first = pool.submit(fn, [0])
    numbers.append(2)
    second = pool.submit(fn, [0])
    assert (first.result(), second.result()) == ([1, 0], [1, 2, 0])


def test_a_mutable_default_is_that_of_the_moment_it_is_submitted(pool):
    def fn(seen=[]):  # noqa: B006
        return list(seen)

    assert pool.submit(fn).result() == []
    fn.__defaults__[0].append(1)
    assert pool.submit(fn).result() == [1]


def test_a_local_function_redefined_under_its_name_is_the_new_one(pool):
    def fn():
        return "old"

    old = pool.submit(fn)

    def fn():
        return "new"

    assert (old.result(), pool.submit(fn).result()) == ("old", "new")


SCRIPT_WITH_GLOBALS = """
    import shoal

    FACTOR = 1
    scale = lambda x: FACTOR * x

    if __name__ == "__main__":
        with shoal.Pool(1, start_method={method!r}) as pool:
            print(pool.submit(scale, 10).result())
            FACTOR = 2
            print(pool.submit(scale, 10).result())
            FACTOR = 3
            print(list(pool.map(scale, [10])))
"""


def test_the_globals_of_a_lambda_in_main_are_those_of_the_moment(run_script, start_method):
    """What cannot be named is sent by value, with the globals it uses, each time they have changed."""
    done = run_script(SCRIPT_WITH_GLOBALS.format(method=start_method))
    assert (done.stdout.split("\n")[:3], done.stderr) == (["10", "20", "[30]"], "")


# --- once per worker ----------------------------------------------------------------------------


class CountsLoads:
    """A callable that writes a line whenever it is unpickled."""

    def __init__(self, log):
        self.log = log

    def __reduce__(self):
        return load_counted, (self.log,)

    def __call__(self, x):
        return x * x


def load_counted(log):
    log.add(os.getpid())
    return CountsLoads(log)


def test_a_function_is_loaded_once_in_each_worker(pool, log):
    fn = CountsLoads(log)
    assert [future.result() for future in [pool.submit(fn, n) for n in range(200)]] == [n * n for n in range(200)]
    assert list(pool.map(fn, range(500))) == [n * n for n in range(500)]
    assert len(log.lines()) == len(set(log.lines())) <= 2


def test_a_replaced_worker_is_sent_its_functions_again(pool_factory):
    pool = pool_factory(1)
    fn = outer(3)
    assert pool.submit(fn, 2).result() == 6
    with pytest.raises(shoal.WorkerDied):
        pool.submit(t.die).result()
    assert pool.submit(fn, 3).result() == 9


def test_a_thousand_different_functions_all_run(pool):
    """More than are remembered: those forgotten are sent again, and none is mixed up."""
    fns = [outer(n) for n in range(1000)]
    assert [future.result() for future in [pool.submit(fn, 2) for fn in fns]] == [2 * n for n in range(1000)]
    assert [pool.submit(fn, 3).result() for fn in fns[:300]] == [3 * n for n in range(300)]


def test_maps_of_a_thousand_functions_under_way_at_once(pool):
    maps = [pool.map(outer(n), range(3)) for n in range(600)]
    assert [list(one) for one in maps] == [[0, n, 2 * n] for n in range(600)]


# --- large captures -----------------------------------------------------------------------------


def test_a_large_captured_value_travels_whole(pool):
    data = os.urandom(3_000_000)
    assert pool.submit(lambda: data).result() == data
    assert list(pool.map(lambda n: data[n], [0, 1_500_000, 2_999_999])) == [data[0], data[1_500_000], data[-1]]


def test_a_large_captured_array_travels_whole(pool):
    numpy = pytest.importorskip("numpy")
    table = numpy.arange(500_000.0)
    assert list(pool.map(lambda n: table[n], [0, 499_999])) == [0.0, 499_999.0]
    assert float(pool.submit(lambda: table.sum() + 0.0).result()) == float(table.sum())


def test_several_large_captured_arrays_keep_their_places(pool):
    numpy = pytest.importorskip("numpy")
    ones, twos = numpy.ones(100_000), numpy.full(200_000, 2.0)
    fn = lambda n: (float(ones.sum()), float(twos.sum()), n)
    for n in range(5):
        assert pool.submit(fn, n).result() == (100_000.0, 400_000.0, n)
    assert list(pool.map(fn, range(20))) == [(100_000.0, 400_000.0, n) for n in range(20)]


def test_the_pool_lets_go_of_the_object_of_a_bound_method(pool):
    scaler = Scaler(3)
    seen = weakref.ref(scaler)
    future = pool.submit(scaler.scale, 2)
    assert future.result() == 6
    del scaler, future
    eventually(lambda: gc.collect() is not None and seen() is None, what="the object to be let go", limit_s=5)


@pytest.mark.start_methods("forkserver", "fork")
def test_closures_over_large_data_do_not_pile_up(pool_factory):
    """Fifty functions that each hold five megabytes: neither this process nor the worker keeps them all."""
    pool = pool_factory(1)
    theirs = pool.submit(t.memory_kb).result()
    before, most = t.memory_kb(), 0
    for n in range(50):
        data = bytes([n]) * 5_000_000
        assert pool.submit(lambda data=data: len(data)).result() == 5_000_000
        most = max(most, t.memory_kb())
    assert most - before < 150_000
    assert pool.submit(t.memory_kb).result() - theirs < 150_000


# --- where the program's own functions come from ------------------------------------------------

PROGRAM = """
    import shoal

    OFFSET = 100

    def above(x):
        return OFFSET + x

    class Thing:
        def __init__(self, value):
            self.value = value
        def method(self, x):
            return self.value + x

    if __name__ == "__main__":
        def under_the_guard(x):
            return above(x) + 1
        class Guarded:
            value = 5
        with shoal.Pool(2, start_method={method!r}) as pool:
            print(pool.submit(above, 1).result())
            print(list(pool.map(under_the_guard, range(3))))
            print(pool.submit(Thing(10).method, 1).result())
            print(pool.submit(lambda thing: thing.value, Thing(7)).result())
            print(pool.submit(Thing, 8).result().value)
            print(pool.submit(lambda: Guarded.value).result())
"""
PROGRAM_PRINTS = ["101", "[101, 102, 103]", "11", "7", "8", "5"]


def test_functions_and_classes_of_a_script(run_script, start_method):
    done = run_script(PROGRAM.format(method=start_method))
    assert (done.stdout.split("\n")[:-1], done.stderr) == (PROGRAM_PRINTS, "")


def test_functions_of_a_module_run_with_dash_m(tmp_path, start_method):
    _package(tmp_path, "apackage/tool.py", PROGRAM.format(method=start_method))
    done = _python(tmp_path, "-m", "apackage.tool")
    assert (done.stdout.split("\n")[:-1], done.stderr) == (PROGRAM_PRINTS, "")


def test_functions_of_a_package_run_with_dash_m(tmp_path, start_method):
    """`__main__.py` of a package cannot be imported by name; what it defines goes by value."""
    _package(tmp_path, "apackage/__main__.py", PROGRAM.format(method=start_method))
    done = _python(tmp_path, "-m", "apackage")
    assert (done.stdout.split("\n")[:-1], done.stderr) == (PROGRAM_PRINTS, "")


def test_functions_of_a_directory_run_as_a_program(tmp_path, start_method):
    _package(tmp_path, "adirectory/__main__.py", PROGRAM.format(method=start_method))
    done = _python(tmp_path, "adirectory")
    assert (done.stdout.split("\n")[:-1], done.stderr) == (PROGRAM_PRINTS, "")


def test_functions_given_with_dash_c(tmp_path, start_method):
    done = _python(tmp_path, "-c", textwrap.dedent(PROGRAM.format(method=start_method)))
    assert (done.stdout.split("\n")[:-1], done.stderr) == (PROGRAM_PRINTS, "")


def test_functions_of_a_script_on_standard_input(tmp_path, start_method):
    done = _python(tmp_path, "-", stdin=textwrap.dedent(PROGRAM.format(method=start_method)))
    assert (done.stdout.split("\n")[:-1], done.stderr) == (PROGRAM_PRINTS, "")


def test_functions_typed_at_the_prompt(tmp_path, start_method):
    """No guard is needed there, and none is there; each statement is compiled for itself."""
    typed = textwrap.dedent(f"""
        import shoal
        pool = shoal.Pool(2, start_method={start_method!r})
        FACTOR = 2
        def double(x):
            return FACTOR * x

        print("first", list(pool.map(double, [1, 2])))
        class Thing:
            value = 6

        print("second", pool.submit(lambda one: one.value, Thing()).result())
        FACTOR = 3
        print("third", pool.submit(double, 5).result())
        pool.shutdown()
    """)
    done = _python(tmp_path, "-i", "-q", stdin=typed)
    printed = [line for line in done.stdout.split("\n") if line]
    assert printed == ["first [2, 4]", "second 6", "third 15"], done.stderr


def test_functions_of_a_notebook(run_script, start_method):
    """IPython runs cells by `exec` in a `__main__` of its own making that has no file."""
    done = run_script(f"""
        import sys, types

        if __name__ == "__main__":
            notebook = types.ModuleType("__main__")
            sys.modules["__main__"] = notebook
            cells = [
                "import shoal",
                "pool = shoal.Pool(2, start_method={start_method!r})",
                "def cube(x):\\n    return x ** 3",
                "class Thing:\\n    def __init__(self, value):\\n        self.value = value",
                "print(list(pool.map(cube, range(4))))",
                "print(pool.submit(lambda one: Thing(one.value + 1), Thing(1)).result().value)",
                "def cube(x):\\n    return 'redefined'",
                "print(pool.submit(cube, 2).result())",
                "pool.shutdown()",
            ]
            for number, cell in enumerate(cells):
                exec(compile(cell, f"<cell {{number}}>", "exec"), notebook.__dict__)
    """)
    assert (done.stdout.split("\n")[:-1], done.stderr) == (["[0, 1, 8, 27]", "2", "redefined"], "")


@pytest.mark.start_methods("forkserver", "spawn")
def test_an_argument_whose_class_stands_under_the_guard_is_one_clear_error(run_script, start_method):
    done = run_script(f"""
        import shoal

        if __name__ == "__main__":
            class Guarded:
                pass
            with shoal.Pool(1, start_method={start_method!r}) as pool:
                try:
                    pool.submit(repr, Guarded()).result()
                except AttributeError as error:
                    print(error)
                print(pool.submit(abs, -3).result())
    """)
    assert "Guarded" in done.stdout
    assert done.stdout.endswith("\n3\n")
    assert done.stderr == ""


def test_a_module_imported_by_the_script_from_beside_it(run_script, tmp_path, start_method):
    (tmp_path / "helper_beside.py").write_text("def triple(x):\n    return 3 * x\n")
    done = run_script(f"""
        import helper_beside, shoal

        if __name__ == "__main__":
            with shoal.Pool(1, start_method={start_method!r}) as pool:
                print(pool.submit(helper_beside.triple, 3).result())
    """)
    assert (done.stdout, done.stderr) == ("9\n", "")


def _package(folder, path, source):
    file = folder / path
    file.parent.mkdir(exist_ok=True)
    if file.name != "__main__.py":
        (file.parent / "__init__.py").touch()
    file.write_text(textwrap.dedent(source))


def _python(folder, *arguments, stdin=""):
    import subprocess
    import sys

    from tests.support import HANG_LIMIT_S, program_environment

    command = [sys.executable, *arguments]
    return subprocess.run(
        command,
        input=stdin,
        capture_output=True,
        text=True,
        cwd=folder,
        env=program_environment(),
        timeout=HANG_LIMIT_S,
    )


def test_a_class_of_the_script_comes_back_from_a_program_that_imported_nothing_else(run_script, start_method):
    done = run_script(
        f"""
        import sys
        import shoal

        class Thing:
            value = 8

        if __name__ == "__main__":
            with shoal.Pool(1, start_method={start_method!r}) as pool:
                print(pool.submit(Thing).result().value, "multiprocessing" in sys.modules)
        """
    )
    assert (done.stdout, done.stderr) == ("8 False\n", "")
