"""`submit` and the future it returns, as `concurrent.futures` documents them."""

from __future__ import annotations

import concurrent.futures
import gc
import logging
import os
import threading
import time
import weakref

import pytest

import shoal
from shoal._pool import launcher
from tests.process import pool_tasks as t
from tests.support import HANG_LIMIT_S, QUIET_S, eventually, stays

# --- submit -------------------------------------------------------------------------------------


def test_submit_returns_what_the_function_returned(pool):
    assert pool.submit(t.square, 12).result() == 144


def test_the_function_runs_in_another_process(pool):
    assert pool.submit(os.getpid).result() != os.getpid()


def test_positional_and_keyword_arguments_arrive_as_given(pool):
    assert pool.submit(t.echo, 1, "two", three=[3]).result() == ((1, "two"), {"three": [3]})


def test_keywords_named_like_submits_own_parameters_belong_to_the_function(pool):
    assert pool.submit(t.echo, self=1, fn=2, timeout=3, retries=4, label=5).result() == (
        (),
        {"self": 1, "fn": 2, "timeout": 3, "retries": 4, "label": 5},
    )


def test_an_exception_arrives_as_itself(pool):
    future = pool.submit(t.fail, "told you")
    with pytest.raises(ValueError, match="^told you$"):
        future.result()
    assert isinstance(future.exception(), ValueError)


def test_exception_is_none_when_the_task_returned(pool):
    assert pool.submit(t.square, 2).exception() is None


def test_arguments_are_taken_when_they_are_submitted(pool, gate):
    """Changing a list after `submit` does not change what the task sees, even if it has not been sent yet."""
    blockers = [pool.submit(gate.enter) for _ in range(2)]
    given = [1, 2, 3]
    future = pool.submit(t.identity, given)
    given.append(4)
    gate.open()
    assert future.result() == [1, 2, 3]
    concurrent.futures.wait(blockers)


def test_what_is_not_callable_is_refused_at_once(pool):
    with pytest.raises(TypeError, match="callable"):
        pool.submit(42)


def test_ten_thousand_tasks_all_come_back_in_place(pool):
    futures = [pool.submit(t.square, n) for n in range(10_000)]
    assert [future.result() for future in futures] == [n * n for n in range(10_000)]


def test_result_waits_no_longer_than_its_timeout(pool, gate):
    future = pool.submit(gate.enter, "late")
    with pytest.raises(TimeoutError):
        future.result(timeout=0.01)
    with pytest.raises(concurrent.futures.TimeoutError):
        future.exception(timeout=0)
    assert not future.done()
    gate.open()
    assert future.result() == "late"


def test_a_future_tells_its_state_at_each_stage(pool_factory, gate):
    pool = pool_factory(1)
    future = pool.submit(gate.enter, 7)
    behind = pool.submit(t.square, 2)
    gate.wait_until_entered()
    assert (future.running(), future.done(), future.cancelled()) == (True, False, False)
    assert (behind.running(), behind.done(), behind.cancelled()) == (False, False, False)
    gate.open()
    assert future.result() == 7
    assert (future.running(), future.done(), future.cancelled()) == (False, True, False)
    assert behind.result() == 4


def test_a_future_is_a_concurrent_futures_future_and_shows_its_state(pool, gate):
    future = pool.submit(gate.enter, 7)
    assert isinstance(future, concurrent.futures.Future)
    assert isinstance(future, shoal.Future)
    assert "Future at" in repr(future)
    gate.open()
    future.result()
    assert "finished returned int" in repr(future)
    failed = pool.submit(t.fail)
    failed.exception()
    assert "raised ValueError" in repr(failed)


def test_the_pool_shows_its_size_start_method_and_state(pool, start_method):
    assert repr(pool) == f"<shoal.Pool of 2 workers by {start_method}, not started>"
    pool.submit(t.nothing).result()
    assert repr(pool) == f"<shoal.Pool of 2 workers by {start_method}, open>"
    pool.shutdown()
    assert repr(pool) == f"<shoal.Pool of 2 workers by {start_method}, closed>"


def test_a_task_may_return_none_or_an_exception_object(pool):
    assert pool.submit(t.nothing).result() is None
    returned = pool.submit(t.identity, ValueError("just a value")).result()
    assert isinstance(returned, ValueError)


def test_tasks_run_side_by_side_on_every_worker(pool, make_gate):
    first, second = make_gate("first"), make_gate("second")
    futures = [pool.submit(first.enter), pool.submit(second.enter)]
    first.wait_until_entered()
    second.wait_until_entered()
    first.open()
    second.open()
    concurrent.futures.wait(futures)


def test_an_argument_of_each_size_class_arrives_whole(pool):
    for size in (0, 1, 65_535, 65_536, 65_537, 1 << 20, 5_000_001):
        data = os.urandom(size)
        assert pool.submit(t.identity, data).result() == data
        assert pool.submit(t.identity, bytearray(data)).result() == data


