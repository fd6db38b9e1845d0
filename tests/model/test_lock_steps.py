"""The lock's steps in every order, with one death or one stop anywhere: one owner, nobody stuck, the abandoned told exactly.

The steps are those of `_sync/README.md`, "Lock": A1 to A8 to acquire, R1 and R2 to release. The mutexes are the kernel's: whoever
dies with one gives it to the next one; whoever is stopped keeps what it has. Beside the model, the real code runs with scheduled
mutexes.
"""

from __future__ import annotations

import threading
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
#: The address of a door is a multiple of this.
CELL = 1024


@dataclass
class User:
    """Acquires and releases; `at` is its next step."""

    rounds: int
    at: str = "A1"
    alive: bool = True
    stopped: bool = False
    said: bool = False
    overtaken: int = 0
    dead_owner: int = 0


class LockWorld:
    """Process p has the word p + 1.

    With `stops`, one is stopped anywhere, perhaps for ever, and whoever waits looks by turns after the door and the mutex, so it
    gets whichever is free; when, is open. Without, a turn at the door is long enough for whoever has it to go on: nobody looks.
    """

    def __init__(
        self,
        count: int,
        rounds: int,
        *,
        deaths: int = 1,
        stops: int = 0,
        door: bool = True,
        turns: bool = True,
        owner_last: bool = False,
    ) -> None:
        self.users = [User(rounds) for _ in range(count)]
        self.deaths = deaths
        self.stops = stops
        self.turns = turns and stops > 0
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
                may += [("kill", number)] if self.deaths else []
                if one.stopped:
                    may.append(("continue", number))
                    continue
                blocked = (one.at == "A3" and self.door != FREE) or (one.at == "A5" and self.mutex != FREE)
                must += [] if blocked else [("go", number)]
                must += [("pass", number)] if self.turns and one.at == "A3" and self.mutex == FREE else []
                must += [("say", number)] if self.turns and one.at in ("A3", "A5") and not self.queued else []
                may += [("stop", number)] if self.stops else []
        return must, may

    def take(self, step: Any) -> None:
        name, number = step
        one = self.users[number]
        if name == "go":
            getattr(self, f"_{one.at.lower()}")(number, one)
        else:
            getattr(self, f"_{name}")(number, one)

    def _stop(self, number: int, one: User) -> None:
        one.stopped = True
        self.stops -= 1

    def _continue(self, number: int, one: User) -> None:
        one.stopped = False

    def _pass(self, number: int, one: User) -> None:  # A3, A5: a turn without the door, and the mutex is free
        self.mutex, one.at = number, "A6"

    def _say(self, number: int, one: User) -> None:  # A4 again
        self.queued, one.said = 1, True

    def _kill(self, number: int, one: User) -> None:
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
        self.queued, one.said, one.at, one.overtaken = 1, True, "A5", 0

    def _a5(self, number: int, one: User) -> None:  # the mutex, when it is free
        self.mutex, one.at = number, "A6" if self.has_door else "A7"

    def _a6(self, number: int, one: User) -> None:  # no longer waiting; the door is free with the next store
        self.queued, one.said = 0 if one.said else self.queued, False
        self.door, one.at = FREE if self.door == number else self.door, "A7"

    def _a7(self, number: int, one: User) -> None:  # who was here before?
        one.dead_owner, one.at = self.owner, "A8"

    def _a8(self, number: int, one: User) -> None:
        assert one.dead_owner == self.died_inside, f"told of {one.dead_owner}, but {self.died_inside} died inside"
        self.died_inside = 0
        self.owner, one.at = number + 1, "R1"
        for other in self.users:
            other.overtaken += other.alive and other.at == "A5"
            assert self.turns or other.overtaken <= len(self.users) - 1, "somebody is overtaken again and again"

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
        if self.mutex != FREE and self.users[self.mutex].stopped:
            return  # who holds the lock is stopped
        stuck = [one.at for one in self.users if one.alive and one.at != "done" and not one.stopped]
        assert not stuck, f"stuck at {stuck}"

    def key(self) -> Any:
        users = tuple(
            (one.rounds, one.at, one.alive, one.stopped, one.said, 0 if self.turns else one.overtaken, one.dead_owner)
            for one in self.users
        )
        return users, self.deaths, self.stops, self.door, self.mutex, self.owner, self.queued, self.died_inside


@pytest.mark.parametrize(("count", "rounds"), [(2, 2), (3, 1)])
def test_one_owner_at_a_time_and_the_abandoned_is_told_exactly(count, rounds):
    """L1 and L2, whoever is killed between any two steps."""
    assert explore(LockWorld(count, rounds)) > 300


@pytest.mark.parametrize(("count", "rounds", "deaths"), [(2, 2, 1), (3, 1, 0)])
def test_nobody_waits_for_one_that_is_stopped_and_does_not_hold_the_lock(count, rounds, deaths):
    """L5: at whatever step it is stopped, for ever or for a while, and whoever else is killed."""
    assert explore(LockWorld(count, rounds, deaths=deaths, stops=1)) > 300


def test_the_search_finds_who_waits_for_one_that_is_stopped_at_the_door():
    with pytest.raises(Broken, match="stuck at"):
        explore(LockWorld(2, 2, deaths=0, stops=1, turns=False))


def test_the_search_finds_an_owner_that_is_cleared_after_the_mutex():
    with pytest.raises(Broken):
        explore(LockWorld(2, 2, owner_last=True))


def test_the_search_finds_what_happens_without_a_door():
    with pytest.raises(Broken, match="overtaken"):
        explore(LockWorld(2, 4, deaths=0, door=False))


# --- the real code ------------------------------------------------------------------------------


class Mutexes:
    """Stands for `_os/mutex.py`: scheduled, one for each address. Nobody dies.

    A wait is over when the mutex is free, never before; except that of the door if `hasty`: it is over at once.
    """

    OWN, BUSY, LOCKED = OWN, BUSY, LOCKED

    def __init__(self, *, hasty: bool = False) -> None:
        self.known: dict[int, ScheduledLock] = {}
        self.owners: dict[int, int] = {}
        self.hasty = hasty

    def make(self, address: int) -> None:
        self.known[address] = ScheduledLock()

    def try_lock_now(self, address: int) -> int:
        return 0 if self._take(address, blocking=False) else lock_module.errno.EBUSY

    def try_lock(self, address: int) -> int:
        return BUSY if self.try_lock_now(address) else LOCKED

    def lock(self, address: int, timeout_s: float) -> int:
        is_door = not address % CELL
        return LOCKED if self._take(address, blocking=not (self.hasty and is_door)) else BUSY

    def _take(self, address: int, *, blocking: bool) -> bool:
        if not self.known[address].acquire(blocking=blocking):
            return False
        self.owners[address] = threading.get_ident()
        return True

    def unlock_now(self, address: int) -> int:
        if self.owners.get(address) == threading.get_ident():
            del self.owners[address]
            self.known[address].release()
        return 0

    def give_up(self, address: int) -> None:
        assert not address % CELL, "nobody is interrupted here"
        self.unlock_now(address)


@pytest.mark.parametrize("hasty", [False, True])
@pytest.mark.parametrize("kind", [lock_module.Lock, lock_module.RLock])
def test_the_real_code_lets_one_in_at_a_time_in_every_order(monkeypatch, kind, hasty):
    mutexes = Mutexes(hasty=hasty)
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
        _Cell._next += CELL
        self.address = _Cell._next

    def words(self, offset: int, count: int, kind: str = "Q") -> list[int]:
        return [0] * count
