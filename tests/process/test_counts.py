"""What a task costs in system calls and in bytes through the kernel: the same counts on a slow machine and a fast one.

One program goes through all phases under `tests/tracing.py`; each test reads the phase it is about. Bounds lie above
what was measured (Linux 6.18, x86-64, CPython 3.11, two processors; the figure stands beside the bound), so that one
more call or one more copy for each task breaks them and the forming of batches does not.

Looking before sleeping is not counted: a read or a wait that found nothing is not `fruitful`.
"""

from __future__ import annotations

import pytest

from tests import support, tracing

PROGRAM = """
import os
import sys
import traceback

import numpy as np

import shoal
from tests import tracing, wakeups
from tests.process import count_tasks, pool_tasks
from tests.process.pool_tasks import nap, nothing

SIZE = 10_000_000


def one_after_the_other(pool):
    for _ in range(50):
        pool.submit(nothing).result()


def submits_to_the_busy(pool):
    fifos = [f"{sys.argv[1]}/{number}" for number in range(2)]
    for fifo in fifos:
        os.mkfifo(fifo)
    held = [pool.submit(count_tasks.hold, fifo) for fifo in fifos]
    ends = [open(fifo, "w") for fifo in fifos]  # each worker has opened its own
    wakeups.come_to_rest()
    with tracing.phase("submits to the busy"):
        futures = [pool.submit(nothing) for _ in range(5_000)]
    with tracing.phase("results of the busy"):
        for end in ends:
            end.close()
        for future in held + futures:
            future.result()


def small_tasks(pool):
    wakeups.come_to_rest()
    with tracing.phase("one after the other"):
        one_after_the_other(pool)
    wakeups.come_to_rest()
    with tracing.phase("map of no-ops"):
        assert len(list(pool.map(nothing, range(100_000)))) == 100_000
    numbers = list(range(100_000))
    wakeups.come_to_rest()
    with tracing.phase("map of numbers"):
        assert list(pool.map(pool_tasks.identity, numbers)) == numbers
    submits_to_the_busy(pool)
    wakeups.come_to_rest()
    with tracing.phase("map of naps"):
        list(pool.map(nap, [0.003] * 40))
    wakeups.come_to_rest()
    with tracing.phase("one after the other, with a deadline"):
        one_after_the_other(pool.using(timeout=100))


def large_data(pool):
    array = np.ones(SIZE, "u1")
    shared = shoal.empty(SIZE, "u1")
    for run in ("first", "second"):
        with tracing.phase(f"{run} array as argument"):
            pool.submit(nothing, array).result()
        with tracing.phase(f"{run} array as result"):
            assert pool.submit(count_tasks.array_of, SIZE).result().nbytes == SIZE
    with tracing.phase("bytes as argument"):
        pool.submit(nothing, array.tobytes()).result()
    with tracing.phase("bytes as result"):
        assert len(pool.submit(bytes, SIZE).result()) == SIZE
    with tracing.phase("one array in many items"):
        list(pool.map(nothing, [array] * 16))
    pool.submit(count_tasks.same, shared).result()
    with tracing.phase("shared array there and back"):
        assert pool.submit(count_tasks.same, shared).result().nbytes == SIZE


def run(pool, story):
    try:
        list(pool.map(nap, [0.003] * 20))
        one_after_the_other(pool)
        story(pool)
    except BaseException:
        traceback.print_exc()
        os._exit(1)  # closing the pool might wait for a worker that waits for us


if __name__ == "__main__":
    with shoal.Pool(2) as pool:
        run(pool, small_tasks)
    with shoal.Pool(1, spare=False) as pool:
        run(pool, large_data)
"""

CALLS, ITEMS, SUBMITS, NAPS = 50, 100_000, 5_000, 40
SIZE = 10_000_000

SENDS = "sendto", "sendmsg"
RECEIVES = "recvfrom", "recvmsg"
#: Every call that hands bytes to the kernel, or takes them from it.
WRITES = (*SENDS, "write", "writev", "pwrite64", "pwritev", "sendfile")
READS = (*RECEIVES, "read", "readv", "pread64", "preadv")
WAITS = "epoll_wait", "epoll_pwait", "epoll_pwait2", "poll", "ppoll", "pselect6"
MEMORY_CALLS = "mmap", "mremap", "munmap", "brk", "madvise"
#: Threads of the program that meet at the interpreter's lock: how often is the scheduler's doing.
MEETING = ("futex",)
NAMED = {*WRITES, *READS, *WAITS, *MEMORY_CALLS, *MEETING, "epoll_ctl", "rt_sigaction"}