@pytest.mark.start_methods("forkserver", "fork")
def test_large_arguments_are_let_go_when_their_task_is_done(pool):
    """At once, not when the cyclic collector runs: that counts objects, not megabytes."""
    data = bytes(1000)
    gc.collect()
    gc.disable()
    try:
        future = pool.submit(len, data)
        task = weakref.ref(future)
        assert future.result() == 1000
        before, most = t.memory_kb(), 0
        for n in range(40):
            assert pool.submit(len, bytes([n]) * 5_000_000).result() == 5_000_000
            most = max(most, t.memory_kb())
        del future
        assert task() is None
        assert most - before < 60_000
    finally:
        gc.enable()


# --- wait, as_completed -------------------------------------------------------------------------


def test_wait_first_completed_returns_with_the_first(pool, gate):
    slow, quick = pool.submit(gate.enter), pool.submit(t.square, 3)
    done, pending = concurrent.futures.wait([slow, quick], return_when=concurrent.futures.FIRST_COMPLETED)
    assert done == {quick}
    assert pending == {slow}
    gate.open()


def test_wait_first_exception_returns_with_the_first_failure(pool, gate):
    slow, fine, bad = pool.submit(gate.enter), pool.submit(t.square, 3), pool.submit(t.fail)
    done, pending = concurrent.futures.wait([slow, fine, bad], return_when=concurrent.futures.FIRST_EXCEPTION)
    assert bad in done
    assert pending == {slow}
    gate.open()


def test_wait_all_completed_returns_with_the_last(pool):
    futures = [pool.submit(t.square, n) for n in range(20)] + [pool.submit(t.fail)]
    done, pending = concurrent.futures.wait(futures)
    assert done == set(futures)
    assert not pending


def test_wait_gives_up_at_its_timeout(pool, gate):
    future = pool.submit(gate.enter)
    done, pending = concurrent.futures.wait([future], timeout=0.02)
    assert not done
    assert pending == {future}
    gate.open()


def test_as_completed_yields_each_once_the_first_done_first(pool, gate):
    slow = pool.submit(gate.enter)
    quick = [pool.submit(t.square, n) for n in range(10)]
    seen = []
    for future in concurrent.futures.as_completed([slow, *quick, quick[0]]):
        seen.append(future)
        if len(seen) == 10:
            gate.open()
    assert set(seen[:10]) == set(quick)
    assert seen[10] is slow
    assert len(seen) == 11


def test_as_completed_gives_up_at_its_timeout(pool, gate):
    future = pool.submit(gate.enter)
    with pytest.raises(concurrent.futures.TimeoutError):
        list(concurrent.futures.as_completed([future], timeout=0.02))
    gate.open()


def test_wait_mixes_with_futures_of_a_thread_pool(pool):
    with concurrent.futures.ThreadPoolExecutor(1) as threads:
        futures = {threads.submit(t.square, 2), pool.submit(t.square, 3)}
        done, _ = concurrent.futures.wait(futures)
    assert {future.result() for future in done} == {4, 9}


def test_wait_sees_a_cancelled_future(pool_factory, gate):
    pool = pool_factory(1)
    running, pending = pool.submit(gate.enter), pool.submit(t.nothing)
    waiter = concurrent.futures.ThreadPoolExecutor(1)
    with waiter:
        seen = waiter.submit(concurrent.futures.wait, [pending], HANG_LIMIT_S)
        assert pending.cancel()
        assert seen.result().done == {pending}
    gate.open()
    running.result()


def test_a_wait_begun_while_another_thread_cancels_is_told(pool_factory, gate):
    """The states of cancelling follow each other so that whoever begins to wait between them is not forgotten."""
    pool = pool_factory(1)
    blocker = pool.submit(gate.enter)
    with concurrent.futures.ThreadPoolExecutor(1) as threads:
        for _ in range(300):
            future = pool.submit(t.nothing)
            waiting = threads.submit(concurrent.futures.wait, [future], HANG_LIMIT_S / 2)
            assert future.cancel()
            assert waiting.result().done == {future}
    gate.open()
    blocker.result()


# --- callbacks ----------------------------------------------------------------------------------


def test_a_callback_is_called_once_with_the_future(pool, gate):
    calls = []
    future = pool.submit(gate.enter, 3)
    future.add_done_callback(calls.append)
    gate.open()
    future.result()
    eventually(lambda: calls, what="the callback")
    stays(lambda: calls == [future], what="one call", quiet_s=QUIET_S / 4)


def test_a_callback_on_a_finished_future_is_called_at_once_in_this_thread(pool):
    future = pool.submit(t.square, 3)
    future.result()
    threads = []
    future.add_done_callback(lambda _: threads.append(threading.current_thread()))
    assert threads == [threading.current_thread()]


