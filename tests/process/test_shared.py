"""Shared objects and arrays through real workers: one memory for all, and nothing of it left when the last view goes."""

from __future__ import annotations

import functools
import gc
import multiprocessing
import os
import resource
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import resource_sharer

import numpy as np
import pytest

import shoal
from tests import support
from tests.process import pool_tasks, shared_tasks

#: Promised time for an idle worker to free what nobody holds. Seconds.
FREED_S = 1.0

RECORD = np.dtype([("id", "i4"), ("at", "M8[us]"), ("place", "f8", (2,))])


def freed_everywhere():
    """No segment is mapped any more, here and in every process below."""
    support.eventually(lambda: shared_tasks.mapped() == 0, what="the program to let go", limit_s=support.SETTLE_S)
    worker = support.tree_of(os.getpid())
    support.eventually(lambda: mapped_by(worker) == 0, what="the workers to let go", limit_s=support.SETTLE_S)


def mapped_by(processes):
    count = 0
    for process in processes:
        try:
            with open(f"/proc/{process.pid}/maps", encoding="utf-8") as maps:
                count += sum("memfd:shoal-shared" in line for line in maps)
        except OSError:
            pass  # it has left
    return count


@pytest.fixture
def one(pool_factory):
    """A pool of one worker, and no spare, started before anything is shared, so that a fork inherits nothing."""
    pool = pool_factory(1, spare=False)
    pool.submit(pool_tasks.nothing).result()
    return pool


def views():
    base = shoal.array(np.arange(60.0).reshape(3, 4, 5))
    fixed = base[1:]
    fixed.flags.writeable = False
    return {
        "whole": base,
        "a slice": base[1:, ::2],
        "backwards": base[::-1, :, ::-2],
        "transposed": base.T,
        "Fortran": shoal.zeros((3, 4), order="F"),
        "a field": shoal.zeros(5, RECORD)["at"],
        "structured": shoal.zeros(5, RECORD)[::2],
        "dates": shoal.array(np.array(["2020-01-01", "2021-01-01"], "M8[D]"))[::-1],
        "no dimension": shoal.full((), 3),
        "no elements": shoal.zeros((0, 3)),
        "another type": base.view("i8"),
        "read-only": fixed,
        "broadcast": np.broadcast_to(base, (2, 3, 4, 5), subok=True),
    }


# --- arrays -------------------------------------------------------------------------------------


def test_every_view_arrives_as_it_is_in_the_same_segment_and_comes_back(one):
    for name, array in views().items():
        assert one.submit(shared_tasks.describe, array).result() == shared_tasks.describe(array), name
        assert one.submit(shared_tasks.identity_of, array).result() == shared_tasks.identity_of(array), name
        back = one.submit(pool_tasks.identity, [array]).result()[0]
        assert shared_tasks.describe(back) == shared_tasks.describe(array), name
        assert not array.size or np.shares_memory(array, back), name


def test_writes_are_seen_at_once_on_both_sides(one, make_gate):
    array = shoal.zeros((100, 1000))
    gate = make_gate("writing")
    running = one.submit(shared_tasks.fill_then, array[::-2, 5], 3.0, gate)
    gate.wait_until_entered()
    assert array[99, 5] == 3
    assert array.sum() == 150
    gate.open()
    running.result()


def test_the_parts_of_one_array_are_filled_by_many_workers(pool):
    array = shoal.empty((40, 50), "i4", order="F")
    pool.starmap(shared_tasks.fill, [(array[:, n], n) for n in range(50)])
    assert (array == np.arange(50)).all()


def test_what_is_computed_travels_as_data(one):
    array = shoal.zeros(10)
    for made in (array + 0, array[[1, 2]], array.copy()):
        assert one.submit(shared_tasks.identity_of, made).result() is None
        one.submit(shared_tasks.fill, made, 9).result()
        assert not made.any()


def test_what_a_killed_worker_has_written_is_there(one):
    array = shoal.zeros(100_000)
    with pytest.raises(shoal.WorkerDied):
        one.submit(shared_tasks.fill_and_die, array, 5.0).result()
    assert (array == 5).all()
    one.submit(shared_tasks.fill, array[:10], 6.0).result()
    assert array[:10].sum() == 60


@pytest.mark.parametrize("count", [4, 100_000])
def test_an_array_made_in_a_task_is_returned_uncopied_and_outlives_its_worker(one, count):
    made, identity = one.submit(shared_tasks.make, count).result()
    assert type(made) is shoal.SharedArray
    assert shared_tasks.identity_of(made) == identity
    with pytest.raises(shoal.WorkerDied):
        one.submit(pool_tasks.die).result()
    made[0] += 1
    assert made.sum() == 7 * count + 1


