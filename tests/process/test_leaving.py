"""Pools come and go, in every way a program can leave them: nothing stays behind, nothing that was asked for is lost.

Role: opening, closing, collecting, forking and ending around pools, with real processes. Owner: pytest.
The leak audit of `tests/conftest.py` judges each test once more.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
import warnings
import weakref

import pytest

import shoal
from shoal._pool import launcher
from shoal.errors import PoolClosed, WorkerDied
from tests import support
from tests.crash import tasks
from tests.support import eventually, is_alive

#: Pools opened and closed one after the other; a spawned worker takes a hundred milliseconds, hence fewer.
POOLS = {"forkserver": 200, "fork": 200, "spawn": 10}


def own_workers():
    """Everything below us but the templates."""
    return [one for one in support.tree_of(os.getpid()) if one.pid not in launcher.template_pids()]


# --- opened and closed --------------------------------------------------------------------------


def test_many_pools_leave_nothing(start_method):
    with shoal.Pool(1, start_method=start_method) as pool:
        assert pool.submit(tasks.twice, 1).result() == 2
    before = support.Footprint.take()
    for number in range(POOLS[start_method]):
        with shoal.Pool(1, start_method=start_method, spare=number % 2 == 0) as pool:
            assert pool.submit(tasks.twice, number).result() == 2 * number
    # At once, not after a while. Named segments are left to the audit: other programs of the machine make them too.
    left = [line for line in support.Footprint.take().beyond(before) if not line.startswith("shared memory: ")]
    assert not left


def test_a_pool_that_was_never_used_starts_nothing(start_method):
    before = support.Footprint.take()
    shoal.Pool(4, start_method=start_method).shutdown()
    with shoal.Pool(4, start_method=start_method):
        pass
    shoal.Pool(4, start_method=start_method)
    assert not support.Footprint.take().beyond(before)


def test_closing_finishes_what_was_asked_for(start_method):
    with shoal.Pool(2, start_method=start_method) as pool:
        futures = [pool.submit(tasks.twice, number) for number in range(200)]
    assert all(future.done() for future in futures)
    assert [future.result() for future in futures] == [2 * number for number in range(200)]


def test_closing_without_waiting_still_finishes_the_work(pool_factory):
    pool = pool_factory(1)
    futures = [pool.submit(tasks.sleep, 0.01) for _ in range(5)]
    pool.shutdown(wait=False)
    pool.shutdown(wait=False)
    assert [future.result() for future in futures] == [0.01] * 5
    with pytest.raises(PoolClosed):
        pool.submit(tasks.echo, 1)
    pool.shutdown()


def test_closing_can_cancel_what_has_not_started(pool_factory, tmp_path):
    pool = pool_factory(1)
    running = pool.submit(tasks.wait_for_file, str(tmp_path / "end"))
    eventually(running.running, what="the first task to run")
    waiting = [pool.submit(tasks.echo, number) for number in range(5)]
    pool.shutdown(wait=False, cancel_futures=True)
    assert all(future.cancelled() for future in waiting)
    (tmp_path / "end").touch()
    assert running.result() == "waited"
    pool.shutdown()


def test_a_worker_that_does_not_leave_is_killed(pool_factory):
    pool = pool_factory(1)
    pool.submit(tasks.die_when_leaving, "SIGKILL").result()
    pool.shutdown()
    assert not own_workers()


# --- collected ----------------------------------------------------------------------------------


def test_a_pool_nobody_refers_to_is_put_away(start_method):
    pool = shoal.Pool(2, start_method=start_method)
    assert list(pool.map(tasks.twice, range(10))) == [2 * number for number in range(10)]
    alive = weakref.ref(pool)
    del pool
    gc.collect()
    assert alive() is None
    eventually(lambda: not own_workers(), what="the workers to leave")


def test_a_pool_in_a_cycle_is_put_away(start_method):
    pool = shoal.Pool(1, start_method=start_method)
    pool.itself = pool
    pool.submit(tasks.twice, 1).result()
    del pool
    gc.collect()
    eventually(lambda: not own_workers(), what="the workers to leave")


def test_a_future_outlives_its_pool(start_method, tmp_path):
    future = shoal.Pool(1, start_method=start_method).submit(tasks.wait_for_file, str(tmp_path / "end"))
    gc.collect()
    (tmp_path / "end").touch()
    assert future.result() == "waited"
    eventually(lambda: not own_workers(), what="the workers to leave")


def test_dropping_a_half_used_map_stops_what_it_runs(pool_factory):
    pool = pool_factory(2)
    results = pool.imap(tasks.sleep, iter([0, 1000, 1000, 1000]))
    assert next(results) == 0
    del results
    gc.collect()
    assert pool.submit(tasks.twice, 1).result() == 2
    eventually(lambda: pool.statistics().running == 0, what="the long tasks to be stopped")


# --- the program ends ---------------------------------------------------------------------------

WRITES = """
import os, sys, time
import shoal

