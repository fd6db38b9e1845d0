"""The lock's steps in every order, with one death anywhere: one owner at a time, nobody stuck, the abandoned told exactly.

The steps are those of `_sync/README.md`, "Lock": A1 to A8 to acquire, R1 and R2 to release. The mutexes are the kernel's: whoever
dies with one gives it to the next one. Beside the model, the real code runs with scheduled mutexes.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest

import shoal._sync.lock as lock_module
from shoal._os.mutex import BUSY, LOCKED, OWN
from shoal._sync import cells
from tests.model.explore import Broken, explore
from tests.model.interleave import Lock as ScheduledLock
from tests.model.interleave import interleavings

FREE = -1


@dataclass
class User:
    """Acquires and releases; `at` is its next step."""

    rounds: int
    at: str = "A1"
    alive: bool = True
    overtaken: int = 0
    dead_owner: int = 0


class LockWorld:
    """Process p has the word p + 1."""

    def __init__(
        self, count: int, rounds: int, *, deaths: int = 1, door: bool = True, owner_last: bool = False
    ) -> None:
        self.users = [User(rounds) for _ in range(count)]
        self.deaths = deaths
        self.door = FREE
        self.mutex = FREE
        self.owner = 0
        self.queued = 0
        self.died_inside = 0
        self.has_door = door
        self.owner_last = owner_last

    def steps(self) -> tuple[list[Any], list[Any]]:
        must, may = [], []
        for number, one in enumerate(self.users):
            if one.alive and one.at != "done":
                blocked = (one.at == "A3" and self.door != FREE) or (one.at == "A5" and self.mutex != FREE)
                must += [] if blocked else [("go", number)]
                may += [("kill", number)] if self.deaths else []
        return must, may

    def take(self, step: Any) -> None:
        name, number = step
        one = self.users[number]
        if name == "go":
            getattr(self, f"_{one.at.lower()}")(number, one)
            return
        one.alive = False
        self.deaths -= 1
        if self.owner == number + 1 and one.at != "R2":
            self.died_inside = number + 1
        self.door = FREE if self.door == number else self.door
        self.mutex = FREE if self.mutex == number else self.mutex

    def _a1(self, number: int, one: User) -> None:  # does somebody wait for the mutex?
        one.at = "A3" if self.queued else "A2"

    def _a2(self, number: int, one: User) -> None:  # the mutex, if it is free
        if self.mutex == FREE:
            self.mutex, one.at = number, "A7"
        else:
            one.at = "A3" if self.has_door else "A5"

    def _a3(self, number: int, one: User) -> None:  # the door
        self.door, one.at = number, "A4"

    def _a4(self, number: int, one: User) -> None:
        self.queued, one.at, one.overtaken = 1, "A5", 0

    def _a5(self, number: int, one: User) -> None:  # the mutex, when it is free
        self.mutex, one.at = number, "A6" if self.has_door else "A7"

    def _a6(self, number: int, one: User) -> None:  # no longer waiting; the door is free with the next store
        self.queued, self.door, one.at = 0, FREE, "A7"

    def _a7(self, number: int, one: User) -> None:  # who was here before?
        one.dead_owner, one.at = self.owner, "A8"

    def _a8(self, number: int, one: User) -> None:
        assert one.dead_owner == self.died_inside, f"told of {one.dead_owner}, but {self.died_inside} died inside"
        self.died_inside = 0
        self.owner, one.at = number + 1, "R1"
        for other in self.users:
            other.overtaken += other.alive and other.at == "A5"
            assert other.overtaken <= len(self.users) - 1, "somebody is overtaken again and again"

    def _r1(self, number: int, one: User) -> None:
        if self.owner_last:
            self.mutex, one.at = FREE, "R2"
        else:
            self.owner, one.at = 0, "R2"

    def _r2(self, number: int, one: User) -> None:
        if self.owner_last:
            self.owner = 0
        else:
            self.mutex = FREE
        one.rounds -= 1
        one.at = "A1" if one.rounds else "done"

    def check(self) -> None:
        inside = [one for one in self.users if one.alive and one.at == "R1"]
        assert len(inside) <= 1, "two owners"

    def check_end(self) -> None:
        stuck = [one.at for one in self.users if one.alive and one.at != "done"]
        assert not stuck, f"stuck at {stuck}"

    def key(self) -> Any:
        users = tuple((one.rounds, one.at, one.alive, one.overtaken, one.dead_owner) for one in self.users)
        return users, self.deaths, self.door, self.mutex, self.owner, self.queued, self.died_inside


@pytest.mark.parametrize(("count", "rounds"), [(2, 2), (3, 1)])
def test_one_owner_at_a_time_and_the_abandoned_is_told_exactly(count, rounds):
    """L1 and L2, whoever is killed between any two steps."""
    assert explore(LockWorld(count, rounds)) > 300


def test_the_search_finds_an_owner_that_is_cleared_after_the_mutex():
    with pytest.raises(Broken):
        explore(LockWorld(2, 2, owner_last=True))


def test_the_search_finds_what_happens_without_a_door():
    with pytest.raises(Broken, match="overtaken"):
        explore(LockWorld(2, 4, deaths=0, door=False))


# --- the real code ------------------------------------------------------------------------------


class Mutexes:
    """Stands for `_os/mutex.py`: scheduled, one for each address. Nobody dies."""

    OWN, BUSY, LOCKED = OWN, BUSY, LOCKED

    def __init__(self) -> None:
        self.known: dict[int, ScheduledLock] = {}

    def make(self, address: int) -> None:
        self.known[address] = ScheduledLock()

    def try_lock_now(self, address: int) -> int:
        return 0 if self.known[address].acquire(blocking=False) else lock_module.errno.EBUSY

    def lock(self, address: int, timeout_s: float | None = None) -> int:
        return LOCKED if self.known[address].acquire(blocking=timeout_s is None) else BUSY

    def unlock_now(self, address: int) -> int:
        self.known[address].release()
        return 0

    def give_up(self, address: int) -> None:
        raise AssertionError("nobody is interrupted here")


@pytest.mark.parametrize("kind", [lock_module.Lock, lock_module.RLock])
def test_the_real_code_lets_one_in_at_a_time_in_every_order(monkeypatch, kind):
    mutexes = Mutexes()
    monkeypatch.setattr(lock_module, "mutex", mutexes)
    # How many threads have ended is no part of an order, and would make each run another one.
    monkeypatch.setattr(lock_module, "_forget_the_ended", lambda: None)
    # Nothing is shared here, and each order needs a new one.
    monkeypatch.setattr(
        lock_module, "cells", SimpleNamespace(Cell=cells.Cell, Words=cells.Words, make=lambda size: _Cell())
    )

    def make():
        lock, inside, entered = kind(), [], []

        def use():
            with lock as hold:
                assert not hold.abandoned
                inside.append(1)
                assert len(inside) == 1
                inside.pop()
                entered.append(1)

        def check():
            assert len(entered) == 2
            assert lock._words[lock_module.OWNER] == lock._words[lock_module.QUEUED] == 0

        return [use, use], check

    assert interleavings(make, {lock_module.__file__, __file__}, preemptions=1, fine=False) > 20


class _Cell:
    _next = 0

    def __init__(self) -> None:
        _Cell._next += 1024
        self.address = _Cell._next

    def words(self, offset: int, count: int, kind: str = "Q") -> list[int]:
        return [0] * count
