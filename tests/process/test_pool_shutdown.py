"""`shutdown`, the context manager, and what happens to a pool nobody closes."""

from __future__ import annotations

import concurrent.futures
import gc
import threading
import time
import weakref

import pytest

import shoal
from tests.process import pool_tasks as t
from tests.support import HANG_LIMIT_S, eventually, is_alive

# --- shutdown -----------------------------------------------------------------------------------


def test_shutdown_waits_for_everything_that_was_asked_for(pool, log):
    futures = [pool.submit(t.log_and_return, log, n) for n in range(20)]
    results = pool.map(t.log_and_return, [log] * 20, range(20, 40))
    pool.shutdown()
    assert all(future.done() for future in futures)
    assert sorted(map(int, log.lines())) == list(range(40))
    assert list(results) == list(range(20, 40))


def test_shutdown_without_waiting_returns_at_once_and_finishes_the_work(pool, gate):
    future = pool.submit(gate.enter, "done")
    behind = pool.submit(t.square, 3)
    pool.shutdown(wait=False)
    assert not future.done()
    gate.open()
    assert future.result() == "done"
    assert behind.result() == 9


def test_no_worker_is_left_after_shutdown(pool):
    pids = set(pool.map(t.pid, range(50)))
    pool.shutdown()
    assert not any(is_alive(pid) for pid in pids)
    assert pool.workers == ()


def test_shutdown_can_cancel_what_has_not_started(pool_factory, gate, log):
    pool = pool_factory(1)
    running = pool.submit(gate.enter, "ran")
    gate.wait_until_entered()
    waiting = [pool.submit(log.add, n) for n in range(30)]
    pool.shutdown(wait=False, cancel_futures=True)
    assert all(future.cancelled() for future in waiting)
    gate.open()
    assert running.result() == "ran"
    pool.shutdown()
    assert log.lines() == []


def test_shutdown_that_cancels_tells_whoever_waits(pool_factory, gate):
    pool = pool_factory(1)
    pool.submit(gate.enter)
    gate.wait_until_entered()
    future = pool.submit(t.nothing)
    with concurrent.futures.ThreadPoolExecutor(2) as threads:
        one, two = threads.submit(future.exception), threads.submit(concurrent.futures.wait, [future])
        pool.shutdown(wait=False, cancel_futures=True)
        with pytest.raises(concurrent.futures.CancelledError):
            one.result(HANG_LIMIT_S)
        assert two.result(HANG_LIMIT_S).done == {future}
    gate.open()


def test_shutdown_that_cancels_ends_a_map_with_cancelled(pool_factory, gate):
    pool = pool_factory(1)
    pool.submit(gate.enter)
    gate.wait_until_entered()
    results = pool.map(t.square, range(10))
    pool.shutdown(wait=False, cancel_futures=True)
    with pytest.raises(concurrent.futures.CancelledError):
        list(results)
    gate.open()


def test_shutdown_twice_is_the_same_as_once(pool):
    pool.submit(t.square, 2).result()
    pool.shutdown()
    pool.shutdown()
    pool.shutdown(wait=False, cancel_futures=True)


def test_a_pool_that_was_never_used_closes(pool):
    pool.shutdown()
    assert repr(pool).endswith("closed>")