#: Calls of the program for each result that is waited for.
PER_RESULT = {
    "send": 1.1,  # 1.00
    "receive": 1.1,  # 1.00
    "wait": 8.0,  # 1.5 to 1.9; 4.4 if two threads look at the same time
    "epoll_ctl": 2.6,  # 2.0: the background thread is kept asleep, and let go
    "rt_sigaction": 2.6,  # 2.0 to 2.2: Ctrl-C is held back, and let through
    "wake": 0.6,  # 0 to 0.34: the background thread is not called
    "memory": 0.5,  # 0.00 to 0.04: room to read into comes from the allocator, not from the system
    "other": 0.3,  # 0.06, and those are the marks of the phase
}


@pytest.fixture(scope="module")
def phases(tmp_path_factory):
    """What the program called, by phase. Nothing of it runs any more."""
    script = support.write_script(tmp_path_factory.mktemp("counts"), PROGRAM)
    try:
        traced = tracing.trace(script, script.parent, env=support.program_environment(), limit_s=support.HANG_LIMIT_S)
    except tracing.RefusedHereError as reason:
        pytest.skip(f"system calls cannot be traced here: {reason}")
    return traced.phases


def program_calls(phase):
    """Calls of the program by what they are for. What found nothing, and meeting at a lock, is left out."""
    return {
        "send": phase.calls(*SENDS, role="program").count,
        "receive": phase.calls(*RECEIVES, role="program").fruitful,
        "wait": phase.calls(*WAITS, role="program").fruitful,
        "epoll_ctl": phase.calls("epoll_ctl", role="program").count,
        "rt_sigaction": phase.calls("rt_sigaction", role="program").count,
        "wake": phase.calls("write", role="program", target="eventfd").count,
        "memory": phase.calls(*MEMORY_CALLS, role="program").count,
        "other": sum(calls.count for role, name, _, calls in phase.rows if role == "program" and name not in NAMED),
    }


def all_calls(phase):
    """Every call of every process but meeting at a lock."""
    return phase.calls().count - phase.calls(*MEETING).count


def bytes_sent(phase, role=None):
    """What was handed to the kernel, copies into shared memory aside."""
    return phase.calls(*WRITES, role=role).amount - phase.calls(*WRITES, role=role, target="memory").amount


def bytes_copied(phase):
    """What was copied into shared memory by the kernel. Warm memory is written without it, and not counted."""
    return phase.calls(*WRITES, target="memory").amount


# --- one task -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["one after the other", "one after the other, with a deadline"])
def test_result_that_is_waited_for_costs_one_message_each_way_and_no_thread(phases, name):
    phase = phases[name]
    for kind, count in program_calls(phase).items():
        assert count <= PER_RESULT[kind] * CALLS, f"{kind}: {count / CALLS} for each result\n{phase}"


@pytest.mark.parametrize("name", ["one after the other", "one after the other, with a deadline"])
def test_worker_makes_two_calls_for_each_task(phases, name):
    phase = phases[name]
    assert phase.calls(*SENDS, role="worker").count <= 1.05 * CALLS, str(phase)  # 1.00
    found = phase.calls(role="worker").count - phase.calls(*RECEIVES, role="worker").count
    found += phase.calls(*RECEIVES, role="worker").fruitful
    assert found <= 2.1 * CALLS, str(phase)  # 1.96: those who slept as the phase ended are not counted
    # It looks, then it sleeps: 0.98 looks in vain, since tracing makes each look as long as all looking may take.
    assert phase.calls(*RECEIVES, role="worker").count <= 2.4 * CALLS, str(phase)


def test_small_task_is_a_hundred_bytes_both_ways(phases):
    phase = phases["one after the other"]
    assert bytes_sent(phase, "program") <= 64 * CALLS, str(phase)  # 60
    assert bytes_sent(phase, "worker") <= 50 * CALLS, str(phase)  # 47


# --- many tasks ---------------------------------------------------------------------------------


