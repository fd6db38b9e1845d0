"""A guard for those who count every call: its first and its last step are one C function each.

Role: the same as `guard.Guard`, at a third of the price; what it takes is written out by whoever uses it. Owner: the thread inside.

    inside = UNKNOWN
    try:
        inside = gate.enter_now()
        if inside:
            inside = gate.enter_after(inside)  # 0, or OWN: this thread is inside already, and shall not leave twice
        ...
    finally:
        if not inside:
            gate.leave()
        elif inside != OWN:
            gate.give_up()  # interrupted in or just after entering

No signal handler runs between the last two lines of a body without calls and the call of `leave` itself.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Final

from shoal._os import futex, mutex
from shoal._os.mutex import OWN

#: Before a gate has answered.
UNKNOWN: Final = 1
#: Tries before sleeping. Others are inside for a few microseconds, if the system lets them run.
_SPINS: Final = 20


class Reentered(RuntimeError):
    """A signal handler or finalizer used an object in the middle of a step of its own thread."""

    def __init__(self, what: str) -> None:
        super().__init__(f"the {what} was in the middle of a step of this very thread when it was used again")


class Gate:
    """The guard at `address`."""

    __slots__ = ("_address", "enter_now", "give_up", "leave")

    def __init__(self, address: int) -> None:
        self._address = address
        self.enter_now: Callable[[], int] = functools.partial(mutex.try_lock_now, address)
        self.leave: Callable[[], object] = functools.partial(mutex.unlock_now, address)
        self.give_up: Callable[[], object] = functools.partial(mutex.give_up, address)

    def enter_after(self, answer: int) -> int:
        """Wait until we are inside, after another answer than 0: returns 0, or OWN if this thread was inside already."""
        address = self._address
        got = mutex.answer(address, answer)
        for _ in range(_SPINS):
            if got:
                break
            futex.give_way()
            got = mutex.try_lock(address)
        return 0 if (got or mutex.lock(address)) != mutex.OWN else mutex.OWN


__all__ = ["OWN", "UNKNOWN", "Gate"]
