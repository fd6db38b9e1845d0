"""The guard of an object in shared memory: a robust mutex that is held for microseconds.

Role: take it quickly, and give it back whatever happens. Owner: the thread that is inside.

Whoever is killed inside leaves the guard to the next one, who is not told: what a guard protects is changed by one store
(README.md, "Atomic transitions"), so there is never anything to repair.

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

        got = BUSY
        try:
            got = guard.enter()
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
        """Wait until we are inside. Returns LOCKED or OWNER_DIED; OWN if this thread was inside already."""
        address = self._address
        got = mutex.try_lock(address)
        if got:
            return got
        for _ in range(_SPINS):
            got = mutex.try_lock(address)
            if got:
                return got
        return mutex.lock(address)

    def run(self, step: Callable[..., ResultT], *arguments: object) -> ResultT:
        """Return `step(*arguments)`, done inside.

        Raises:
            RuntimeError: A signal handler or finalizer interrupted this very thread in here.
        """
        got = BUSY
        try:
            got = self.enter()
            if got == OWN:
                raise RuntimeError(
                    "this object was interrupted in the middle of a step by the one that wants to use it"
                )
            return step(*arguments)
        finally:
            if got != OWN:
                self.leave()


__all__ = ["BUSY", "LOCKED", "OWN", "Guard"]
