"""A thread that does harm to random workers of a pool, and what has to hold under it.

Role: shared by `test_storm.py` and the long runs in `tests/stress`. Owner: the test process.
"""

from __future__ import annotations

import concurrent.futures
import functools
import os
import random
import signal
import threading
import time
from collections import Counter

from shoal._os import processes
from tests.crash import tasks

#: One death this often. Seconds.
PERIOD_S = 0.02
#: A third death would make a task poison, so the storm lets up until it has surely had its third run. Seconds.
MERCY_S = 0.3


class Storm:
    """Sends `signum` to a random worker every `period_s`, as long as the `with` block lasts.

    Spared are workers that are still starting: dying thrice in a row while starting has an outcome of its own. And when
    a task was hit twice the storm lets up for `MERCY_S`: one more time would make it poison.
    Only workers that `pool.workers` shows may be hit, and through a pidfd, so never a process of somebody else's.
    """

    def __init__(self, pool, signum=signal.SIGKILL, period_s=PERIOD_S, seed=0):
        self.hits = 0
        self._pool = pool
        self._signum = signum
        self._period_s = period_s
        self._random = random.Random(seed)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._blow, name="storm")
        self._problem = None
        self._victims = Counter()
        self._dead = set()

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._over.set()
        self._thread.join()
        assert self._problem is None, self._problem

    def _blow(self):
        try:
            while not self._over.wait(self._period_s):
                while self._somebody_was_hit_twice() and not self._over.wait(MERCY_S):
                    pass
                workers = [one for one in self._pool.workers if one.pid and self._may_hit(one)]
                if workers:
                    self._hit(self._random.choice(workers))
        except Exception as problem:
            self._problem = problem

    def _somebody_was_hit_twice(self):
        """Whether that has happened since the last look."""
        twice = False
        for death in self._pool.statistics().deaths:
            if death.task is not None and death.worker not in self._dead:
                self._dead.add(death.worker)
                self._victims[death.task] += 1
                twice = twice or self._victims[death.task] == 2
        return twice

    def _may_hit(self, worker):
        return worker.state in {"idle", "busy", "spare"} and self._victims[worker.task] < 2

    def _hit(self, worker):
        try:
            pidfd = processes.pidfd_open(worker.pid)
        except ProcessLookupError:
            return
        try:
            # Since the snapshot the pid may have been given to somebody else, in theory, and the worker to another task.
            now = [one for one in self._pool.workers if one.pid == worker.pid and self._may_hit(one)]
            if now and processes.kill_pidfd(pidfd, self._signum):
                self.hits += 1
        finally:
            os.close(pidfd)


def submit_through(pool, count, task_s, **storm):
    """Submit `count` tasks one by one under a storm; every result right, none twice."""
    told = Counter()
    lock = threading.Lock()

    def note(index):
        def callback(_future):
            with lock:
                told[index] += 1

        return callback

    with Storm(pool, **storm) as hits:
        futures = []
        for index in range(count):
            future = pool.submit(tasks.square_slowly, index, task_s)
            future.add_done_callback(note(index))
            futures.append(future)
        concurrent.futures.wait(futures)
    assert [future.result() for future in futures] == [index * index for index in range(count)]
    _wait_for(lambda: sum(told.values()) >= count)
    assert set(told.values()) == {1}
    check_accounts(pool, count)
    return hits.hits


def map_through(pool, count, task_s, **storm):
    """Map over `count` items under a storm, in each way a map can be asked for."""
    square = functools.partial(tasks.square_slowly, seconds=task_s)
    wanted = [index * index for index in range(count)]
    with Storm(pool, **storm) as hits:
        assert list(pool.map(square, range(count))) == wanted
        assert list(pool.imap(square, iter(range(count)))) == wanted
        assert sorted(pool.imap(square, iter(range(count)), ordered=False)) == wanted
        assert pool.starmap(tasks.add, [(index, index) for index in range(count)]) == [2 * n for n in range(count)]
    check_accounts(pool, 4 * count)
    return hits.hits


def map_with_failures_through(pool, count, task_s, **storm):
    """A map some of whose items raise: these errors and no others, each in its place."""
    with Storm(pool, **storm) as hits:
        fail = functools.partial(tasks.fail_on_sevens, seconds=task_s)
        got = list(pool.imap(fail, range(count), errors="return"))
    for index, value in enumerate(got):
        if index % 7 == 0:
            assert type(value) is tasks.Boom
            assert str(value) == str(index)
        else:
            assert value == index * index
    assert len(got) == count
    return hits.hits


def check_accounts(pool, count):
    """Everything that was asked for was done, once."""
    _wait_for(lambda: pool.statistics().queued == pool.statistics().running == 0)
    statistics = pool.statistics()
    assert (statistics.submitted, statistics.done, statistics.failed, statistics.cancelled) == (count, count, 0, 0)


def _wait_for(check, limit_s=10.0):
    end = time.monotonic() + limit_s
    while not check():
        assert time.monotonic() < end
        time.sleep(0.001)
