"""The pool under other libraries: asyncio, wrappers of executors, tqdm, dask, managers, many threads, pools in pools."""

from __future__ import annotations

import asyncio
import concurrent.futures
import multiprocessing
import os
import re
import threading
import time

import pytest

import shoal
from tests.process import pool_tasks as t
from tests.support import HANG_LIMIT_S, eventually

# --- asyncio ------------------------------------------------------------------------------------


def test_run_in_executor_awaits_a_task(pool):
    async def main():
        return await asyncio.get_running_loop().run_in_executor(pool, t.square, 7)

    assert asyncio.run(main()) == 49


def test_wrap_future_awaits_a_future_of_the_pool(pool):
    async def main():
        return await asyncio.wrap_future(pool.submit(t.square, 7))

    assert asyncio.run(main()) == 49


def test_the_pool_can_be_the_loops_default_executor_of_calls(pool):
    async def main():
        loop = asyncio.get_running_loop()
        return await asyncio.gather(*(loop.run_in_executor(pool, t.square, n) for n in range(200)))

    assert asyncio.run(main()) == [n * n for n in range(200)]


def test_the_event_loop_goes_on_while_tasks_run(pool, gate):
    """The task ends only when a coroutine has opened the gate, so waiting for it must not block the loop."""

    async def main():
        loop = asyncio.get_running_loop()
        future = loop.run_in_executor(pool, gate.enter, "done")
        ticks = 0
        while not gate.is_entered():
            await asyncio.sleep(0.001)
            ticks += 1
        gate.open()
        return await future, ticks

    result, ticks = asyncio.run(main())
    assert result == "done"
    assert ticks > 0


def test_an_exception_arrives_in_the_coroutine(pool):
    async def main():
        with pytest.raises(ValueError, match="told you"):
            await asyncio.get_running_loop().run_in_executor(pool, t.fail, "told you")

    asyncio.run(main())


def test_cancelling_the_coroutine_stops_the_task(pool, gate):
    async def main():
        future = asyncio.get_running_loop().run_in_executor(pool, gate.enter)
        await asyncio.to_thread(gate.wait_until_entered)
        future.cancel()
        with pytest.raises(asyncio.CancelledError):
            await future

    asyncio.run(main())
    eventually(lambda: pool.statistics().busy == 0, what="the task to be stopped")
    assert pool.submit(t.square, 2).result() == 4


def test_a_timeout_of_asyncio_stops_the_task(pool, gate):
    async def main():
        async with asyncio.timeout(0.2):
            await asyncio.wrap_future(pool.submit(gate.enter))

    with pytest.raises(TimeoutError):
        asyncio.run(main())
    eventually(lambda: pool.statistics().busy == 0, what="the task to be stopped")


def test_a_task_group_over_the_pool(pool):
    async def call(n):
        return await asyncio.wrap_future(pool.submit(t.square, n))

    async def main():
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(call(n)) for n in range(50)]
        return [task.result() for task in tasks]

    assert asyncio.run(main()) == [n * n for n in range(50)]


def test_two_loops_in_two_threads_share_a_pool(pool):
    def one(base):
        async def main():
            loop = asyncio.get_running_loop()
            return await asyncio.gather(*(loop.run_in_executor(pool, t.add, base, n) for n in range(50)))

        return asyncio.run(main())

    with concurrent.futures.ThreadPoolExecutor(2) as threads:
        assert list(threads.map(one, [0, 100])) == [list(range(50)), list(range(100, 150))]


# --- threads ------------------------------------------------------------------------------------


def test_many_threads_submit_and_wait_at_once(pool):
    def one(base):
        futures = [pool.submit(t.add, base, n) for n in range(100)]
        return [future.result(HANG_LIMIT_S) for future in futures]

    with concurrent.futures.ThreadPoolExecutor(12) as threads:
        results = list(threads.map(one, range(0, 12_000, 1000)))
    assert results == [list(range(base, base + 100)) for base in range(0, 12_000, 1000)]


def test_many_threads_wait_for_one_future(pool, gate):
    future = pool.submit(gate.enter, "done")
    with concurrent.futures.ThreadPoolExecutor(16) as threads:
        waiting = [threads.submit(future.result, HANG_LIMIT_S) for _ in range(16)]
        gate.wait_until_entered()
        gate.open()
        assert [one.result() for one in waiting] == ["done"] * 16


def test_many_threads_wait_for_many_futures_in_any_order(pool):
    futures = [pool.submit(t.nap, 0.0005 * (n % 7), n) for n in range(200)]
    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        backwards = threads.map(lambda future: future.result(HANG_LIMIT_S), reversed(futures))
        assert list(backwards) == list(reversed(range(200)))


