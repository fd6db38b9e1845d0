"""Large data through the life and death of tasks, workers and pools: values stay, memory returns."""

from __future__ import annotations

import gc
import os
import threading
import time

import numpy as np
import pytest

import shoal
from tests.process import data_tasks as tasks
from tests.support import eventually

#: Workers of "spawn" come slowly; they have their turn in `test_data`.
pytestmark = pytest.mark.start_methods("forkserver", "fork")

LARGE = 3_000_000
SIZES = [100_000, LARGE]


def all_returns(pool):
    eventually(lambda: pool._engine.depot.used_bytes == 0, what="every block to come back", limit_s=10)


# --- results ------------------------------------------------------------------------------------


def test_results_keep_their_value_while_later_tasks_use_memory_again(pool):
    held = {n: pool.submit(tasks.filled, n, SIZES[n % 2]).result() for n in range(40)}
    for n in range(0, 40, 3):
        del held[n]
    for _ in range(3):
        for value in pool.imap(tasks.identity, [tasks.filled(200, LARGE)] * 10):
            assert tasks.seen(value) == 200
    held |= {n: pool.submit(tasks.filled, n, LARGE).result() for n in range(0, 40, 3)}
    assert {n: tasks.seen(value) for n, value in held.items()} == {n: n for n in range(40)}


def test_views_outlive_their_array_their_pool_and_its_workers(pool_factory):
    pool = pool_factory(1)
    part = pool.submit(tasks.filled, 7, LARGE).result()[1000:2000]
    boxed = list(pool.map(tasks.identity, [tasks.filled(n, LARGE) for n in range(3)]))
    pool.shutdown()
    gc.collect()
    assert part.tolist() == [7] * 1000
    part[:] = 8
    assert part.tolist() == [8] * 1000
    assert [tasks.seen(value) for value in boxed] == [0, 1, 2]


def test_a_result_is_the_callers_own_though_the_task_keeps_it_and_changes_it(pool_factory):
    pool = pool_factory(1)
    for nbytes in SIZES:
        result = pool.submit(tasks.make_and_keep, 1, nbytes).result()
        assert pool.submit(tasks.change_what_is_kept, 2).result() == 2
        assert tasks.seen(result) == 1
        result[...] = 3
        assert pool.submit(tasks.change_what_is_kept, 4).result() == 4
        assert tasks.seen(result) == 3


def test_an_argument_that_a_task_stashes_stays_as_it_was(pool_factory):
    pool = pool_factory(1)
    for n in range(6):
        assert pool.submit(tasks.stash, tasks.filled(n, SIZES[n % 2])).result() == n + 1
        assert list(pool.map(tasks.seen, [tasks.filled(100 + n, LARGE) for n in range(5)])) == [*range(100, 105)]
    assert pool.submit(tasks.stashed).result() == [0, 1, 2, 3, 4, 5]
    assert pool._engine.depot.used_bytes > 0
    pool.submit(tasks.drop_stash).result()
    all_returns(pool)


def test_arrays_go_through_chains_of_tasks_and_pools(pool_factory):
    one, other = pool_factory(2), pool_factory(1)
    value = np.zeros(LARGE, np.uint8)
    for step in range(10):
        value = (one, other)[step % 2].submit(tasks.add_one, value).result()
    assert tasks.seen(value) == 10
    values = [tasks.filled(n, LARGE) for n in range(5)]
    for pool in (one, other, one):
        values = list(pool.map(tasks.add_one, values))
    assert [tasks.seen(value) for value in values] == [3, 4, 5, 6, 7]
    all_returns(one)
    all_returns(other)


def test_a_task_may_have_a_pool_of_its_own(pool_factory):
    pool = pool_factory(1)
    assert tasks.seen(pool.submit(tasks.own_pool, tasks.filled(4, LARGE)).result()) == 5


def test_thousands_of_results_may_be_held_at_once(pool_factory):
    pool = pool_factory(2)
    before = len(os.listdir("/proc/self/fd"))
    held = list(pool.starmap(tasks.filled, [(n % 251, 300_000) for n in range(2_000)]))
    assert len(os.listdir("/proc/self/fd")) < before + 100
    assert all(value[0] == value[-1] == n % 251 for n, value in enumerate(held))
    del held
    assert tasks.seen(pool.submit(tasks.filled, 9, LARGE).result()) == 9