def write(folder, number):
    time.sleep(0.01)
    open(os.path.join(folder, str(number)), "w").close()
    return number

def wait_long():
    time.sleep(1000)

if __name__ == "__main__":
    folder, method, way = sys.argv[1:]
    os.environ["SHOAL_START_METHOD"] = method
    pool = shoal.Pool(2)
    if way == "default pool":
        futures = [shoal.submit(write, folder, number) for number in range(20)]
    elif way == "with":
        with pool:
            for number in range(20):
                pool.submit(write, folder, number)
    elif way == "map":
        pool.map(write, [folder] * 20, range(20))
    elif way == "raise in with":
        with pool:
            for number in range(20):
                pool.submit(write, folder, number)
            raise ValueError("on purpose")
    else:
        for number in range(20):
            pool.submit(write, folder, number)
    if way == "raise":
        raise ValueError("on purpose")
    if way == "sys.exit":
        sys.exit(3)
    if way == "collected":
        del pool
    if way == "os._exit":
        pool.submit(wait_long)
        os._exit(4)
"""


@pytest.mark.parametrize("way", ["submit", "default pool", "with", "collected", "raise", "raise in with", "sys.exit"])
def test_work_that_was_queued_is_finished_at_exit(run_script, tmp_path, start_method, way):
    folder = tmp_path / "out"
    folder.mkdir()
    done = run_script(WRITES, folder, start_method, way)
    assert len(list(folder.iterdir())) == 20
    if way.startswith("raise"):
        assert done.returncode == 1
        assert done.stderr.count("Traceback") == 1
        assert done.stderr.rstrip().endswith("ValueError: on purpose")
    else:
        assert done.returncode == (3 if way == "sys.exit" else 0)
        assert not done.stderr


def test_os_exit_leaves_nobody(run_script, tmp_path, start_method):
    done = run_script(WRITES, tmp_path, start_method, "os._exit")
    assert done.returncode == 4
    assert not done.stderr


# --- the program forks --------------------------------------------------------------------------

FORKS = """
import gc, os, sys, time, traceback
import shoal

def twice(number):
    return 2 * number

def slowly(number):
    time.sleep(0.2)
    return number

def in_child(pool, future, way):
    if way == "uses it":
        for use in (lambda: pool.submit(twice, 1), lambda: list(pool.map(twice, [1])), future.result):
            try:
                use()
            except shoal.PoolClosed as error:
                assert "fork" in str(error), error
            else:
                raise AssertionError("the child used its parent's pool")
    elif way == "closes it":
        pool.shutdown()
        pool.shutdown(wait=False, cancel_futures=True)
        future.cancel()
    elif way == "drops it":
        del pool, future
        gc.collect()
    elif way == "opens its own":
        with shoal.Pool(2) as mine:
            assert list(mine.map(twice, range(50))) == [2 * number for number in range(50)]
        assert shoal.map(twice, [1, 2]) == [2, 4]
    elif way == "lives on":
        time.sleep(0.4)

