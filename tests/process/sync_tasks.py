"""What the tests of locks and their kin let workers run. Light, as `pool_tasks.py`."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import Any

from tests.process import pool_tasks

STATE: dict[str, Any] = {}


@dataclass
class Box:
    """Something of the user's with a lock in it."""

    lock: Any
    note: str = ""


def keep(thing: Any) -> None:
    STATE["kept"] = thing


def kept() -> Any:
    return STATE["kept"]


def kept_is_held() -> bool:
    return bool(STATE["kept"].lock.locked())


def count(lock: Any, counter: Any, times: int) -> int:
    """Add to a shared counter, not in one step."""
    for _ in range(times):
        with lock:
            seen = int(counter[0])
            counter[0] = seen + 1
    return os.getpid()


def hold_and_die(lock: Any) -> None:
    lock.acquire()
    pool_tasks.die()


def enter(lock: Any) -> tuple[int, int | None]:
    with lock as hold:
        return os.getpid(), hold.abandoned_by


def is_held(lock: Any) -> bool:
    return bool(lock.locked())


def set_it(event: Any) -> None:
    event.set()


def wait(thing: Any, timeout: float | None) -> Any:
    return thing.wait(timeout)


def take(condition: Any, items: Any, timeout: float) -> bool:
    """Take one of the items there are, or will be."""
    with condition:
        if not condition.wait_for(lambda: items[0] > 0, timeout):
            return False
        items[0] -= 1
        return True


def contend(lock: Any, barrier: Any, seconds: float) -> tuple[int, float]:
    """Acquire the lock as often as possible; returns how often, and the longest wait."""
    barrier.wait()
    got, longest = 0, 0.0
    clock = time.perf_counter
    end = clock() + seconds
    while (before := clock()) < end:
        with lock:
            longest = max(longest, clock() - before)
            got += 1
    return got, longest
