"""What the tests of shared objects and arrays let workers run. Light, as `pool_tasks.py`: every worker imports it."""

from __future__ import annotations

import gc
import os
import time
from typing import Any

import numpy as np

import shoal
from shoal._memory import segments
from tests.process import pool_tasks

STATE: dict[str, Any] = {}


class Model:
    """Counts in `log` how often it is unpickled."""

    def __init__(self, log: str, weights: Any) -> None:
        self.log = log
        self.weights = weights

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        pool_tasks.Log(self.log).add(os.getpid())

    def score(self, x: float) -> float:
        return float(self.weights.sum() * x)


def score(model: Model, x: float = 1) -> tuple[int, float]:
    return os.getpid(), model.score(x)


def inside(nested: dict[str, list[Any]]) -> tuple[str, int]:
    return type(nested["a"][1]).__name__, id(nested["a"][1])


def identity_of(array: Any) -> bytes | None:
    found = segments.find(array)
    return found.id if found is not None else None


def describe(array: Any) -> tuple[Any, ...]:
    return type(array).__name__, array.dtype, array.shape, array.strides, bool(array.flags.writeable), array.tobytes()


def fill(array: Any, value: Any) -> int:
    array[...] = value
    return os.getpid()


def fill_and_die(array: Any, value: Any) -> None:
    array[...] = value
    pool_tasks.die()


def fill_beside(array: Any, _other: Any) -> None:
    array[...] = 1


def fill_then(array: Any, value: Any, gate: pool_tasks.Gate) -> None:
    array[...] = value
    gate.enter()


def make(count: int) -> tuple[Any, bytes | None]:
    made = shoal.full(count, 7.0)
    return made, identity_of(made)


def make_small(number: int) -> Any:
    return shoal.full(4, float(number))


def make_shared(count: int) -> Any:
    return shoal.share(np.arange(float(count)))


def keep(value: Any) -> None:
    STATE["value"] = value


def kept(*_args: Any) -> Any:
    return STATE.get("value")


def add_kept(x: float) -> float:
    return float(STATE["value"].sum() + x)


def mapped(*_args: Any) -> int:
    """How many segments this process has mapped."""
    gc.collect()
    with open("/proc/self/maps", encoding="utf-8") as maps:
        return sum("memfd:shoal-shared" in line for line in maps)


def total(array: Any) -> float:
    return float(array.sum())


def length(value: Any) -> int:
    return len(value)


def is_same(one: Any, other: Any) -> bool:
    return one is other


def in_a_pool_of_its_own(array: Any) -> Any:
    """Use a pool in a task: what it shares reaches the workers below, what those write is seen here."""
    with shoal.Pool(1, start_method="spawn") as pool:
        pool.submit(fill, array[1:3], 4.0).result()
        handle = shoal.share(array)
        return pool.submit(total, handle).result()


def hold(_array: Any, gate: pool_tasks.Gate) -> None:
    gate.enter()


def die_holding(_array: Any, log: pool_tasks.Log) -> int:
    return pool_tasks.die_times(log, 2)


def nap_holding(_array: Any) -> None:
    time.sleep(0.05)


def fork_and_use(array: Any) -> list[float]:
    """Fork within a task; both sides write, and make small arrays of their own."""
    mine = shoal.zeros(3)
    pid = os.fork()
    if pid == 0:
        array[0] = 1
        shoal.full(3, 9.0)
        mine[0] = 5
        os._exit(0)
    os.waitpid(pid, 0)
    array[1] = 2
    return [*mine.tolist(), *shoal.zeros(3).tolist()]