def test_ten_thousand_small_arrays_that_are_returned_cost_few_descriptors(one):
    before = len(os.listdir("/proc/self/fd"))
    made = list(one.map(shared_tasks.make_small, range(10_000)))
    assert len(os.listdir("/proc/self/fd")) - before < 20
    assert all((array == number).all() for number, array in enumerate(made))


def test_an_array_beside_a_pipe_is_still_shared(one):
    reader, writer = multiprocessing.Pipe()
    array = shoal.zeros(4)
    try:
        with reader, writer:
            one.submit(shared_tasks.fill_beside, array, writer).result()
    finally:
        resource_sharer.stop()  # its thread would go on
    assert array[0] == 1


def test_a_fork_inside_a_task_sees_the_same_and_takes_nobodys_place(one):
    array = shoal.zeros(2)
    assert one.submit(shared_tasks.fork_and_use, array).result() == [5, 0, 0, 0, 0, 0]
    assert array.tolist() == [1, 2]


# --- handles ------------------------------------------------------------------------------------


def test_a_handle_arrives_as_one_object_unpickled_once_per_worker(pool, log):
    handle = shoal.share(shared_tasks.Model(log.path, np.ones(1000)))
    outcomes = list(pool.starmap(shared_tasks.score, [(handle, x) for x in range(50)]))
    outcomes += [pool.submit(shared_tasks.score, model=handle, x=n).result() for n in range(5)]
    assert [score for _, score in outcomes] == [1000 * n for n in [*range(50), *range(5)]]
    assert sorted(log.lines()) == sorted({str(pid) for pid, _ in outcomes})


def test_it_is_the_same_object_wherever_it_is_hidden(one):
    handle = shoal.share([1, 2, 3])
    assert one.submit(shared_tasks.is_same, handle, shoal.share(handle)).result()
    _, first = one.submit(shared_tasks.inside, {"a": [0, handle]}).result()
    kind, second = one.submit(shared_tasks.inside, {"a": [0, handle]}).result()
    assert (kind, first) == ("list", second)
    assert one.submit(lambda: handle is not None and len(handle)).result() == 3
    assert one.submit(functools.partial(shared_tasks.length, handle)).result() == 3


def test_a_handle_in_initargs_is_the_object(pool_factory):
    handle = shoal.share(np.ones(5))
    pool = pool_factory(1, initializer=shared_tasks.keep, initargs=(handle,))
    assert pool.submit(shared_tasks.add_kept, 1).result() == 6
    with pytest.raises(shoal.WorkerDied):
        pool.submit(pool_tasks.die).result()
    assert pool.submit(shared_tasks.add_kept, 2).result() == 7


@pytest.mark.parametrize(
    "obj",
    [b"x" * 3_000_000, "é" * 1_000_000, list(range(1000)), (), bytearray(70_000)],
    ids=lambda obj: type(obj).__name__,
)
def test_anything_can_be_shared(one, obj):
    handle = shoal.share(obj)
    assert one.submit(shared_tasks.length, handle).result() == len(obj)
    assert handle.value == obj


def test_a_shared_array_inside_is_a_read_only_picture_of_its_values(one):
    array = shoal.full(3, 2.0)
    handle = shoal.share({"a": array})
    array[...] = 3
    assert one.submit(lambda d: d["a"].tolist(), handle).result() == [2, 2, 2]
    assert not handle.value["a"].flags.writeable


def test_writing_to_it_is_refused_with_what_to_do_instead(one):
    handle = shoal.share(np.zeros(5))
    with pytest.raises(ValueError, match="read-only") as caught:
        one.submit(shared_tasks.fill, handle, 1).result()
    assert "shoal.array()" in "".join(caught.value.__notes__)
    assert not handle.value.any()


def test_a_task_may_share_and_return(one):
    assert one.submit(shared_tasks.make_shared, 5).result().tolist() == [0, 1, 2, 3, 4]


def test_a_handle_may_be_dropped_while_tasks_wait_for_it(one, gate):
    one.submit(gate.enter)
    gate.wait_until_entered()
    handle = shoal.share(np.ones(100_000))
    waiting = [one.submit(shared_tasks.total, handle) for _ in range(20)]
    del handle
    gc.collect()
    gate.open()
    assert [future.result() for future in waiting] == [100_000] * 20
    del waiting
    freed_everywhere()


def test_one_handle_serves_two_pools_and_outlives_both(pool_factory):
    handle = shoal.share(np.ones(1000))
    for _ in range(2):
        first, second = pool_factory(1), pool_factory(1)
        futures = [pool.submit(shared_tasks.total, handle) for pool in (first, second) for _ in range(5)]
        assert [future.result() for future in futures] == [1000] * 10
        first.shutdown()
        assert second.submit(shared_tasks.total, handle).result() == 1000
        second.shutdown()
    assert handle.value.sum() == 1000


