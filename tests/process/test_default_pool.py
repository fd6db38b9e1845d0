"""`shoal.map`, `shoal.imap` and `shoal.submit`: a pool that is there when it is needed and leaves with the program."""

from __future__ import annotations

import concurrent.futures
import itertools
import os

import pytest

import shoal
from tests.process import pool_tasks as t


@pytest.fixture(autouse=True)
def _a_default_pool_of_this_start_method(start_method, monkeypatch):
    """The default pool lives as long as the program; here it ends with each test, so that nothing is left of it."""
    from shoal._pool import default

    monkeypatch.setenv("SHOAL_START_METHOD", start_method)
    yield
    if default._pool is not None:
        default._pool.shutdown()
        default._pool = None


def test_map_returns_a_list_in_order():
    assert shoal.map(t.square, range(100)) == [n * n for n in range(100)]


def test_map_of_several_iterables_and_of_nothing():
    assert shoal.map(t.add, [1, 2], [10, 20, 30]) == [11, 22]
    assert shoal.map(t.square, []) == []


def test_imap_is_lazy():
    source = t.CountedSource()
    results = shoal.imap(t.square, source, buffersize=3)
    assert [next(results) for _ in range(5)] == [0, 1, 4, 9, 16]
    assert source.pulled <= 8
    results.close()


def test_imap_takes_an_endless_source():
    results = shoal.imap(t.square, itertools.count(), ordered=False)
    assert len(list(itertools.islice(results, 100))) == 100
    results.close()


def test_submit_returns_a_future():
    future = shoal.submit(t.echo, 1, key=2)
    assert isinstance(future, concurrent.futures.Future)
    assert future.result() == ((1,), {"key": 2})


def test_the_three_share_one_pool():
    one = set(shoal.map(t.pid, range(20)))
    two = {shoal.submit(t.pid).result() for _ in range(5)}
    assert len(one | two) <= shoal.cpu_count()


def test_map_raises_the_first_error_with_the_place_of_its_item():
    with pytest.raises(ValueError, match="bad 3") as caught:
        shoal.map(t.fail_on, range(10))
    assert any("task 3 of the map" in note for note in caught.value.__notes__)


def test_map_returns_or_skips_errors_as_asked():
    returned = shoal.map(t.fail_if_odd, range(4), errors="return")
    assert [str(value) for value in returned] == ["0", "odd 1", "2", "odd 3"]
    assert shoal.map(t.fail_if_odd, range(4), errors="skip") == [0, 2]


def test_imap_returns_or_skips_errors_as_asked():
    assert list(shoal.imap(t.fail_if_odd, range(4), errors="skip")) == [0, 2]
    assert len(list(shoal.imap(t.fail_if_odd, range(4), errors="return"))) == 4


def test_map_obeys_timeout_and_retries(tmp_path):
    outcome = shoal.map(t.hang_on_seven, range(5, 9), timeout=0.4, errors="return")
    assert [type(value).__name__ for value in outcome] == ["int", "int", "TaskTimeout", "int"]
    logs = [t.Log(str(tmp_path / f"log{n}")) for n in range(3)]
    assert shoal.map(t.die_times, logs, [0, 1, 2], retries=2) == [1, 2, 3]


def test_imap_obeys_timeout():
    outcome = list(shoal.imap(t.hang_on_seven, range(6, 9), timeout=0.4, errors="return"))
    assert [type(value).__name__ for value in outcome] == ["int", "TaskTimeout", "int"]


def test_map_with_a_number_of_workers_uses_that_many():
    pids = set(shoal.map(t.pid, range(50), workers=1))
    assert len(pids) == 1
    assert os.getpid() not in pids


def test_after_a_death_the_default_pool_goes_on():
    with pytest.raises(shoal.WorkerDied):
        shoal.map(t.die, [1])
    assert shoal.map(t.square, [3]) == [9]


def test_lambdas_will_do():
    assert shoal.map(lambda x: x + 1, [1, 2]) == [2, 3]


def test_cpu_count_is_what_this_process_may_use():
    assert 1 <= shoal.cpu_count() <= len(os.sched_getaffinity(0))


def test_a_program_that_uses_it_ends_by_itself_and_leaves_nothing(run_script, start_method):
    done = run_script(
        """
        import shoal

        def double(x):
            return 2 * x

        if __name__ == "__main__":
            print(shoal.map(double, range(3)))
            future = shoal.submit(print, "the last words of a worker")
        """,
        env={"SHOAL_START_METHOD": start_method},
    )
    assert done.returncode == 0
    assert "[0, 2, 4]" in done.stdout
    assert "the last words of a worker" in done.stdout
    assert done.stderr == ""


def test_work_queued_when_the_program_ends_is_finished_first(run_script, start_method, tmp_path):
    """As with `concurrent.futures`: what was submitted is done before the interpreter leaves."""
    done = run_script(
        f"""
        import pathlib, shoal, time

        def write(n):
            time.sleep(0.002)
            pathlib.Path({str(tmp_path)!r}, f"out{{n}}").touch()

        if __name__ == "__main__":
            for n in range(40):
                shoal.submit(write, n)
        """,
        env={"SHOAL_START_METHOD": start_method},
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert len(list(tmp_path.glob("out*"))) == 40


def test_a_forked_child_has_a_default_pool_of_its_own(run_script, start_method):
    done = run_script(
        """
        import os, shoal

        if __name__ == "__main__":
            print(shoal.map(abs, [-1]), flush=True)
            pid = os.fork()
            if pid == 0:
                print(shoal.map(abs, [-2]), flush=True)
                from shoal._pool import default
                default._pool.shutdown()
                os._exit(0)
            assert os.waitpid(pid, 0)[1] == 0
            print(shoal.map(abs, [-3]), flush=True)
        """,
        env={"SHOAL_START_METHOD": start_method},
    )
    assert (done.stdout, done.stderr) == ("[1]\n[2]\n[3]\n", "")


def test_an_unknown_start_method_in_the_environment_is_refused(monkeypatch):
    monkeypatch.setenv("SHOAL_START_METHOD", "thread")
    with pytest.raises(ValueError, match="SHOAL_START_METHOD must be one of"):
        shoal.Pool(1)
