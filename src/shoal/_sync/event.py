"""An event that any process may set, and any number may wait for.

Role: `Event`. Owner: every process that has one. Protocol: README.md, "Event".

Invariants
    V1  Everything is in one 32-bit word: its lowest bit is the flag, the rest counts how often it was set.
    V2  The word is changed by one store, computed without a call: no signal handler of this thread comes between, and the guard
        keeps everybody else away. So a handler may set the event its own thread is just setting, clearing or awaiting.
    V3  Who saw the word before a `set` and sees another count has been woken by it, even if the flag is cleared again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from shoal._os import futex, mutex
from shoal._os.mutex import MUTEX_BYTES, OWN
from shoal._sync import cells
from shoal._sync.deadlines import RECHECK_S, deadline, left, seconds
from shoal._sync.guard import Guard

_MASK: Final = 0xFFFFFFFF


@dataclass(frozen=True, slots=True, kw_only=True)
class EventStatistics:
    """An event at one moment.

    Attributes:
        is_set: The flag.
        sets: How often it was set when it was not.
    """

    is_set: bool
    sets: int


class Event:
    """A flag, as `multiprocessing.Event`, that survives the death of whoever sets or awaits it.

    `set` may be called by a signal handler.

    Raises:
        NoSharedMemory: There is no memory, or no descriptor, for it.
    """

    __slots__ = ("__weakref__", "_address", "_cell", "_guard", "_words")

    def __init__(self) -> None:
        cell = cells.make(MUTEX_BYTES + 4)
        mutex.make(cell.address)
        self._attach(cell)

    def _attach(self, cell: cells.Cell) -> None:
        self._cell = cell
        self._guard = Guard(cell.address)
        self._words = cell.words(MUTEX_BYTES, 1, "I")
        self._address = cell.address + MUTEX_BYTES

    def is_set(self) -> bool:
        """Return the flag."""
        return bool(self._words[0] & 1)

    def set(self) -> None:
        """Set the flag, and wake everybody who waits. Never waits."""
        words = self._words
        got = self._guard.enter()
        try:
            if not words[0] & 1:
                words[0] = words[0] + 3 & _MASK  # V2
        finally:
            if got != OWN:
                self._guard.leave()
        # Also if it was set: whoever did that may have been killed before it woke them.
        futex.wake(self._address, futex.EVERYBODY)

    def clear(self) -> None:
        """Clear the flag."""
        words = self._words
        got = self._guard.enter()
        try:
            words[0] = words[0] & ~1
        finally:
            if got != OWN:
                self._guard.leave()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the flag is set; returns whether it was in time.

        Other threads run meanwhile, signals are answered at once.

        Args:
            timeout: Seconds to wait; `None` is no limit, less than 0 is 0.

        Raises:
            TypeError: `timeout` is no number.
            ValueError: `timeout` is NaN.
        """
        if timeout is not None:
            timeout = seconds(timeout)
        words = self._words
        seen = words[0]
        if seen & 1:
            return True
        until = deadline(timeout)
        while True:
            left_s = left(until, RECHECK_S)
            if not left_s:
                return False
            futex.wait(self._address, seen, left_s)
            if words[0] != seen:
                return True  # V3

    def statistics(self) -> EventStatistics:
        """Return a picture of the event at this moment."""
        word = self._words[0]
        return EventStatistics(is_set=bool(word & 1), sets=word >> 1)

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        cells.only_passed(protocol)
        return _arrive, (type(self), self._cell)

    def __eq__(self, other: object) -> bool:
        """Whether both are the same event: of the same memory."""
        return self._address == other._address if isinstance(other, Event) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._address)

    def __repr__(self) -> str:
        return f"<shoal.{type(self).__name__}, {'set' if self.is_set() else 'not set'}>"


def _arrive(kind: type[Event], cell: cells.Cell) -> Event:
    event = kind.__new__(kind)
    event._attach(cell)
    return event