def test_shutdown_from_many_threads_at_once(pool):
    future = pool.submit(t.nap, 0.05, "done")
    threads = [threading.Thread(target=pool.shutdown) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(HANG_LIMIT_S)
        assert not thread.is_alive()
    assert future.result() == "done"


def test_shutdown_in_a_callback_lets_the_pool_end(pool):
    closed = threading.Event()

    def close(_):
        pool.shutdown()
        closed.set()

    pool.submit(t.square, 2).add_done_callback(close)
    assert closed.wait(HANG_LIMIT_S)
    with pytest.raises(shoal.PoolClosed):
        pool.submit(t.square, 2)


def test_kill_ends_running_tasks_at_once(pool, gate):
    running = [pool.submit(gate.enter) for _ in range(2)]
    waiting = [pool.submit(t.nothing) for _ in range(5)]
    gate.wait_until_entered()
    pool.kill()
    assert all(future.cancelled() for future in [*running, *waiting])
    assert pool.workers == ()


# --- after shutdown -----------------------------------------------------------------------------


@pytest.mark.parametrize("used", [True, False], ids=["used", "unused"])
def test_a_closed_pool_refuses_every_kind_of_work(pool, used):
    if used:
        pool.submit(t.square, 2).result()
    pool.shutdown()
    for attempt in (
        lambda: pool.submit(t.square, 2),
        lambda: pool.map(t.square, [1]),
        lambda: list(pool.imap(t.square, [1])),
        lambda: pool.starmap(t.square, [(1,)]),
        lambda: pool.using(timeout=1).submit(t.square, 2),
    ):
        with pytest.raises(RuntimeError, match="closed") as caught:
            attempt()
        assert isinstance(caught.value, shoal.PoolClosed)


def test_results_stay_available_after_shutdown(pool):
    future = pool.submit(t.square, 9)
    pool.shutdown()
    assert future.result() == 81
    assert future.result() == 81
    assert not future.cancel()


def test_shutdown_returns_after_the_callbacks_of_the_last_results(pool):
    calls = []
    for n in range(50):
        pool.submit(t.square, n).add_done_callback(lambda future: calls.append(future.result()))
    pool.shutdown()
    assert sorted(calls) == sorted(n * n for n in range(50))


def test_a_callback_is_called_before_much_later_results_are_seen(pool_factory):
    """Progress bars count so: when the last of many results is there, so are the callbacks of all but the latest."""
    pool = pool_factory(1)
    calls = []
    futures = [pool.submit(t.nap, 0.002, n) for n in range(50)]
    for future in futures:
        future.add_done_callback(calls.append)
    assert futures[-1].result() == 49
    assert len(calls) >= 45


# --- context manager ----------------------------------------------------------------------------


def test_the_context_manager_gives_the_pool_and_closes_it(pool):
    with pool as inside:
        assert inside is pool
        future = pool.submit(t.nap, 0.02, "done")
    assert future.done()
    with pytest.raises(shoal.PoolClosed):
        pool.submit(t.square, 2)


def test_an_exception_leaves_the_context_as_it_is_and_the_work_is_finished(pool):
    with pytest.raises(KeyError, match="mine"):
        with pool:
            future = pool.submit(t.square, 5)
            raise KeyError("mine")
    assert future.result() == 25


def test_ctrl_c_in_the_context_does_not_wait_for_tasks(pool, gate):
    with pytest.raises(KeyboardInterrupt):
        with pool:
            future = pool.submit(gate.enter)
            gate.wait_until_entered()
            raise KeyboardInterrupt
    assert future.cancelled()


def test_a_view_as_context_manager_closes_the_pool(pool):
    with pool.using(timeout=30) as view:
        assert view.submit(t.square, 2).result() == 4
    with pytest.raises(shoal.PoolClosed):
        pool.submit(t.square, 2)


# --- nobody closes it ---------------------------------------------------------------------------


def test_a_dropped_pool_finishes_its_work_and_goes_away(start_method):
    pool = shoal.Pool(2, start_method=start_method)
    future = pool.submit(t.nap, 0.05, "done")
    gone = weakref.ref(pool)
    del pool
    gc.collect()
    assert gone() is None
    assert future.result() == "done"
    # What it leaves behind is looked for by the leak audit of this very test.


def test_a_dropped_pool_nobody_used_goes_away(start_method):
    shoal.Pool(2, start_method=start_method)
    gc.collect()


def test_a_dropped_idle_pool_ends_its_workers(start_method):
    pool = shoal.Pool(2, start_method=start_method)
    pids = set(pool.map(t.pid, range(20)))
    del pool
    gc.collect()
    eventually(lambda: not any(is_alive(pid) for pid in pids), what="the workers to end")


def test_fifty_pools_one_after_the_other(start_method):
    for n in range(50 if start_method == "fork" else 10):
        with shoal.Pool(1, start_method=start_method, spare=False) as pool:
            assert pool.submit(t.square, n).result() == n * n


def test_two_pools_at_once_do_not_disturb_each_other(pool_factory, gate):
    one, two = pool_factory(1), pool_factory(1)
    blocked = one.submit(gate.enter)
    gate.wait_until_entered()
    assert list(two.map(t.square, range(10))) == [n * n for n in range(10)]
    two.shutdown()
    assert not blocked.done()
    gate.open()
    blocked.result()


def test_closing_an_idle_pool_is_quick(pool):
    list(pool.map(t.square, range(10)))
    began = time.monotonic()
    pool.shutdown()
    assert time.monotonic() - began < 1


def test_what_a_worker_inherited_for_the_end_does_not_run_and_what_it_registers_does(run_script, start_method):
    """Else the first worker to end would remove the program's temporary folders."""
    done = run_script(
        """
        import atexit, os, sys, tempfile
        import shoal

        def work():
            atexit.register(print, "the worker ends", flush=True)
            global kept
            kept = tempfile.TemporaryDirectory()
            return kept.name

        if __name__ == "__main__":
            folder = tempfile.TemporaryDirectory()
            atexit.register(print, "the program ends", flush=True)
            with shoal.Pool(1, start_method=sys.argv[1], spare=False, capture="inherit") as pool:
                theirs = pool.submit(work).result()
            print(os.path.exists(folder.name), os.path.exists(theirs), flush=True)
        """,
        start_method,
    )
    assert done.stdout.splitlines() == ["the worker ends", "True False", "the program ends"]


class Held:
    """An argument of which a weak reference may be made."""

    def nap(self):
        time.sleep(HANG_LIMIT_S)


def test_a_closed_pool_keeps_nothing_of_a_task_that_was_cancelled_while_it_ran(pool):
    held = Held()
    alive = weakref.ref(held)
    future = pool.submit(Held.nap, held)
    eventually(future.running, what="the task to run")
    assert future.cancel()
    pool.shutdown()
    del held, future
    gc.collect()
    assert alive() is None
