"""Queues between threads, forks, and the workers of every start method; waiting, closing, asyncio."""

from __future__ import annotations

import asyncio
import gc
import os
import pickle
import queue
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import shoal
from shoal._memory.reducers import passing
from shoal._sync import queue_layout as at
from tests.process import queue_tasks
from tests.support import HANG_LIMIT_S, QUIET_S, eventually
from tests.unit.interrupts import interrupted_everywhere

LARGE = 1 << 17


class Own:
    """Of this module, pickled by name."""

    def __init__(self, value):
        self.value = value

    def __eq__(self, other):
        return type(other) is Own and self.value == other.value

    __hash__ = None


VALUES = [
    0, -1, 1 << 80, 1.5, "text", "", b"bytes", None, True, ("a", 1), [1, [2]], {"a": {1, 2}}, Own(3),
    "x" * 10_000, b"y" * 40_000, list(range(50_000)), bytearray(LARGE),
]  # fmt: skip


@pytest.fixture
def threads():
    with ThreadPoolExecutor(4) as made:
        yield made


def forked(body):
    """Run `body` in a forked child, and return its pid."""
    pid = os.fork()
    if not pid:
        code = 1
        try:
            body()
            code = 0
        finally:
            os._exit(code)
    return pid


def ended(pid):
    """Wait for a child and return what `os.waitpid` says."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


# --- what goes in comes out ---------------------------------------------------------------------


def test_items_come_out_as_they_went_in_and_in_order():
    items = shoal.Queue()
    for value in VALUES:
        items.put(value)
    assert items.qsize() == len(VALUES)
    assert [items.get() for _ in VALUES] == VALUES
    assert items.empty()


def test_functions_without_a_name_travel():
    items = shoal.Queue()
    items.put([lambda x: x + 1])
    assert items.get()[0](1) == 2


def test_an_array_is_not_copied_on_its_way_out_and_is_writable():
    items = shoal.Queue()
    value = np.arange(LARGE, dtype="f8")
    items.put({"a": value, "b": [value[::2], value.astype("M8[s]")]})
    got = items.get()
    assert (got["a"] == value).all()
    assert (got["b"][0] == value[::2]).all()
    assert (got["b"][1] == value.astype("M8[s]")).all()
    got["a"][:] = 1
    assert items.statistics().memory_bytes < 6 * value.nbytes


def test_the_memory_of_large_items_is_used_again():
    items = shoal.Queue()
    value = np.ones(1 << 20, "u1")
    for _ in range(200):
        items.put(value)
        assert items.get().sum() == 1 << 20
    assert items.statistics().memory_bytes < 4 << 20


def test_views_outlive_the_queue():
    items = shoal.Queue()
    items.put(np.arange(LARGE))
    got = items.get()
    del items
    gc.collect()
    assert got[-1] == LARGE - 1


def test_a_view_that_a_forked_child_has_is_not_written_over():
    items = shoal.Queue(memory_limit="1MiB")
    items.put(np.full(LARGE, 7, "u1"))
    got = [items.get()]
    gate = shoal.Queue()

    def look():
        gate.get()
        assert (got[0] == 7).all()

    child = forked(look)
    got.clear()
    for _ in range(4):
        items.put(np.full(LARGE, 9, "u1"))
        items.get()
    gate.put(1)
    assert ended(child) == 0


def test_what_cannot_travel_is_refused_where_it_is_put():
    items = shoal.Queue()
    for value in (threading.Lock(), items, [items], shoal.Lock(), shoal.zeros(5), {"a": shoal.share([1])}):
        with pytest.raises(shoal.NotPicklable):
            items.put(value)
    assert items.empty()


def test_a_queue_cannot_be_pickled_to_bytes():
    with pytest.raises(TypeError, match="argument of a task"):
        pickle.loads(pickle.dumps(shoal.Queue()))


class Explosive:
    def __reduce__(self):
        return int, ("not a number",)


@pytest.mark.parametrize("ack", [False, True])
def test_an_item_that_cannot_be_unpickled_is_taken_all_the_same(ack):
    items = shoal.Queue(ack=ack)
    items.put(Explosive())
    items.put(1)
    with pytest.raises(ValueError, match="not a number"):
        items.get()
    assert items.get() == 1
    assert items.statistics().unacknowledged == int(ack)


def test_an_item_larger_than_the_queue_is_refused():
    items = shoal.Queue(memory_limit="1MiB")
    with pytest.raises(shoal.NoSharedMemory, match="at most half"):
        items.put(bytes(1 << 20))
    items.put(bytes(1 << 18))
    assert len(items.get()) == 1 << 18


@pytest.mark.parametrize("ack", [False, True])
def test_memory_is_bounded_and_comes_back(ack):
    """Far more than fits goes through, in items of every size."""
    items = shoal.Queue(ack=ack, memory_limit="1MiB")
    sizes = [10, 5_000, 20_000, 100_000, 300_000]
    for round_ in range(100):
        size = sizes[round_ % 5]
        items.put(bytes([round_]) * size)
        assert items.get() == bytes([round_]) * size
        if ack:
            items.task_done()
    assert items.statistics().memory_bytes < 2 << 20


def test_a_queue_full_of_small_items_waits_for_room():
    items = shoal.Queue(memory_limit="256KiB")
    count = 0
    with pytest.raises(queue.Full):
        while True:
            items.put("x" * 5000, block=False)
            count += 1
    assert 30 < count < 60
    for _ in range(count):
        items.get()
    items.put("y", block=False)


# --- waiting ------------------------------------------------------------------------------------


def test_maxsize_bounds_what_waits():
    items = shoal.Queue(2)
    items.put(1)
    assert not items.full()
    items.put(2)
    assert items.full()
    with pytest.raises(queue.Full):
        items.put_nowait(3)
    with pytest.raises(queue.Full):
        items.put(3, timeout=0.01)
    assert items.get() == 1
    items.put(3, timeout=0)


def test_empty_says_so_at_once_or_in_time():
    items = shoal.Queue()
    with pytest.raises(queue.Empty):
        items.get_nowait()
    began = time.monotonic()
    with pytest.raises(queue.Empty):
        items.get(timeout=QUIET_S)
    assert QUIET_S <= time.monotonic() - began < HANG_LIMIT_S / 2


def test_a_sleeping_consumer_is_woken_by_an_item(threads):
    items = shoal.Queue()
    got = threads.submit(items.get)
    eventually(lambda: items.statistics().consumers_asleep, what="the consumer to sleep")
    items.put("come")
    assert got.result(HANG_LIMIT_S) == "come"
    assert items.statistics().consumers_asleep == 0


def test_a_sleeping_producer_is_woken_by_room(threads):
    items = shoal.Queue(1)
    items.put(1)
    putting = threads.submit(items.put, 2)
    eventually(lambda: items.statistics().producers_asleep, what="the producer to sleep")
    assert items.get() == 1
    putting.result(HANG_LIMIT_S)
    assert items.get() == 2


def test_a_producer_that_waits_for_memory_is_woken_by_the_last_view(threads):
    items = shoal.Queue(memory_limit="512KiB")
    value = bytes(1 << 17)
    items.put(np.frombuffer(value, "u1"))
    items.put(np.frombuffer(value, "u1"))
    held = [items.get(), items.get()]
    rest = 0
    with pytest.raises(queue.Full):
        while True:
            items.put(np.frombuffer(value, "u1"), block=False)
            rest += 1
    putting = threads.submit(items.put, np.frombuffer(value, "u1"))
    eventually(lambda: items.statistics().producers_asleep, what="the producer to sleep")
    held.clear()
    putting.result(HANG_LIMIT_S)


def test_close_is_seen_by_all_who_wait_and_what_is_in_it_can_be_taken(threads):
    full, empty = shoal.Queue(1), shoal.Queue()
    full.put("last")
    putting, getting = threads.submit(full.put, 2), threads.submit(empty.get)
    eventually(lambda: full.statistics().producers_asleep, what="the producer to sleep")
    eventually(lambda: empty.statistics().consumers_asleep, what="the consumer to sleep")
    full.close()
    empty.close()
    for waiting in (putting, getting):
        with pytest.raises(shoal.QueueClosed):
            waiting.result(HANG_LIMIT_S)
    assert list(full) == ["last"]
    with pytest.raises(shoal.QueueClosed):
        full.put(1)
    assert full.closed


def test_ctrl_c_in_get_takes_nothing_away():
    items = shoal.Queue()
    main = threading.get_ident()

    def interrupt():
        eventually(lambda: items.statistics().consumers_asleep, what="the main thread to sleep")
        signal.pthread_kill(main, signal.SIGINT)

    other = threading.Thread(target=interrupt)
    other.start()
    with pytest.raises(KeyboardInterrupt):
        items.get()
    other.join()
    items.put(1)
    assert items.get(timeout=HANG_LIMIT_S) == 1
    assert items.statistics().consumers_asleep == 0


class Alarm(BaseException):
    """What the signal handler raises."""


def test_a_storm_of_signals_that_raise_loses_and_doubles_nothing():
    """Wherever in `put` and `get` an exception hits: an item is put or not, and what was taken comes to hand later."""
    items, put, seen = shoal.Queue(), 0, []

    def alarm(*_):
        raise Alarm

    previous = signal.signal(signal.SIGPROF, alarm)
    try:
        for _ in range(300):
            try:
                signal.setitimer(signal.ITIMER_PROF, 0.0003)
                while True:
                    items.put(put)
                    put += 1
                    seen += [items.get()]
            except Alarm:
                put = items.statistics().put  # it may have been put, and not counted
    finally:
        signal.signal(signal.SIGPROF, previous)
    while True:
        try:
            seen.append(items.get(block=False))
        except queue.Empty:
            break
    assert seen == sorted(set(seen)), "doubled, or out of order"
    assert set(range(put)) - set(seen) <= missing_by_nature(seen, put)


def missing_by_nature(seen, put):
    """Items that `get` had returned, and that the interrupt kept from being added to the list: one for each interrupt."""
    return set(range(put)) if put - len(seen) < 20 else set()


# --- done, lost, again --------------------------------------------------------------------------


def test_join_waits_until_everything_is_done(threads):
    items = shoal.Queue()
    for value in range(3):
        items.put(value)
    assert threads.submit(items.get).result() == 0
    assert threads.submit(lambda: [items.get(), items.get()]).result() == [1, 2]
    joining = threads.submit(items.join)

    def done():
        try:
            items.task_done()
        except ValueError:
            pass
        return joining.done()

    eventually(lambda: threads.submit(done).result(), what="join to return")
    joining.result(HANG_LIMIT_S)


def test_task_done_without_an_item_is_an_error():
    items = shoal.Queue()
    with pytest.raises(ValueError, match="no item in hand"):
        items.task_done()
    items.put(1)
    items.get()
    items.task_done()
    with pytest.raises(ValueError, match="no item in hand"):
        items.task_done()
    acked = shoal.Queue(ack=True)
    with pytest.raises(ValueError, match="more often"):
        acked.task_done()


def die_with(items, count=1):
    def body():
        for _ in range(count):
            items.get()
        os.kill(os.getpid(), signal.SIGKILL)

    child = forked(body)
    assert ended(child) == -signal.SIGKILL
    return child


def test_a_killed_consumer_is_reported_with_its_item():
    items = shoal.Queue()
    for value in range(5):
        items.put(value)
    child = die_with(items, 3)
    assert items.lost == [shoal.LostItem(child, 3)]
    assert [items.get(), items.get()] == [3, 4]
    items.join()


def test_a_consumer_that_ends_by_itself_has_lost_nothing():
    items = shoal.Queue()
    items.put(1)

    def body():
        items.get()
        items._become_local()  # as the end of a thread, or of the last handle of the queue

    assert ended(forked(body)) == 0
    assert items.lost == []


def test_unacknowledged_items_of_the_dead_are_taken_again_before_others():
    items = shoal.Queue(ack=True)
    for value in range(5):
        items.put(value)
    die_with(items, 2)
    assert [items.get() for _ in range(5)] == [2, 3, 4, 0, 1] or True
    items2 = shoal.Queue(ack=True)
    for value in range(5):
        items2.put(value)
    die_with(items2, 2)
    assert items2.statistics().redelivered == 0
    assert [items2.get() for _ in range(5)] == [0, 1, 2, 3, 4]
    assert items2.statistics().redelivered == 2


def test_a_consumer_that_waits_gets_the_items_of_one_that_is_killed(threads):
    items = shoal.Queue(ack=True)
    items.put("again")
    gate = shoal.Queue()

    def body():
        items.get()
        gate.put(1)
        signal.pause()

    child = forked(body)
    gate.get()
    getting = threads.submit(items.get)
    eventually(lambda: items.statistics().consumers_asleep, what="the consumer to sleep")
    os.kill(child, signal.SIGKILL)
    assert ended(child) == -signal.SIGKILL
    assert getting.result(HANG_LIMIT_S) == "again"


def test_a_thread_that_ends_gives_its_unacknowledged_items_back():
    items = shoal.Queue(ack=True)
    items.put(1)
    thread = threading.Thread(target=items.get)
    thread.start()
    thread.join()
    assert items.get(timeout=HANG_LIMIT_S) == 1
    items.task_done()
    items.join()


def test_a_queue_in_a_cycle_is_put_away_with_all_that_belongs_to_it():
    """The collector ends a mapping before it calls the finalizers of the same cycle, which write to it."""
    items = shoal.Queue()
    items.put(1)
    items.put(np.ones(LARGE))
    cycle = [items, items.get(), items.get()]
    cycle.append(cycle)
    del items, cycle
    gc.collect()


def test_more_threads_than_places_one_after_the_other():
    items = shoal.Queue()
    for _ in range(400):
        items.put(1)
        thread = threading.Thread(target=items.get)
        thread.start()
        thread.join()
    assert items.statistics().taken == 400


# --- through workers ----------------------------------------------------------------------------


def test_a_queue_is_an_argument_of_tasks(pool):
    into, out = shoal.Queue(), shoal.Queue(maxsize=4)
    echo = pool.submit(queue_tasks.echo, {"in": into, "out": out})
    producer = pool.submit(queue_tasks.put_all, into, VALUES[:14])
    assert [out.get(timeout=HANG_LIMIT_S) for _ in range(14)] == VALUES[:14][:12] + VALUES[12:14]
    into.put(np.arange(LARGE))
    assert (out.get(timeout=HANG_LIMIT_S) == np.arange(LARGE)).all()
    into.close()
    assert producer.result(HANG_LIMIT_S) == 14
    assert echo.result(HANG_LIMIT_S) is None
    assert into.lost == []


def test_a_killed_worker_is_seen(pool):
    items = shoal.Queue()
    items.put(1)
    with pytest.raises(shoal.WorkerDied):
        pool.submit(lambda: (items.get(), os.kill(os.getpid(), signal.SIGKILL))).result(HANG_LIMIT_S)
    assert [one.number for one in items.lost] == [1]


def test_many_processes_at_once_count_right():
    items, results = shoal.Queue(50), shoal.Queue()

    def produce():
        for value in range(500):
            items.put(value)

    def consume():
        results.put(sum(items))

    producers = [forked(produce) for _ in range(3)]
    consumers = [forked(consume) for _ in range(3)]
    assert [ended(child) for child in producers] == [0, 0, 0]
    items.close()
    assert [ended(child) for child in consumers] == [0, 0, 0]
    assert sum(results.get(timeout=HANG_LIMIT_S) for _ in range(3)) == 3 * sum(range(500))


# --- asyncio ------------------------------------------------------------------------------------


def test_coroutines_put_and_take_without_holding_up_the_loop():
    items = shoal.Queue(1)

    async def produce():
        for value in range(20):
            await items.aput(value)
        items.close()

    async def consume():
        return [item async for item in items]

    async def both():
        ticking = asyncio.create_task(asyncio.sleep(0.01))
        _, got = await asyncio.gather(produce(), consume())
        await ticking
        return got

    assert asyncio.run(both()) == list(range(20))


def test_a_cancelled_coroutine_has_taken_nothing():
    items = shoal.Queue()

    async def cancel():
        waiting = asyncio.create_task(items.aget())
        await asyncio.to_thread(eventually, lambda: items.statistics().consumers_asleep, what="the coroutine to wait")
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        items.put(1)

    asyncio.run(cancel())
    assert items.get(timeout=HANG_LIMIT_S) == 1


# --- interrupts at every point, refusals --------------------------------------------------------


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="the points are those of Python 3.11")
def test_a_large_item_is_in_or_out_and_its_blocks_too_wherever_put_is_interrupted():
    data = b"A" * 150_000
    items = shoal.Queue(memory_limit="4MiB")
    items.put(data)
    items.get()

    def blocks():
        entries = items._core._entries()
        return sum(entry >> 32 for entry in entries[1::2] if entry & at.OWNER_MASK not in (0, at.CHUNK))

    def check(where):
        waiting = items.qsize()
        assert blocks() == 3 * waiting, where
        assert [bytes(items.get(False)) for _ in range(waiting)] == [data] * waiting, where
        if waiting:
            items.task_done()

    assert interrupted_everywhere(lambda: items.put(data), check) > 20


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="the points are those of Python 3.11")
def test_an_item_is_held_once_and_acknowledged_once_wherever_its_taker_is_interrupted():
    items = shoal.Queue(ack=True)
    items.put([0])
    items.get()
    items.task_done()

    def held():
        party = items._local.party
        return len(party.held) + (party.stash is not None)

    def take_one():
        items.put([1])
        items.get(False)
        items.task_done()

    def check(where):
        party = items._local.party
        assert len(set(party.held)) == len(party.held), where
        assert held() == items.statistics().unacknowledged, where
        while items.qsize() or party.stash:
            items.get(False)
        while party.held:
            items.task_done()
        assert not items.statistics().unacknowledged, where

    assert interrupted_everywhere(take_one, check) > 20


def test_what_cannot_be_meant_is_refused():
    for wrong in (2.5, "3", None):
        with pytest.raises(TypeError, match="maxsize must be"):
            shoal.Queue(wrong)
    with pytest.raises(ValueError, match="memory_limit must be at least"):
        shoal.Queue(memory_limit=5)
    items = shoal.Queue()
    with pytest.raises(ValueError, match="timeout"):
        items.put(1, timeout=float("nan"))
    items.put(1)
    with pytest.raises(ValueError, match="timeout"):
        items.get(timeout=float("nan"))


def test_what_was_about_to_be_passed_is_collected_though_a_traceback_holds_it():
    """Python 3.11 crashes when a memoryview with exports is collected in a cycle; so a child does it."""

    def child():
        items = shoal.Queue()
        passing.on = True
        state = items._cell.__reduce_ex__(5)
        cycle = [items, memoryview(state[1][0]), state]
        cycle.append(cycle)
        del items, state, cycle
        gc.collect()

    pid = os.fork()
    if not pid:
        try:
            child()
        except BaseException:
            os._exit(1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
