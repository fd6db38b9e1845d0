"""What runs out (room in the arena, descriptors, address space) costs speed or one clear error, never data, never a hang.

Programs of their own, because the limits are the process's. The same without numpy.
"""

from __future__ import annotations

import numpy as np
import pytest

from tests.process import data_tasks as tasks

LARGE = 3_000_000


# --- room in the arena --------------------------------------------------------------------------


@pytest.mark.start_methods("forkserver", "fork")
@pytest.mark.parametrize("limit", [1, "5MiB"])
def test_with_little_room_everything_goes_all_the_same(pool_factory, limit):
    pool = pool_factory(2, shared_memory_limit=limit)
    mine = [tasks.filled(n, (100_000, 300_000, LARGE)[n % 3]) for n in range(30)]
    assert list(pool.map(tasks.seen, mine)) == [*range(30)]
    assert [tasks.seen(value) for value in pool.imap(tasks.add_one, mine, ordered=True)] == [*range(1, 31)]
    futures = [pool.submit(tasks.identity, value) for value in mine]
    held = [future.result() for future in futures]
    assert [tasks.seen(value) for value in held] == [*range(30)]
    assert pool.submit(lambda: [tasks.seen(value) for value in mine]).result() == [*range(30)]
    assert pool._engine.depot.held_bytes <= 5 << 20


@pytest.mark.start_methods("forkserver")
def test_a_map_of_many_arrays_whose_descriptors_find_no_room_is_right(pool_factory, monkeypatch):
    """What then travels inside the frames must not be written over before it is sent."""
    monkeypatch.setattr("shoal._wire.courier.Courier._pass", lambda *_: None)
    pool = pool_factory(2)
    for nbytes in (300_000, 600_000):
        assert list(pool.map(tasks.seen, [tasks.filled(n, nbytes) for n in range(120)])) == [*range(120)]


@pytest.mark.start_methods("forkserver")
def test_a_result_of_more_descriptors_than_a_socket_takes_arrives(pool_factory):
    got = pool_factory(1).submit(many, 290, 2_100_000).result()
    assert [value[0] for value in got] == [n % 251 for n in range(290)]


def many(count, nbytes):
    base = np.zeros(nbytes, np.uint8)
    made = []
    for n in range(count):
        made.append(base.copy())
        made[-1][:10] = n % 251
    return made


# --- programs with limits -----------------------------------------------------------------------

PROGRAM = """
import os, resource, sys
import numpy as np
import shoal
from tests.process import data_tasks as tasks

LARGE = 3_000_000
FINE = (shoal.NoSharedMemory, MemoryError)

def few_descriptors(count):
    resource.setrlimit(resource.RLIMIT_NOFILE, (count, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))

def little_space(mib):
    with open("/proc/self/statm") as file:
        now = int(file.read().split()[0]) * 4096
    resource.setrlimit(resource.RLIMIT_AS, (now + (mib << 20), resource.RLIM_INFINITY))

def all_space():
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)

def opens_a_file(_):
    with open("/dev/null"):
        return len(os.listdir("/proc/self/fd"))

def tried(future):
    error = future.exception(timeout=20)
    if error is not None and not isinstance(error, FINE):
        raise error
    return error is None

"""


def check(run_script, start_method, body, *words):
    done = run_script(PROGRAM + body, start_method, *words)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1:] == ["right"], done.stdout + done.stderr
    assert "unexpected failure" not in done.stderr


DESCRIPTORS = """
if __name__ == "__main__":
    few_descriptors(140)
    with shoal.Pool(1, start_method=sys.argv[1]) as pool:
        held = [pool.submit(tasks.filled, n, LARGE).result(timeout=20) for n in range(100)]
        assert [tasks.seen(value) for value in held] == [*range(100)]
        assert pool.submit(opens_a_file, 0).result(timeout=20) < 140  # the worker has some left for itself
        del held
        pool.submit(tasks.nap_and_see, 0.3, np.zeros(1, "u1"))
        futures = [pool.submit(tasks.seen, tasks.filled(n, LARGE)) for n in range(100)]
        assert opens_a_file(0) < 140  # so has the program
        assert [future.result(timeout=20) for future in futures] == [*range(100)]
        assert list(pool.map(tasks.seen, [tasks.filled(n, LARGE) for n in range(100)])) == [*range(100)]
    print("right")
"""


@pytest.mark.start_methods("forkserver")
def test_many_results_and_arguments_leave_descriptors_for_the_program_and_its_tasks(run_script, start_method):
    check(run_script, start_method, DESCRIPTORS)