def test_maps_in_many_threads_do_not_mix(pool):
    with concurrent.futures.ThreadPoolExecutor(6) as threads:
        results = threads.map(lambda base: list(pool.map(t.add, [base] * 200, range(200))), range(0, 6000, 1000))
        assert list(results) == [list(range(base, base + 200)) for base in range(0, 6000, 1000)]


def test_a_waiting_thread_that_gives_up_leaves_the_others_served(pool, gate):
    """Whoever waits reads for all; when its time is up another one must take over."""
    future = pool.submit(gate.enter, "done")
    gate.wait_until_entered()
    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        quitters = [threads.submit(_result_or_none, future, 0.03 * n) for n in (1, 2)]
        stayers = [threads.submit(future.result, HANG_LIMIT_S) for _ in range(2)]
        assert [one.result() for one in quitters] == [None, None]
        gate.open()
        assert [one.result() for one in stayers] == ["done", "done"]


def _result_or_none(future, timeout):
    try:
        return future.result(timeout)
    except TimeoutError:
        return None


def test_a_pool_made_used_and_closed_in_a_thread(start_method):
    def work():
        with shoal.Pool(2, start_method=start_method) as pool:
            return list(pool.map(t.square, range(20)))

    with concurrent.futures.ThreadPoolExecutor(1) as threads:
        assert threads.submit(work).result(HANG_LIMIT_S) == [n * n for n in range(20)]


def test_a_worker_outlives_the_thread_in_which_it_was_started(pool):
    """The kernel ties a child to the thread that made it, if asked to; then the worker would die with that thread."""
    pids = []
    thread = threading.Thread(target=lambda: pids.append(pool.submit(t.pid).result()))
    thread.start()
    thread.join()
    time.sleep(0.02)
    assert pool.submit(t.square, 3).result() == 9
    assert pool.statistics().workers_lost == 0


def test_a_pool_inside_a_task(pool, start_method):
    assert pool.submit(_sum_in_an_inner_pool, start_method).result() == 285


def _sum_in_an_inner_pool(start_method):
    with shoal.Pool(2, start_method=start_method) as inner:
        return sum(inner.map(t.square, range(10)))


# --- wrappers of executors ----------------------------------------------------------------------