def test_threads_may_submit_and_drop_large_data_at_once(pool):
    wrong = []

    def work(fill):
        for step in range(12):
            mine = tasks.filled(fill, SIZES[step % 2])
            futures = [pool.submit(tasks.add_one, mine) for _ in range(3)]
            mine[...] = 99
            wrong.extend(1 for future in futures if tasks.seen(future.result()) != fill + 1)

    threads = [threading.Thread(target=work, args=(fill,)) for fill in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    all_returns(pool)


# --- deaths and limits --------------------------------------------------------------------------


def test_a_task_runs_again_with_the_argument_as_it_was(pool_factory, tmp_path):
    """The worker had written to it and was killed."""
    pool = pool_factory(2, retries=1, backoff_s=0.0)
    mine = [tasks.filled(n, SIZES[n % 2]) for n in range(4)]
    futures = [pool.submit(tasks.die_first, str(tmp_path / str(n)), mine[n]) for n in range(4)]
    for value in mine:
        value[...] = 77
    assert [future.result() for future in futures] == [0, 1, 2, 3]
    mine = [(str(tmp_path / f"map{n}"), tasks.filled(n, LARGE)) for n in range(4)]
    assert pool.starmap(tasks.die_first, mine) == [0, 1, 2, 3]
    assert pool.statistics().workers_lost == 8
    all_returns(pool)


def test_results_of_a_worker_that_is_dead_stay(pool_factory, tmp_path):
    pool = pool_factory(1, retries=1, backoff_s=0.0)
    results = [pool.submit(tasks.filled, n, LARGE).result() for n in range(5)]
    pool.submit(tasks.die_first, str(tmp_path / "died"), tasks.filled(1, LARGE)).result()
    later = [pool.submit(tasks.filled, 100 + n, LARGE).result() for n in range(5)]
    assert [tasks.seen(value) for value in results] == [0, 1, 2, 3, 4]
    assert [tasks.seen(value) for value in later] == [100, 101, 102, 103, 104]


def test_each_worker_may_have_one_task_only(pool_factory):
    pool = pool_factory(2, max_tasks_per_worker=1)
    got = list(pool.map(tasks.add_one, [tasks.filled(n, LARGE) for n in range(6)]))
    assert [tasks.seen(value) for value in got] == [1, 2, 3, 4, 5, 6]
    all_returns(pool)


def test_cancelled_tasks_give_their_memory_back(pool):
    futures = [pool.submit(tasks.nap_and_see, 30 if n < 4 else 0, tasks.filled(n, LARGE)) for n in range(12)]
    for future in futures[:4]:
        assert future.cancel()
    assert [future.result() for future in futures[4:]] == [*range(4, 12)]
    del futures
    all_returns(pool)


def test_tasks_that_time_out_give_their_memory_back(pool):
    slow = [pool.using(timeout=0.1).submit(tasks.nap_and_see, 30, tasks.filled(n, LARGE)) for n in range(2)]
    fine = [pool.submit(tasks.seen, tasks.filled(n, LARGE)) for n in range(4)]
    assert [type(future.exception()) for future in slow] == [shoal.TaskTimeout] * 2
    assert [future.result() for future in fine] == [0, 1, 2, 3]
    all_returns(pool)


def test_an_abandoned_map_gives_its_memory_back(pool):
    stream = pool.imap(tasks.identity, (tasks.filled(n % 250, LARGE) for n in range(1_000)))
    assert [tasks.seen(next(stream)) for _ in range(3)] == [0, 1, 2]
    stream.close()
    del stream
    all_returns(pool)
    assert tasks.seen(pool.submit(tasks.filled, 3, LARGE).result()) == 3


def test_failed_tasks_give_their_memory_back(pool):
    for future in [pool.submit(tasks.fail_with, tasks.filled(n, LARGE)) for n in range(4)]:
        assert future.exception() is not None
    del future
    all_returns(pool)


# --- closed pools and forks ---------------------------------------------------------------------


def memory_files():
    names = []
    for name in os.listdir("/proc/self/fd"):
        try:
            names.append(os.readlink(f"/proc/self/fd/{name}"))
        except OSError:
            pass
    return sum("memfd:shoal" in name for name in names)


def test_a_closed_pool_refuses_large_data_and_keeps_none(pool_factory):
    before = memory_files()
    pool = pool_factory(1)
    assert pool.submit(abs, -1).result() == 1
    pool.shutdown()
    with pytest.raises(shoal.PoolClosed):
        pool.submit(tasks.seen, tasks.filled(1, LARGE))
    with pytest.raises(shoal.PoolClosed):
        list(pool.map(tasks.seen, [tasks.filled(1, LARGE)]))
    assert memory_files() == before


def child_status(body):
    """Run `body` in a fork of this process; return how that ended."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            body()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_a_forked_child_can_use_results_and_is_refused_the_pool(pool):
    result = pool.submit(tasks.identity, tasks.filled(5, LARGE)).result()

    def child():
        for nbytes in SIZES:
            with pytest.raises(shoal.PoolClosed):
                pool.submit(tasks.seen, tasks.filled(1, nbytes))
        fresh = [tasks.filled(6, LARGE) for _ in range(4)]  # where the parent's memory was, perhaps
        pool._engine.depot._arena = None
        gc.collect()
        assert tasks.seen(result) == 5
        assert [tasks.seen(value) for value in fresh] == [6] * 4

    assert child_status(child) == 0
    assert tasks.seen(pool.submit(tasks.identity, result).result()) == 5


def test_a_forked_child_sees_neither_later_results_nor_do_others_see_what_it_writes(pool_factory, tmp_path):
    pool = pool_factory(1)
    held = [pool.submit(tasks.filled, 5, LARGE).result()]
    gone = tmp_path / "gone"
    pid = os.fork()
    if pid == 0:
        while not gone.exists():
            time.sleep(0.001)
        right = tasks.seen(held[0]) == 5
        held[0][...] = 6
        os._exit(0 if right else 1)
    held.clear()
    later = [tasks.seen(pool.submit(tasks.filled, n, LARGE).result()) for n in range(10)]
    last = pool.submit(tasks.filled, 99, LARGE).result()
    gone.touch()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert (later, tasks.seen(last)) == ([*range(10)], 99)


def test_a_child_that_a_task_leaves_behind_keeps_its_argument(pool_factory, tmp_path):
    pool = pool_factory(1)
    path = str(tmp_path / "look")
    assert pool.submit(tasks.forked_child_sees, tasks.filled(5, LARGE), path).result() == 5
    assert list(pool.map(tasks.seen, [tasks.filled(n, LARGE) for n in range(10)])) == [*range(10)]
    open(path, "w", encoding="ascii").close()
    eventually(lambda: os.path.exists(f"{path}.seen"), what="the child to look")
    with open(f"{path}.seen", encoding="ascii") as file:
        assert file.read() == "5"


INTERRUPTED = """
import random, signal, sys
import numpy as np
import shoal
from tests.process import data_tasks as tasks

def interrupt(*_):
    if armed:
        raise KeyboardInterrupt

if __name__ == "__main__":
    chance, cut, armed = random.Random(1), 0, False
    signal.signal(signal.SIGALRM, interrupt)
    with shoal.Pool(1, start_method=sys.argv[1], retries=100) as pool:
        pool.submit(abs, -1).result()
        for n in range(25):
            mine = tasks.filled(n, 30_000_000)
            after_s = chance.uniform(0.0005, 0.03)  # while it is pickled, copied, sent, or just after
            try:
                armed = True
                signal.setitimer(signal.ITIMER_REAL, after_s)
                future = pool.submit(lambda: tasks.seen(mine))
                assert future.result() == n
                armed = False
            except KeyboardInterrupt:
                cut += 1
            later = [pool.submit(tasks.seen, tasks.filled(100 + n, 3_000_000)) for _ in range(3)]
            assert [one.result(timeout=20) for one in later] == [100 + n] * 3
    assert cut > 5
    print("right")
"""


def test_a_ctrl_c_while_large_data_is_handed_over_neither_hangs_the_pool_nor_mixes_data_up(run_script, start_method):
    done = run_script(INTERRUPTED, start_method)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["right"], done.stdout + done.stderr


def test_work_that_cannot_be_sent_fails_with_the_reason_and_the_pool_goes_on(pool_factory, monkeypatch):
    """As when the program's memory is used up in that moment."""
    pool = pool_factory(1)
    assert pool.submit(abs, -1).result() == 1
    values = [tasks.filled(n, LARGE) for n in range(4)]
    with monkeypatch.context() as patch:
        patch.setattr("shoal._memory.arena.Arena.store", no_memory)
        with pytest.raises(MemoryError):
            list(pool.map(tasks.seen, values, timeout=20))
    assert list(pool.map(tasks.seen, values, timeout=20)) == [0, 1, 2, 3]
    all_returns(pool)


def no_memory(*_):
    raise MemoryError