def main():
    method, way = sys.argv[1:]
    os.environ["SHOAL_START_METHOD"] = method
    assert shoal.map(twice, [1]) == [2]
    pool = shoal.Pool(2)
    assert pool.submit(twice, 1).result() == 2
    future = pool.submit(slowly, 7)
    queued = [pool.submit(twice, number) for number in range(50)]
    child = os.fork()
    if child == 0:
        try:
            in_child(pool, future, way)
            del pool, future, queued
        except BaseException:
            traceback.print_exc()
            os._exit(9)
        sys.exit(5)  # through the child's own exit handlers
    assert future.result() == 7
    assert [one.result() for one in queued] == [2 * number for number in range(50)]
    assert list(pool.map(twice, range(100))) == [2 * number for number in range(100)]
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 5, status
    assert pool.submit(twice, 4).result() == 8
    pool.shutdown()
    print("well")

if __name__ == "__main__":
    main()
"""


@pytest.mark.parametrize("way", ["uses it", "closes it", "drops it", "opens its own", "lives on", "ends at once"])
def test_a_forked_child_neither_uses_nor_breaks_its_parents_pool(run_script, start_method, way):
    done = run_script(FORKS, start_method, way)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "well\n"
    assert not done.stderr


FORKS_WHILE_BUSY = """
import os, sys, threading
import shoal

def twice(number):
    return 2 * number

if __name__ == "__main__":
    pool = shoal.Pool(2, start_method=sys.argv[1])
    pool.submit(twice, 1).result()
    over = threading.Event()
    wrong = []
    def work():
        while not over.is_set():
            if list(pool.map(twice, range(200))) != [2 * number for number in range(200)]:
                wrong.append("result")
            pool.submit(twice, 1).result()
    threads = [threading.Thread(target=work, daemon=True) for _ in range(2)]
    for thread in threads:
        thread.start()
    for _ in range(40):
        child = os.fork()
        if child == 0:
            try:
                pool.submit(twice, 1)
            except shoal.PoolClosed:
                os._exit(5)
            os._exit(9)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 5, status
    over.set()
    for thread in threads:
        thread.join()
    assert not wrong
    pool.shutdown()
    print("well")
"""


def test_forks_at_any_moment_of_the_traffic_do_no_harm(run_script, start_method):
    """A fork may come while another thread holds any lock of the pool."""
    done = run_script(FORKS_WHILE_BUSY, start_method)
    assert (done.returncode, done.stdout) == (0, "well\n"), done.stderr


REAPS = """
import os, signal, sys
import shoal

def twice(number):
    return 2 * number

def die(_):
    os.kill(os.getpid(), signal.SIGKILL)

def reap_all(*_):
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass

if __name__ == "__main__":
    method, way = sys.argv[1:]
    if way == "ignores":
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    else:
        signal.signal(signal.SIGCHLD, reap_all)
    with shoal.Pool(2, start_method=method) as pool:
        for _ in range(3):
            error = pool.submit(die, 1).exception()
            assert isinstance(error, shoal.WorkerDied), error
            assert pool.submit(twice, 2).result() == 4
    print("well")