EXHAUSTED = """
def take_all(left):
    taken = []
    while True:
        try:
            taken.append(os.dup(0))
        except OSError:
            break
    for _ in range(left):
        os.close(taken.pop())
    tasks.STATE["taken"] = taken
    return len(taken)

def work(pool, rounds):
    went = 0
    for n in range(rounds):
        value = tasks.filled(n, LARGE)
        future = pool.submit(tasks.add_one, value)
        went += tried(future) and tasks.seen(future.result()) == n + 1
    return went

if __name__ == "__main__":
    method, where = sys.argv[1:]
    for left in range(4):
        with shoal.Pool(1, start_method=method, spare=False) as pool:
            work(pool, 3)
            few_descriptors(120) if where == "program" else pool.submit(few_descriptors, 120).result()
            take_all(left) if where == "program" else pool.submit(take_all, left).result()
            went = work(pool, 12)
            for fd in tasks.STATE.pop("taken", ()):
                os.close(fd)
            if where == "worker":
                pool.submit(exec, "import os; from tests.process.data_tasks import STATE\\nfor fd in STATE.pop('taken'): os.close(fd)")
            assert work(pool, 5) == 5, "after the shortage all is well"
            assert pool.statistics().workers_lost == 0
            print(left, "left:", went, "of 12 went")
    print("right")
"""


@pytest.mark.start_methods("forkserver")
@pytest.mark.parametrize("where", ["program", "worker"])
def test_without_any_descriptors_work_goes_on_or_says_why_not(run_script, start_method, where):
    check(run_script, start_method, EXHAUSTED, where)


SPACE = """
if __name__ == "__main__":
    method, where = sys.argv[1:]
    big = 400 << 20
    with shoal.Pool(1, start_method=method) as pool:
        pool.submit(tasks.filled, 1, LARGE).result()
        little_space(256) if where == "program" else pool.submit(little_space, 256).result()
        futures = [pool.submit(tasks.filled, 1, big), pool.submit(tasks.filled, 2, LARGE), pool.submit(abs, -1)]
        if where == "worker":
            futures.insert(0, pool.submit(tasks.total, np.ones(big, "u1")))
        went = [tried(future) for future in futures]
        assert went[-2:] == [True, True], went
        assert tasks.seen(futures[-2].result()) == 2
        try:
            list(pool.map(len, [[bytes(LARGE)] * 5, bytes(LARGE)]))
            if where == "program":
                list(pool.map(len, [bytes(200 << 20), bytes(200 << 20)]))
        except MemoryError:
            pass
        del futures
        all_space() if where == "program" else pool.submit(all_space).result(timeout=20)
        assert pool.submit(tasks.total, np.ones(100 << 20, "u1")).result(timeout=20) == 100 << 20
    print("right")
"""


@pytest.mark.start_methods("forkserver")
@pytest.mark.parametrize("where", ["program", "worker"])
def test_without_address_space_one_task_fails_clearly_and_the_next_goes(run_script, start_method, where):
    check(run_script, start_method, SPACE, where)


FILE_SIZE = """
if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, resource.RLIM_INFINITY))
    with shoal.Pool(1, start_method=sys.argv[1]) as pool:
        assert pool.submit(tasks.total, np.ones(8 << 20, "u1")).result(timeout=20) == 8 << 20
        assert tasks.seen(pool.submit(tasks.filled, 3, 8 << 20).result(timeout=20)) == 3
        assert pool.statistics().workers_lost == 0
    print("right")
"""


@pytest.mark.start_methods("forkserver", "spawn")
def test_a_limit_on_file_sizes_sends_data_by_socket(run_script, start_method):
    check(run_script, start_method, FILE_SIZE)


# --- without numpy ------------------------------------------------------------------------------

WITHOUT_NUMPY = """
import sys
sys.modules["numpy"] = None
import array, os, time
import shoal

def turned(value):
    assert "numpy" not in sys.modules or sys.modules["numpy"] is None
    if isinstance(value, memoryview):
        value[:4] = b"abcd"
    return value

def waits(path, value):
    while not os.path.exists(path):
        time.sleep(0.001)
    return len(value)

if __name__ == "__main__":
    nbytes = 3_000_000
    with shoal.Pool(2, start_method=sys.argv[1]) as pool:
        for value in (bytes(nbytes), bytearray(nbytes), array.array("d", bytes(nbytes)), "x" * nbytes):
            assert pool.submit(turned, value).result() == value
            assert list(pool.map(turned, [value] * 4)) == [value] * 4
        view = memoryview(bytearray(nbytes))
        got = pool.submit(turned, view).result()
        assert bytes(got[:6]) == b"abcd\\0\\0" and view[0] == 0
        del got
        for value in (bytes(nbytes), view, {"all": [bytes(nbytes), view]}):
            depot, name = pool._engine.depot, f"go{id(value)}"
            while depot.used_bytes:
                time.sleep(0.001)
            future = pool.submit(waits, name, value)
            assert depot.used_bytes >= nbytes  # it went into the arena
            open(name, "w").close()
            future.result()
        shared = shoal.share({"a": bytes(nbytes)})
        assert pool.submit(turned, shared).result() == {"a": bytes(nbytes)}
        try:
            shoal.zeros(10)
        except ImportError as error:
            assert "shoal[numpy]" in str(error)
        else:
            raise AssertionError("no numpy, no arrays")
    assert sys.modules["numpy"] is None
    print("right")
"""


@pytest.mark.start_methods("forkserver", "spawn")
def test_without_numpy_all_else_works_and_bytes_go_through_the_arena(run_script, start_method):
    done = run_script(WITHOUT_NUMPY, start_method)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["right"], done.stdout + done.stderr
