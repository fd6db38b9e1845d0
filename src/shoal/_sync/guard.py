"""The guard of an object in shared memory: a robust mutex that is held for microseconds.

Role: take it quickly, and give it back whatever happens. Owner: the thread that is inside.

Whoever is killed inside leaves the guard to the next one, who is not told: what a guard protects is changed by one store
(README.md, "What everything stands on"), so there is never anything to repair.

Invariants
    G1  Leaving is a call of one C function, so a signal handler that raises cannot come between the decision and the act.
    G2  A signal handler or a finalizer that wants in while its own thread is inside is not let wait for itself: `run` says
        so with RuntimeError, and `enter` with OWN.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Final, TypeVar

from shoal._os import mutex
from shoal._os.mutex import BUSY, LOCKED, OWN

ResultT = TypeVar("ResultT")

#: Tries before sleeping: a few microseconds, which is how long the others are inside.
_SPINS: Final = 20 if (os.cpu_count() or 1) > 1 else 0


class Guard:
    """The mutex at `address`, for steps that take microseconds and never wait.

    Either `run(step)`, or, where a call more counts::

        got = guard.enter()
        try:
            ...
        finally:
            if got != OWN:
                guard.leave()
    """

    __slots__ = ("_address", "leave")

    #: Leave; harmless if this thread is not inside.
    leave: Callable[[], object]

    def __init__(self, address: int) -> None:
        self._address = address
        self.leave = functools.partial(mutex.unlock_now, address)  # G1

    def enter(self) -> int:
        """Wait until we are inside. Returns LOCKED or OWNER_DIED; OWN if this thread was inside already.

        What a signal handler raises comes out of here, and then we are not inside. Between the return and a `try` that
        follows at once no handler runs.
        """
        address = self._address
        try:
            number = mutex.try_lock_now(address)
            if not number:
                return LOCKED
            got = mutex.answer(address, number)
            spins = 0 if got else _SPINS
            while spins and not got:
                spins -= 1
                got = mutex.try_lock(address)
            return got or mutex.lock(address)
        except BaseException:
            mutex.give_up(address)
            raise

    def run(self, step: Callable[..., ResultT], *arguments: object) -> ResultT:
        """Return `step(*arguments)`, done inside.

        Raises:
            RuntimeError: A signal handler or finalizer interrupted this very thread in here.
        """
        got = self.enter()
        if got == OWN:
            raise RuntimeError("this object was interrupted in the middle of a step by the one that wants to use it")
        try:
            return step(*arguments)
        finally:
            self.leave()


__all__ = ["BUSY", "LOCKED", "OWN", "Guard"]