"""


@pytest.mark.parametrize("way", ["ignores", "reaps"])
def test_a_program_that_reaps_every_child_does_no_harm(run_script, start_method, way):
    """Then nobody can tell how a worker ended, but that it did."""
    done = run_script(REAPS, start_method, way)
    assert (done.returncode, done.stdout) == (0, "well\n"), done.stderr


# --- threads and nests --------------------------------------------------------------------------


def test_pools_live_in_threads(start_method):
    """They start, fork and close descriptors side by side."""
    rounds = 1 if start_method == "spawn" else 6
    results, problems = [], []
    quiet = list(warnings.filters)

    def work(number):
        try:
            with shoal.Pool(1, start_method=start_method) as pool:
                results.append(list(pool.map(tasks.twice, range(number, number + 20))))
        except BaseException as problem:
            problems.append(problem)

    for _ in range(rounds):
        threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not problems
    assert sorted(results) == [
        [2 * n for n in range(number, number + 20)] for number in range(6) for _ in range(rounds)
    ]
    assert list(warnings.filters) == quiet


def test_what_a_closed_pool_leaves_is_collected_without_a_line_of_python(start_method):
    """Python swallows a Ctrl-C that strikes in a callback of the collector, which may come at any allocation."""
    ran = []

    def note(frame, event, _):
        if event == "call":
            ran.append(f"{frame.f_code.co_filename}:{frame.f_lineno}")

    gc.collect()
    gc.disable()
    others = gc.callbacks[:]
    gc.callbacks.clear()  # hypothesis has one
    try:
        for _ in range(2):
            with shoal.Pool(2, start_method=start_method) as pool:
                list(pool.map(bytes, [100_000] * 4))
                pool.submit(abs, 1).result()
                list(pool.imap(abs, range(10)))
        sys.setprofile(note)
        collected = gc.collect()
        sys.setprofile(None)
    finally:
        gc.callbacks[:] = others
        gc.enable()
    assert collected > 100  # else this test would see nothing
    assert not ran


def test_one_pool_serves_many_threads(pool):
    wrong = []

    def work(number):
        if [pool.submit(tasks.twice, number).result() for _ in range(50)] != [2 * number] * 50:
            wrong.append(number)
        if list(pool.map(tasks.twice, range(50))) != [2 * one for one in range(50)]:
            wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def nest(start_method, depth):
    if depth == 0:
        return [os.getpid()]
    with shoal.Pool(1, start_method=start_method) as pool:
        return [os.getpid(), *pool.submit(nest, start_method, depth - 1).result()]


def test_pools_work_inside_tasks(pool, start_method):
    pids = pool.submit(nest, start_method, 2).result()
    assert len(set(pids)) == 3
    assert not any(is_alive(pid) for pid in pids[1:])


def map_in_task(count):
    return sum(shoal.map(tasks.twice, range(count)))


def test_the_default_pool_works_inside_tasks(pool):
    assert list(pool.map(map_in_task, [10, 20])) == [90, 380]


def nest_and_wait(start_method, path):
    with shoal.Pool(2, start_method=start_method) as pool:
        pids = sorted(set(pool.map(tasks.pid_of_worker, range(20))))
        with open(f"{path}.new", "w") as file:
            file.write(" ".join(map(str, [os.getpid(), *pids])))
        os.rename(f"{path}.new", path)
        pool.submit(tasks.sleep, 1000).result()


@pytest.mark.parametrize("inner", support.START_METHODS)
def test_a_killed_worker_takes_the_workers_of_its_own_pools_along(pool, inner, tmp_path):
    path = tmp_path / "pids"
    future = pool.submit(nest_and_wait, inner, str(path))
    eventually(path.exists, what="the nested pool to work")
    outer, *nested = map(int, path.read_text().split())
    assert nested
    os.kill(outer, signal.SIGKILL)
    assert isinstance(future.exception(), WorkerDied)
    eventually(lambda: not any(map(is_alive, nested)), what=f"{nested} to go", limit_s=2.0)
    assert pool.submit(tasks.twice, 1).result() == 2


def test_a_cancelled_task_takes_the_workers_of_its_own_pools_along(pool, start_method, tmp_path):
    path = tmp_path / "pids"
    future = pool.submit(nest_and_wait, start_method, str(path))
    eventually(path.exists, what="the nested pool to work")
    pids = list(map(int, path.read_text().split()))
    assert future.cancel()
    eventually(lambda: not any(map(is_alive, pids)), what=f"{pids} to go", limit_s=2.0)
    assert pool.submit(tasks.twice, 1).result() == 2


# --- the template -------------------------------------------------------------------------------


@pytest.mark.start_methods("forkserver", "spawn")
def test_tasks_go_on_and_workers_can_start_after_the_template_was_killed(pool_factory, start_method, tmp_path):
    pool = pool_factory(2)
    end = str(tmp_path / "end")
    running = [pool.submit(tasks.wait_for_file, end) for _ in range(2)]
    eventually(lambda: all(one.running() for one in running), what="both tasks to run")
    busy = {one.pid for one in pool.workers if one.state == "busy"}

    kill_templates()

    queued = [pool.submit(tasks.echo, number) for number in range(10)]
    with pool_factory(1) as other:
        assert other.submit(tasks.twice, 1).result() == 2
    assert all(map(is_alive, busy))
    (tmp_path / "end").touch()
    assert [one.result() for one in running] == ["waited"] * 2
    assert [one.result() for one in queued] == list(range(10))
    for pid in busy:  # its parent is gone: the death must be noticed all the same
        os.kill(pid, signal.SIGKILL)
    assert [pool.submit(tasks.twice, number).result() for number in range(5)] == [0, 2, 4, 6, 8]


def kill_templates():
    pids = launcher.template_pids()
    assert pids
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    eventually(lambda: not any(map(is_alive, pids)), what="the templates to die")


@pytest.mark.start_methods("forkserver", "spawn")
def test_a_template_killed_between_two_pools_is_replaced(pool_factory):
    assert pool_factory(1).submit(tasks.twice, 1).result() == 2
    kill_templates()
    assert pool_factory(1).submit(tasks.twice, 2).result() == 4


@pytest.mark.start_methods("forkserver", "spawn")
def test_a_worker_that_dies_after_its_template_is_reported(pool_factory, tmp_path):
    """How it ended cannot be learned any more; that it ended, and which task that cost, can."""
    pool = pool_factory(1)
    running = pool.submit(tasks.tell_and_sleep, str(tmp_path / "pid"), 1000)
    eventually((tmp_path / "pid").exists, what="the task to run")
    kill_templates()
    os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)
    assert isinstance(running.exception(), WorkerDied)
    assert pool.submit(tasks.twice, 1).result() == 2


# --- no descriptors left ------------------------------------------------------------------------

STARVED = """
import os, resource, sys
import shoal