class Counting(shoal.Pool):
    """What wrappers do: see every task on its way in."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.seen = []

    def submit(self, fn, /, *args, **kwargs):
        self.seen.append(args)
        return super().submit(fn, *args, **kwargs)


def test_a_subclass_that_overrides_submit_sees_the_tasks_of_map(start_method):
    with Counting(2, start_method=start_method) as pool:
        assert list(pool.map(t.add, range(5), range(5))) == [0, 2, 4, 6, 8]
        assert pool.seen == [(n, n) for n in range(5)]


def test_a_subclass_that_overrides_submit_takes_every_option_of_map(start_method):
    with Counting(2, start_method=start_method) as pool:
        assert list(pool.map(t.square, range(5), chunksize=2, timeout=30)) == [0, 1, 4, 9, 16]
        assert list(pool.map(t.square, range(5), buffersize=2)) == [0, 1, 4, 9, 16]


def test_an_executor_in_front_of_the_pool_can_be_told_by_duck_typing(pool):
    assert isinstance(pool, concurrent.futures.Executor)
    assert pool._max_workers == 2


def test_a_submit_put_on_the_instance_sees_the_tasks_of_map(pool):
    seen = []
    submit = pool.submit
    pool.submit = lambda *args: seen.append(args) or submit(*args)
    assert list(pool.map(t.square, range(4))) == [0, 1, 4, 9]
    assert seen == [(t.square, n) for n in range(4)]


# --- tqdm ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module", autouse=True)
def _what_tqdm_keeps_for_ever():
    """tqdm makes a lock at first use, which it never gives back; and a thread, which is not wanted here."""
    tqdm = pytest.importorskip("tqdm")
    tqdm.tqdm.monitor_interval = 0
    tqdm.tqdm.get_lock()


def test_tqdms_executor_map_counts_on_the_pool(pool_factory, capsys):
    """`tqdm.contrib.concurrent.process_map` does this with `ProcessPoolExecutor`: it replaces `submit` on the object."""
    tqdm_concurrent = pytest.importorskip("tqdm.contrib.concurrent")

    def executor(max_workers, initializer, initargs):
        return pool_factory(max_workers)  # its lock is for workers that draw bars of their own

    results = tqdm_concurrent._executor_map(executor, t.square, range(30), max_workers=2, chunksize=3, mininterval=0)
    assert results == [n * n for n in range(30)]
    shown = [int(count) for count in re.findall(r"(\d+)/30", capsys.readouterr().err)]
    assert shown == sorted(shown)
    assert shown[-1] > 0  # the bar closes with the last result; how many calls are late is the scheduler's affair


def test_tqdms_executor_map_hands_its_lock_to_forked_workers(capsys):
    tqdm_concurrent = pytest.importorskip("tqdm.contrib.concurrent")

    class ForkPool(shoal.Pool):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, start_method="fork", **kwargs)

    results = tqdm_concurrent._executor_map(ForkPool, t.square, range(30), max_workers=2, chunksize=3)
    assert results == [n * n for n in range(30)]


def test_tqdm_around_map_and_imap(pool, capsys):
    tqdm = pytest.importorskip("tqdm").tqdm
    assert list(tqdm(pool.map(t.square, range(20)), total=20)) == [n * n for n in range(20)]
    assert len(list(tqdm(pool.imap(t.square, range(20), ordered=False)))) == 20


# --- dask ---------------------------------------------------------------------------------------


def test_dask_computes_on_the_pool(pool):
    dask = pytest.importorskip("dask")
    parts = [dask.delayed(t.square)(n) for n in range(20)]
    total = dask.delayed(sum)(parts)
    with dask.config.set(scheduler=pool):
        assert total.compute() == sum(n * n for n in range(20))
        (pids,) = dask.compute([dask.delayed(t.pid)(n) for n in range(4)])
    assert os.getpid() not in pids


def test_an_error_in_dask_arrives_as_itself(pool):
    dask = pytest.importorskip("dask")
    with dask.config.set(scheduler=pool), pytest.raises(ValueError, match="told you"):
        dask.delayed(t.fail)("told you").compute()


# --- multiprocessing ----------------------------------------------------------------------------


def test_a_managers_proxies_work_in_tasks(pool):
    with multiprocessing.get_context("fork").Manager() as manager:
        shared, queue = manager.dict(), manager.Queue()
        list(pool.map(_put_in_both, [shared] * 5, [queue] * 5, range(5)))
        assert dict(shared) == {n: n * n for n in range(5)}
        assert sorted(queue.get() for _ in range(5)) == list(range(5))


def test_a_manager_made_after_the_workers_started_works_too(pool):
    pool.submit(t.nothing).result()
    with multiprocessing.get_context("fork").Manager() as manager:
        shared = manager.dict()
        pool.submit(_put, shared, "key", "value").result()
        assert dict(shared) == {"key": "value"}


def _put(shared, key, value):
    shared[key] = value


def _put_in_both(shared, queue, n):
    shared[n] = n * n
    queue.put(n)


@pytest.mark.no_leak_audit("multiprocessing keeps a thread and a socket for passing descriptors")
def test_a_pipe_end_as_argument_works_or_is_refused_but_never_misdirected(pool):
    """As a bare number it would name some other descriptor of the worker."""
    reader, writer = multiprocessing.Pipe(duplex=False)
    with reader, writer:
        try:
            pool.submit(_send, writer, "hello").result()
        except (shoal.NotPicklable, concurrent.futures.BrokenExecutor):
            return
        assert reader.poll(HANG_LIMIT_S)
        assert reader.recv() == "hello"


def _send(writer, what):
    writer.send(what)


def test_a_task_may_start_a_process_of_multiprocessing(pool):
    assert pool.submit(_run_a_process).result() == 0


def _run_a_process():
    process = multiprocessing.get_context("fork").Process(target=t.nothing)
    process.start()
    process.join()
    return process.exitcode


def test_the_standard_pools_work_beside_ours(pool):
    with concurrent.futures.ProcessPoolExecutor(1) as other:
        assert other.submit(t.square, 3).result() == pool.submit(t.square, 3).result()


# --- the surroundings of a task -----------------------------------------------------------------


def test_a_task_sees_the_environment_directory_arguments_and_path_of_now(pool, monkeypatch, tmp_path):
    monkeypatch.setenv("SHOAL_TEST_SEEN", "now")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["a program", "--flag"])
    monkeypatch.syspath_prepend(str(tmp_path))
    assert pool.submit(_surroundings).result() == ("now", str(tmp_path), ["a program", "--flag"], str(tmp_path))


def _surroundings():
    import sys

    return os.environ.get("SHOAL_TEST_SEEN"), os.getcwd(), sys.argv, sys.path[0]


def test_a_tasks_standard_input_is_empty(pool):
    assert pool.submit(_read_input).result() == ""


def _read_input():
    import sys

    return sys.stdin.read()
