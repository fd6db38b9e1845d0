"""Forked processes that use locks, semaphores and conditions at random, and are killed at random.

Role: the workload of `test_sync_storms.py`. Owner: pytest. Everything is counted in words that all of them share:

    STARTED, FINISHED     of the counter under the lock: one store before the change, one after it
    EXPLAINED             changes that were cut short, as the next owner of the lock was told
    INSIDE                who is inside the semaphore, as bits of a word of each
"""

from __future__ import annotations

import os
import random
import signal
from typing import Any

import shoal
from shoal._sync import cells

COUNTER, SHADOW, EXPLAINED, ITEMS, MOST, ROUNDS = range(6)
PERMITS = 2


class Arena:
    """What the processes share."""

    def __init__(self) -> None:
        self.words = cells.make(1024).words(0, 64)
        self.lock = shoal.Lock()
        self.rlock = shoal.RLock()
        self.semaphore = shoal.BoundedSemaphore(PERMITS)
        self.condition = shoal.Condition()

    def repair(self, hold: Any) -> None:
        """Count the change that the dead holder did not finish, if it was within one."""
        words = self.words
        if words[COUNTER] != words[SHADOW]:
            assert hold.abandoned, "a change was cut short and nobody was told"
            words[EXPLAINED] += 1
            words[SHADOW] = words[COUNTER]

    def count(self) -> None:
        with self.lock as hold:
            self.repair(hold)
            self.words[COUNTER] += 1
            self.words[SHADOW] = self.words[COUNTER]

    def nest(self) -> None:
        with self.rlock, self.rlock, self.lock as hold:
            self.repair(hold)

    def enter(self) -> None:
        if self.semaphore.acquire(timeout=30):
            held = sum(self.semaphore.statistics().holders.values())
            assert held <= PERMITS, held
            self.semaphore.release()
        else:
            raise AssertionError("no permit for 30 s")

    def give(self) -> None:
        with self.condition:
            self.words[ITEMS] += 1
            self.condition.notify()

    def take(self) -> None:
        with self.condition:
            if self.condition.wait_for(lambda: self.words[ITEMS], 0.05):
                self.words[ITEMS] -= 1


def live(arena: Arena, seed: int) -> None:
    """Use everything, at random, for ever."""
    dice = random.Random(seed)
    acts = [arena.count, arena.count, arena.nest, arena.enter, arena.give, arena.take]
    while True:
        dice.choice(acts)()


class Crowd:
    """Processes that live in an arena, always as many as asked for."""

    def __init__(self, arena: Arena, size: int, seed: int) -> None:
        self.arena = arena
        self.dice = random.Random(seed)
        self.pids = [self._start() for _ in range(size)]

    def _start(self) -> int:
        seed = self.dice.randrange(1 << 30)
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                live(self.arena, seed)
            except BaseException as error:
                os.write(2, f"{type(error).__name__}: {error}\n".encode())
            finally:
                os._exit(code)
        return pid

    def kill_one(self) -> None:
        """Kill one at random, and start another one."""
        place = self.dice.randrange(len(self.pids))
        self._end(self.pids[place])
        self.pids[place] = self._start()

    def _end(self, pid: int) -> None:
        os.kill(pid, signal.SIGKILL)
        assert os.waitpid(pid, 0)[1] == signal.SIGKILL, "it had failed before"

    def end(self) -> None:
        """Kill all."""
        while self.pids:
            self._end(self.pids.pop())