def starve():
    "Leave one descriptor."
    held = []
    try:
        while True:
            held.append(os.open("/dev/null", os.O_RDONLY))
    except OSError:
        os.close(held.pop())
    return held

if __name__ == "__main__":
    method = sys.argv[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (100, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    with shoal.Pool(1, start_method=method, spare=False) as pool:
        pool.submit(abs, -1).result()
        pool.submit(os._exit, 1).exception()  # now nobody is there to do the work,
        held = starve()  # and there are no descriptors to start anybody with
        errors = [one.exception(timeout=20) for one in [pool.submit(abs, -n) for n in range(20)]]
        for error in errors:
            assert isinstance(error, shoal.StartFailed), error
            assert "too many open files" in str(error), error
            assert "hint: " in str(error) and "ulimit" in str(error), error
        for fd in held:
            os.close(fd)
        assert [pool.submit(abs, -n).result() for n in range(20)] == list(range(20))
    print("well")
"""


def test_a_pool_without_descriptors_says_so_and_recovers(run_script, start_method):
    done = run_script(STARVED, start_method)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "well\n"
    assert not done.stderr


ENGINE_STARVED = """
import os, resource, sys
import shoal

if __name__ == "__main__":
    method = sys.argv[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (60, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    warm = shoal.Pool(1, start_method=method)
    assert warm.submit(abs, -1).result() == 1
    for leave in range(40):
        held = []
        try:
            while True:
                held.append(os.open("/dev/null", os.O_RDONLY))
        except OSError:
            for _ in range(min(leave, len(held))):
                os.close(held.pop())
        pool = None
        try:
            pool = shoal.Pool(1, start_method=method, spare=False)
            value = pool.submit(abs, -leave).result(timeout=20)
            assert value == leave
            outcome = "value"
        except shoal.StartFailed as error:
            assert "hint: " in str(error), error
            outcome = "failed"
        except OSError as error:
            outcome = f"OSError {error}"
        finally:
            for fd in held:
                os.close(fd)
        if pool is not None:
            assert pool.submit(abs, -5).result(timeout=20) == 5
            pool.shutdown()
        print(leave, outcome)
    warm.shutdown()
    assert shoal.Pool(1, start_method=method).submit(abs, -1).result() == 1
    print("well")
"""


def test_a_pool_opened_with_any_number_of_descriptors_left_works_or_says_why(run_script, start_method):
    """However few are left, the answer is a value or StartFailed, and the same pool works when there are more."""
    done = run_script(ENGINE_STARVED, start_method)
    assert done.returncode == 0, done.stdout + done.stderr
    *lines, last = done.stdout.splitlines()
    assert last == "well"
    assert not [line for line in lines if line.split()[1] not in {"value", "failed"}]
    assert lines[0].endswith("failed")
    assert lines[-1].endswith("value")
    assert not done.stderr
