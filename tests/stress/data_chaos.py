"""Everything one may do with large data, by several threads at once, while workers are killed.

Role: the body of `test_data_storms.test_everything_at_once`. Owner: the test process; workers import it for its tasks.
"""

from __future__ import annotations

import random
import threading
import time
import traceback

import numpy as np

import shoal
from tests.crash import storms
from tests.process import data_tasks as tasks
from tests.support import eventually

SIZES = (1_000, 100_000, 262_144, 300_000, 2_200_000, 5_000_000)
#: Only a hang gets this far.
LIMIT_S = 60
KEPT = 6


def job(fill, value, mode="", nap_s=0.0):
    """Check the argument and whatever is stashed; spoil or stash the argument; return something new of its size."""
    assert tasks.seen(value) == fill
    time.sleep(nap_s)
    stash = tasks.STATE.setdefault("chaos", [])
    if mode == "stash":
        stash.append((fill, value))
        del stash[:-3]
    else:
        value[...] = 0
    assert all(tasks.seen(kept) == was for was, kept in stash)
    if mode == "raise":
        raise ValueError(np.full(value.nbytes, fill, np.uint8))
    return np.full(value.nbytes, (fill + 1) % 251, np.uint8), bytes(70_000), {"x": np.full(300_000, fill, np.uint8)}


def job_of(item):
    return job(*item)


def unstash(*_args):
    tasks.STATE.clear()
    time.sleep(0.02)  # so that every worker gets its share


def right(got, fill, nbytes):
    array, _, more = got
    return (tasks.seen(array), array.nbytes, tasks.seen(more["x"])) == ((fill + 1) % 251, nbytes, fill)


class Chaos:
    """One thread's dice, and the results it holds on to."""

    def __init__(self, pool, seed):
        self.pool, self.chance, self.held, self.problem = pool, random.Random(seed), [], None

    def run(self, until):
        ways = [self.submit, self.map, self.imap, self.cancel, self.time_out, self.capture, self.held.clear]
        try:
            while time.monotonic() < until:
                self.chance.choice(ways)()
                del self.held[:-KEPT]
                assert all(right(*one) for one in self.held)
            self.held.clear()
        except BaseException:
            self.problem = traceback.format_exc()

    def _new(self):
        fill, nbytes = self.chance.randrange(251), self.chance.choice(SIZES)
        return fill, np.full(nbytes, fill, np.uint8)

    def submit(self):
        fill, mine = self._new()
        mode = self.chance.choice(["", "raise", "stash"])
        futures = [self.pool.submit(job, fill, mine, mode) for _ in range(3)]
        mine[...] = 255
        for future in futures:
            error = future.exception(LIMIT_S)
            if mode == "raise":
                assert tasks.seen(error.args[0]) == fill
            else:
                self.held.append((future.result(), fill, len(mine)))

    def map(self):
        items = [self._new() for _ in range(12)]
        for (fill, mine), got in zip(items, self.pool.map(job_of, items, timeout=LIMIT_S), strict=True):
            assert right(got, fill, mine.nbytes)

    def imap(self):
        stop = self.chance.choice([5, 100])
        stream = self.pool.imap(job_of, ((n, np.full(SIZES[n % 6], n, np.uint8)) for n in range(20)))
        for n, got in enumerate(stream):
            assert right(got, n, SIZES[n % 6])
            if n == stop:
                stream.close()
                break

    def cancel(self):
        fill, mine = self._new()
        futures = [self.pool.submit(job, fill, mine, "", 0.02) for _ in range(6)]
        for future in futures[::2]:
            future.cancel()
        assert all(right(future.result(LIMIT_S), fill, mine.nbytes) for future in futures[1::2])

    def time_out(self):
        fill, mine = self._new()
        error = self.pool.using(timeout=0.03, retries=0).submit(job, fill, mine, "", 1.0).exception(LIMIT_S)
        assert isinstance(error, shoal.TaskTimeout | shoal.WorkerDied), error

    def capture(self):
        fill, mine = self._new()
        assert self.pool.submit(lambda: tasks.seen(mine)).result(LIMIT_S) == fill


def chaos(pool, seconds, threads=4, seed=0):
    """Let it happen; afterwards everything has returned."""
    until = time.monotonic() + seconds
    players = [Chaos(pool, seed + n) for n in range(threads)]
    running = [threading.Thread(target=player.run, args=(until,)) for player in players]
    with storms.Storm(pool, period_s=0.1, seed=seed) as storm:
        for thread in running:
            thread.start()
        for thread in running:
            thread.join()
    problems = [player.problem for player in players if player.problem]
    assert not problems, "\n".join(problems)

    def all_returned():
        list(pool.map(unstash, range(8)))
        return pool._engine.depot.used_bytes == 0

    eventually(all_returned, what="every block to come back", limit_s=20)
    return storm.hits
