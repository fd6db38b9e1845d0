"""Large data through a hail of deaths, and the memory of a program that is killed.

Role: shared by `test_data_deaths.py` and the long runs in `tests/stress`. Owner: the test process.
"""

from __future__ import annotations

import os
import random

import numpy as np

from tests.crash import storms
from tests.process import data_tasks as tasks
from tests.support import eventually

#: In the frame, in the arena with others, in the arena alone.
SIZES = (100_000, 300_000, 3_000_000)


def swapped(value):
    """What came, and something new of the same size; the argument is spoilt on the way."""
    low, high, nbytes = int(value.min()), int(value.max()), value.nbytes
    value[...] = 255
    return low, high, np.full(nbytes, (low + 1) % 251, np.uint8), bytes(300_000)


def right(got, fill, nbytes):
    low, high, array, plain = got
    return (low, high, tasks.seen(array), array.nbytes, len(plain)) == (fill, fill, (fill + 1) % 251, nbytes, 300_000)


def rounds_through(pool, count, period_s, seed=0):
    """Run `count` rounds of large arguments and results while workers are killed; returns how many were.

    Every value is right; then the arena is as empty as before, and no descriptor is left over.
    """
    chance = random.Random(seed)
    for _ in range(2):  # each worker has had and given something large
        list(pool.map(tasks.nap_and_give, [0.05, 0.05], [tasks.filled(1, SIZES[-1])] * 2))
    _empty(pool)
    eventually(lambda: sum(one.pid is not None for one in pool.workers) == 3, what="two workers and the spare one")
    before = _descriptors()
    kept = []
    with storms.Storm(pool, period_s=period_s, seed=seed) as storm:
        for number in range(count):
            fill, nbytes = number % 251, chance.choice(SIZES)
            mine = tasks.filled(fill, nbytes)
            if number % 3:
                futures = [pool.submit(swapped, mine) for _ in range(3)]
                mine[...] = 99
                results = [future.result() for future in futures]
                del futures
            else:
                results = list(pool.map(swapped, [mine] * 3))
            assert all(right(got, fill, nbytes) for got in results)
            kept.append((results[0], fill, nbytes))
            del kept[:-5]
            assert all(right(*one) for one in kept)
    del results
    kept.clear()
    _empty(pool)
    eventually(lambda: _descriptors() <= before, what=f"descriptors to be {before} again", limit_s=10)
    return storm.hits


def _empty(pool):
    depot = pool._engine.depot
    eventually(lambda: depot.used_bytes == 0, what="every block to come back", limit_s=20)


def _descriptors():
    """Open ones, the arena's left aside: it keeps some warm."""
    names = []
    for name in os.listdir("/proc/self/fd"):
        try:
            names.append(os.readlink(f"/proc/self/fd/{name}"))
        except OSError:  # closed since
            pass
    return sum("memfd:shoal-arena" not in name for name in names)