def test_a_callback_is_called_although_nobody_waits(pool):
    called = threading.Event()
    pool.submit(t.square, 3).add_done_callback(lambda _: called.set())
    assert called.wait(HANG_LIMIT_S)


def test_callbacks_are_called_in_the_order_they_were_added(pool, gate):
    calls = []
    future = pool.submit(gate.enter)
    for n in range(5):
        future.add_done_callback(lambda _, n=n: calls.append(n))
    gate.open()
    eventually(lambda: len(calls) == 5, what="five callbacks")
    assert calls == [0, 1, 2, 3, 4]


def test_an_exception_in_a_callback_is_logged_and_harms_nobody(pool, gate, caplog):
    calls = []
    future = pool.submit(gate.enter)
    future.add_done_callback(lambda _: 1 / 0)
    future.add_done_callback(calls.append)
    with caplog.at_level(logging.ERROR, logger="concurrent.futures"):
        gate.open()
        eventually(lambda: calls, what="the second callback")
    assert "ZeroDivisionError" in caplog.text
    assert pool.submit(t.square, 2).result() == 4


def test_a_callback_may_submit(pool):
    finished = threading.Event()
    results = []

    def go_on(future):
        results.append(future.result())
        if len(results) < 50:
            pool.submit(t.add, results[-1], 1).add_done_callback(go_on)
        else:
            finished.set()

    pool.submit(t.identity, 0).add_done_callback(go_on)
    assert finished.wait(HANG_LIMIT_S)
    assert results == list(range(50))


def test_a_callback_may_wait_for_another_future(pool, gate):
    """Whoever runs the callback reads on meanwhile, so what it waits for can arrive."""
    other = pool.submit(gate.enter, "other")
    got = []
    finished = threading.Event()

    def wait_for_the_other(_):
        gate.open()
        got.append(other.result(HANG_LIMIT_S))
        finished.set()

    pool.submit(t.square, 3).add_done_callback(wait_for_the_other)
    assert finished.wait(HANG_LIMIT_S)
    assert got == ["other"]


def test_a_callback_may_map_and_cancel_and_ask_for_statistics(pool, gate):
    blocked = pool.submit(gate.enter)
    seen = []

    def busy(_):
        seen.append(list(pool.map(t.square, range(10))))
        seen.append(blocked.cancel())
        seen.append(pool.statistics().submitted)

    pool.submit(t.square, 3).add_done_callback(busy)
    eventually(lambda: len(seen) == 3, what="the callback to end")
    assert seen == [[n * n for n in range(10)], True, 12]


def test_a_callback_that_waits_is_read_for_when_the_leading_caller_leaves(pool_factory, make_gate):
    """The callback's thread is the one that usually reads when nobody waits; here it waits itself, behind a caller."""
    pool = pool_factory(2)
    list(pool.map(t.nap, [0.05] * 4))  # both workers are up
    running, behind, called = make_gate("running"), make_gate("behind"), make_gate("called")
    first = pool.submit(running.enter, "first")
    leading = threading.Event()
    seen = []
    timers = [threading.Timer(0.3, running.open), threading.Timer(0.6, behind.open)]

    def wait_in_callback(_):
        assert leading.wait(HANG_LIMIT_S)
        seen.append(list(pool.map(behind.enter, ["behind"])))

    pool.submit(called.enter).add_done_callback(wait_in_callback)
    called.open()
    for timer in timers:
        timer.start()
    threading.Timer(0.1, leading.set).start()
    assert first.result() == "first"
    eventually(lambda: seen == [["behind"]], what="the callback to end")
    for timer in timers:
        timer.join()


def test_a_callback_that_asks_to_exit_does_not_stop_the_pool(pool, monkeypatch):
    """SystemExit out of a callback ends whatever thread ran it in a naive pool, and everybody behind it hangs."""
    monkeypatch.setattr(threading, "excepthook", lambda _args: None)

    def leave(_):
        raise SystemExit(3)

    pool.submit(t.square, 3).add_done_callback(leave)
    eventually(lambda: pool.statistics().done == 1, what="the first task")
    called = threading.Event()
    pool.submit(t.square, 4).add_done_callback(lambda _: called.set())
    assert called.wait(HANG_LIMIT_S / 4)


def test_a_callback_of_a_cancelled_future_sees_it_cancelled(pool_factory, gate):
    pool = pool_factory(1)
    blocker, future = pool.submit(gate.enter), pool.submit(t.nothing)
    states = []
    future.add_done_callback(lambda one: states.append((one.cancelled(), one.done())))
    future.cancel()
    eventually(lambda: states, what="the callback")
    assert states == [(True, True)]
    gate.open()
    blocker.result()


# --- cancel -------------------------------------------------------------------------------------