@pytest.mark.start_methods("forkserver")
def test_a_pool_in_a_task_shares_with_its_own_workers(one):
    array = shoal.zeros(4)
    assert one.submit(shared_tasks.in_a_pool_of_its_own, array).result() == 8
    assert array.tolist() == [0, 4, 4, 0]


@pytest.mark.start_methods("forkserver")
def test_threads_may_share_use_and_drop_at_the_same_time(pool):
    def work(seed):
        for number in range(15):
            handle, array = shoal.share(np.full(20_000, seed)), shoal.full(3, number)
            assert pool.submit(shared_tasks.total, handle).result() == 20_000 * seed
            pool.submit(shared_tasks.fill, array, seed).result()
            assert array.tolist() == [seed] * 3

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(work, range(4)))
    freed_everywhere()


# --- letting go ---------------------------------------------------------------------------------

USES = {
    "an argument": lambda pool, obj: pool.submit(pool_tasks.nothing, obj).result(),
    "there and back": lambda pool, obj: pool.submit(pool_tasks.identity, obj).result(),
    "twice there and back": lambda pool, obj: pool.submit(
        pool_tasks.identity, pool.submit(pool_tasks.identity, obj).result()
    ).result(),
    "a closure": lambda pool, obj: pool.submit(lambda: len(obj)).result(),
    "a partial": lambda pool, obj: pool.submit(functools.partial(shared_tasks.length, obj)).result(),
    "a map": lambda pool, obj: list(pool.map(shared_tasks.length, [obj] * 10)),
    "kept by the worker for a while": lambda pool, obj: (
        pool.submit(shared_tasks.keep, obj).result(),
        pool.submit(shared_tasks.kept).result(),
        pool.submit(pool_tasks.nothing, pool.submit(shared_tasks.kept).result()).result(),
        pool.submit(shared_tasks.keep, None).result(),
    ),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
@pytest.mark.parametrize(
    "make", [lambda: shoal.zeros(100_000), lambda: shoal.share(np.ones(100_000))], ids=["array", "handle"]
)
@pytest.mark.start_methods("forkserver")
def test_memory_is_freed_in_every_process_when_the_last_view_goes(one, make, use):
    obj = make()
    use(one, obj)
    del obj
    freed_everywhere()


def test_an_idle_worker_lets_go_within_a_second(one):
    handle, array = shoal.share(np.ones(100_000)), shoal.zeros(100_000)
    one.submit(shared_tasks.nap_holding, (handle, array)).result()
    tree = support.tree_of(os.getpid())
    assert mapped_by(tree) == 2
    del handle, array
    assert shared_tasks.mapped() == 0
    support.eventually(lambda: mapped_by(tree) == 0, what="the worker to let go", limit_s=FREED_S)


@pytest.mark.parametrize(
    "make", [lambda n: shared_tasks.make, lambda n: shared_tasks.make_shared], ids=["array", "handle"]
)
@pytest.mark.parametrize("end", [lambda pool: pool.shutdown(), lambda pool: pool.submit(pool_tasks.die).exception()])
@pytest.mark.start_methods("forkserver")
def test_what_a_task_made_is_freed_though_its_worker_is_gone(one, make, end):
    made = one.submit(make(0), 100_000).result()
    end(one)
    del made
    freed_everywhere()


@pytest.mark.start_methods("forkserver")
def test_memory_returns_to_the_system(one):
    def shmem():
        with open("/proc/meminfo", encoding="ascii") as info:
            return next(int(line.split()[1]) for line in info if line.startswith("Shmem:")) >> 10

    before = shmem()
    array = shoal.zeros(400 << 17)
    one.submit(pool_tasks.identity, array[::100]).result()
    assert shmem() > before + 200
    del array
    support.eventually(lambda: shmem() < before + 200, what="the memory to come back", limit_s=support.SETTLE_S)


# --- a fork of the program ----------------------------------------------------------------------


@pytest.mark.start_methods("forkserver")
def test_a_fork_of_the_program_and_the_program_go_on_with_what_is_shared(one):
    array, board, handle = shoal.zeros(4), shoal.zeros(4), shoal.share(np.ones(5))
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            made = [shoal.full(4, 8.0) for _ in range(100)]
            array[0] = handle.value.sum()
            board[0] = sum(np.shares_memory(each, array) for each in made)
            code = 0 if all((each == 8).all() for each in made) else 2
        finally:
            os._exit(code)
    made = [shoal.full(4, 9.0) for _ in range(100)]
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert all((each == 9).all() for each in made)
    assert (array[0], board[0]) == (5, 0)
    one.submit(shared_tasks.fill, array, 2).result()
    assert array.sum() == 8
    assert one.submit(shared_tasks.total, handle).result() == 5


# --- overlapping writes -------------------------------------------------------------------------


def fixed(array):
    view = array[...]
    view.flags.writeable = False
    return view


PAIRS = {
    "neighbours": (lambda a: (a[:5], a[5:]), False),
    "columns": (lambda a: (a[:, 0], a[:, 1]), False),
    "even and odd rows": (lambda a: (a[::2], a[1::2][::-1]), False),
    "both read-only": (lambda a: (fixed(a), fixed(a)), False),
    "one read-only": (lambda a: (a, fixed(a)), False),
    "one a copy": (lambda a: (a, a.copy()), False),
    "the same": (lambda a: (a, a), True),
    "a row in common": (lambda a: (a[:6], a[:4:-1]), True),
    "one element": (lambda a: (a[3], a.T[1]), True),
    "hidden": (lambda a: ({"x": [a[:3]]}, (1, a[2:])), True),
}


@pytest.mark.parametrize(("parts", "refused"), PAIRS.values(), ids=PAIRS)
@pytest.mark.start_methods("forkserver")
def test_a_debug_pool_refuses_what_two_workers_may_write_at_once(pool_factory, make_gate, parts, refused):
    pool = pool_factory(2, debug=True)
    one, other = parts(shoal.zeros((10, 10)))
    gates = make_gate("one"), make_gate("other")
    running = pool.submit(shared_tasks.hold, one, gates[0])
    gates[0].wait_until_entered()
    gates[1].open()
    second = pool.submit(shared_tasks.hold, other, gates[1])
    error = second.exception()
    assert isinstance(error, shoal.OverlappingWrites) == refused == (error is not None)
    if refused:
        assert error.task.startswith("hold(")
        assert error.other.startswith("hold(")
    gates[0].open()
    assert running.exception() is None
    assert pool.submit(shared_tasks.hold, other, gates[1]).exception() is None  # nobody runs any more


@pytest.mark.start_methods("forkserver")
def test_the_same_worker_may_be_given_the_same_part_again_and_again(pool_factory):
    pool, array = pool_factory(1, debug=True), shoal.zeros(10)
    list(pool.map(shared_tasks.nap_holding, [array] * 3))
    assert [pool.submit(shared_tasks.fill, array, 1).exception() for _ in range(5)] == [None] * 5


@pytest.mark.start_methods("forkserver")
def test_a_task_that_runs_again_after_a_death_does_not_overlap_with_itself(pool_factory, log):
    pool, array = pool_factory(2, debug=True, retries=2, backoff_s=0.0), shoal.zeros(10)
    assert pool.submit(shared_tasks.die_holding, array, log).result() == 3


@pytest.mark.start_methods("forkserver")
def test_an_item_of_a_map_that_overlaps_fails_alone(pool_factory, gate):
    pool, array = pool_factory(2, debug=True), shoal.zeros(10)
    running = pool.submit(shared_tasks.hold, array[3:4], gate)
    gate.wait_until_entered()
    outcomes = list(pool.imap(pool_tasks.nothing, [array[n : n + 1] for n in range(10)], errors="return"))
    assert [n for n, one in enumerate(outcomes) if isinstance(one, shoal.OverlappingWrites)] == [3]
    gate.open()
    running.result()


# --- shortage -----------------------------------------------------------------------------------


@pytest.mark.start_methods("forkserver")
def test_without_descriptors_sharing_is_refused_and_the_pool_goes_on(one):
    one.submit(shared_tasks.total, shoal.share(np.ones(5))).result()
    gc.collect()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 20, hard))
    kept = []
    try:
        with pytest.raises(shoal.NoSharedMemory, match="no descriptors left"):
            while True:
                kept.append(shoal.share(np.ones(5)))
        assert one.submit(shared_tasks.total, kept[0]).result() == 5
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    del kept[:]
    assert one.submit(shared_tasks.total, shoal.share(np.ones(6))).result() == 6


def test_without_numpy_objects_are_shared_and_arrays_are_refused_in_words(run_script):
    done = run_script("""
        import sys
        sys.modules["numpy"] = None
        import shoal

        if __name__ == "__main__":
            with shoal.Pool(1) as pool:
                handle = shoal.share({"a": b"x" * 100_000})
                print(pool.submit(len, handle).result(), len(handle.value["a"]))
            try:
                shoal.empty
            except ImportError as error:
                print(error)
        """)
    assert done.stderr == ""
    assert done.stdout.splitlines() == ["1 100000", 'shared arrays need numpy: pip install "shoal[numpy]"']


def test_nothing_is_said_at_the_end_of_a_program_that_still_shares(run_script):
    done = run_script("""
        import numpy, shoal
        if __name__ == "__main__":
            pool = shoal.Pool(1)
            handle, array = shoal.share(numpy.ones(10)), shoal.zeros(10)
            cycle = [handle.value, array, pool.submit(len, array).result()]
            cycle.append(cycle)
            print(cycle[2])
        """)
    assert (done.returncode, done.stdout, done.stderr) == (0, "10\n", "")