def test_items_of_a_map_cost_no_calls_of_their_own(phases):
    assert all_calls(phases["map of no-ops"]) <= 0.01 * ITEMS, str(phases["map of no-ops"])  # 0.001 to 0.003
    assert all_calls(phases["map of numbers"]) <= 0.01 * ITEMS, str(phases["map of numbers"])  # 0.002 to 0.003


def test_items_of_a_map_travel_as_their_pickle_and_nothing_else(phases):
    """A range goes as three numbers, None comes as one byte, a number as 3.7. What is taken back goes again."""
    phase = phases["map of no-ops"]
    assert bytes_sent(phase, "program") <= 0.3 * ITEMS, str(phase)  # 0.03 to 0.07
    assert bytes_sent(phase, "worker") <= 8.0 * ITEMS, str(phase)  # 1.03 to 1.05; 3.7 if all stretches are short
    phase = phases["map of numbers"]
    assert bytes_sent(phase, "program") <= 8.0 * ITEMS, str(phase)  # 3.7 to 4.2
    assert bytes_sent(phase, "worker") <= 14.0 * ITEMS, str(phase)  # 3.7; 9.8 once, when all stretches were short


def test_submit_to_busy_workers_sends_nothing_and_wakes_nobody(phases):
    phase = phases["submits to the busy"]
    assert phase.calls(*SENDS).count <= 5, str(phase)  # 0
    assert phase.calls(role="worker").count <= 5, str(phase)  # 0
    assert program_calls(phase)["wake"] <= 0.05 * SUBMITS, str(phase)  # 0.004
    assert all_calls(phase) <= 0.6 * SUBMITS, str(phase)  # 0.09: now and then the submitting thread reads


def test_submitted_tasks_that_wait_travel_together(phases):
    phase = phases["results of the busy"]
    assert all_calls(phase) <= 0.3 * SUBMITS, str(phase)  # 0.07
    assert bytes_sent(phase, "program") <= 120 * SUBMITS, str(
        phase
    )  # 50; 60 to 87 if many are taken back from one worker
    assert bytes_sent(phase, "worker") <= 60 * SUBMITS, str(phase)  # 31; 43 if each travels alone


def test_task_of_some_milliseconds_costs_one_message_each_way(phases):
    phase = phases["map of naps"]
    counts = program_calls(phase)
    for kind, most in {**PER_RESULT, "wake": 0.9}.items():
        assert counts[kind] <= most * NAPS, f"{kind}: {counts[kind] / NAPS} for each task\n{phase}"
    assert phase.calls(*SENDS, role="worker").count <= 1.1 * NAPS, str(phase)  # 1.00
    assert bytes_sent(phase, "program") <= 90 * NAPS, str(phase)  # 75 to 78
    assert bytes_sent(phase, "worker") <= 75 * NAPS, str(phase)  # 70


# --- large data ---------------------------------------------------------------------------------

LARGE = [
    *(f"{run} array as {what}" for run in ("first", "second") for what in ("argument", "result")),
    "bytes as argument", "bytes as result", "one array in many items", "shared array there and back",
]  # fmt: skip


@pytest.mark.parametrize("name", LARGE)
def test_large_data_does_not_go_through_sockets(phases, name):
    assert bytes_sent(phases[name]) <= 8_000, str(phases[name])  # 0.2 to 0.5 KB; 3.7 KB for 16 items
    assert phases[name].calls(*RECEIVES).amount <= 8_000, str(phases[name])


@pytest.mark.parametrize("name", LARGE)
def test_large_data_is_copied_once_at_most(phases, name):
    assert bytes_copied(phases[name]) <= SIZE + 1_000, str(
        phases[name]
    )  # one copy, and a few bytes of pickle around it


@pytest.mark.parametrize("name", ["second array as argument", "second array as result", "shared array there and back"])
def test_warm_and_shared_memory_costs_the_kernel_no_copy(phases, name):
    assert bytes_copied(phases[name]) == 0, str(phases[name])


@pytest.mark.parametrize("name", ["second array as argument", "second array as result", "shared array there and back"])
def test_large_data_costs_a_handful_of_calls(phases, name):
    calls = all_calls(phases[name]) - phases[name].calls(*WAITS).count
    assert calls <= 40, str(phases[name])  # 19 to 25
    assert phases[name].calls(*MEMORY_CALLS).count <= 6, str(phases[name])  # 2: mapped and unmapped, by who receives it