def test_a_cancelled_pending_task_never_runs(pool_factory, gate, log):
    pool = pool_factory(1)
    blocker = pool.submit(gate.enter)
    gate.wait_until_entered()
    futures = [pool.submit(log.add, n) for n in range(20)]
    assert all(future.cancel() for future in futures)
    assert all(future.cancelled() for future in futures)
    gate.open()
    blocker.result()
    assert pool.submit(t.square, 2).result() == 4
    assert log.lines() == []


def test_a_task_cancelled_while_it_waits_behind_another_in_the_same_worker_never_runs(pool_factory, gate, log):
    """Quick functions are sent ahead; cancelling takes them back, wherever they are, and runs the rest."""
    pool = pool_factory(1)
    for _ in range(50):  # so that its cost is known to be small, and many are sent at once
        pool.submit(t.log_and_return, log, -1).result()
    before = len(log.lines())
    blocker = pool.submit(gate.enter)
    gate.wait_until_entered()
    futures = [pool.submit(t.log_and_return, log, n) for n in range(60)]
    for future in futures[::2]:
        assert future.cancel()
        time.sleep(0.001)  # give the pool the chance to take back, and hand out again, between two of them
    gate.open()
    blocker.result()
    assert [future.result() for future in futures[1::2]] == list(range(1, 60, 2))
    assert sorted(map(int, log.lines()[before:])) == list(range(1, 60, 2))


@pytest.mark.start_methods("forkserver", "spawn")
def test_a_worker_that_is_ready_before_its_template_told_of_it_lives_on(pool_factory, monkeypatch):
    """Two processes tell of it on two sockets: the worker that it is ready, the template that it exists."""
    read, late = launcher.TemplateLauncher.read, []

    def hold_back(self):
        events = [*late, *read(self)]
        late[:] = [one for one in events if isinstance(one, launcher.Forked)] if hold_back.on else []
        return [one for one in events if one not in late]

    hold_back.on = True
    monkeypatch.setattr(launcher.TemplateLauncher, "read", hold_back)
    pool = pool_factory(1, spare=False)
    pid = pool.submit(os.getpid).result()
    assert [one.pid for one in late] == [pid]
    hold_back.on = False
    engine = pool._engine
    engine._asked.append(lambda: engine.fleet._told(0))
    engine.core.poller.wake()
    eventually(lambda: not late, what="the template's word to come in")
    assert [pool.submit(os.getpid).result() for _ in range(5)] == [pid] * 5
    assert pool.statistics().workers_lost == 0


def test_cancelling_a_running_task_stops_it(pool, gate):
    future = pool.submit(gate.enter)
    gate.wait_until_entered()
    (busy,) = [worker.pid for worker in pool.workers if worker.state == "busy"]
    assert future.cancel()
    assert future.cancelled()
    with pytest.raises(concurrent.futures.CancelledError):
        future.result()
    eventually(lambda: busy not in [worker.pid for worker in pool.workers], what="the worker to be stopped")
    assert pool.submit(t.square, 2).result() == 4


def test_cancelling_a_running_task_leaves_those_behind_it_alone(pool_factory, gate):
    pool = pool_factory(1)
    for n in range(50):
        pool.submit(t.square, n).result()
    future = pool.submit(gate.enter)
    behind = [pool.submit(t.square, n) for n in range(30)]
    gate.wait_until_entered()
    assert future.cancel()
    assert [one.result() for one in behind] == [n * n for n in range(30)]
    assert pool.statistics().failed == 0


def test_a_finished_task_cannot_be_cancelled(pool):
    future = pool.submit(t.square, 3)
    assert future.result() == 9
    assert not future.cancel()
    assert not future.cancelled()
    assert future.result() == 9


def test_cancelling_twice_says_yes_twice(pool_factory, gate):
    pool = pool_factory(1)
    blocker, future = pool.submit(gate.enter), pool.submit(t.nothing)
    assert future.cancel()
    assert future.cancel()
    gate.open()
    blocker.result()
    assert pool.statistics().cancelled == 1


def test_whoever_waits_for_a_task_is_told_when_it_is_cancelled(pool, gate):
    future = pool.submit(gate.enter)
    gate.wait_until_entered()
    with concurrent.futures.ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(future.exception)
        future.cancel()
        with pytest.raises(concurrent.futures.CancelledError):
            waiting.result(HANG_LIMIT_S)


def test_cancel_racing_with_the_end_of_the_task_settles_it_once(pool):
    """Whatever wins, the callback runs once and the state agrees with what `cancel` said."""
    for _ in range(200):
        calls = []
        future = pool.submit(t.nothing)
        future.add_done_callback(calls.append)
        said = future.cancel()
        eventually(lambda calls=calls: calls, what="the callback")
        assert future.cancelled() == said
        if not said:
            assert future.result() is None
        assert len(calls) == 1
