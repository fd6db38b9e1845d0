"""Conditions whose notifications are not lost with a killed waiter.

Role: `Condition`, over a `Lock` or `RLock`. Owner: every process that has one. What happens is decided in `states.py`, and
stored by `board.py`.

Invariants
    N1  A waiter is in the line before it lets go of the lock, and leaves it when it has the lock again: what it was told goes to
        the next one if it is killed before.
    N2  When somebody dies with the lock, perhaps on its way to notify, a waiter is told and finds the lock abandoned.
    N3  `wait` returns, or raises, with the lock acquired as often as before.
"""

from __future__ import annotations

import operator
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from shoal._sync import cells, identities, states
from shoal._sync.board import Board, Note
from shoal._sync.deadlines import deadline
from shoal._sync.lock import Hold, RLock, _BaseLock
from shoal._sync.states import WAITING, State

ResultT = TypeVar("ResultT")


@dataclass(frozen=True, slots=True, kw_only=True)
class ConditionStatistics:
    """A condition at one moment.

    Attributes:
        waiting: How many wait and have not been told anything.
        told: How many have been told and are on their way.
        notifications: How often somebody notified.
        holder: Process id of who holds the lock, or `None`.
    """

    waiting: int
    told: int
    notifications: int
    holder: int | None


class Condition:
    """A condition, as `multiprocessing.Condition`, that survives the death of whoever waits or notifies.

    Who waits is told in turn, and only by a notification. With more than 64 waiters at once, those beyond may also wake when
    others are told.

    Args:
        lock: The `shoal.Lock` or `shoal.RLock` that goes with it; an `RLock` of its own if `None`.

    Raises:
        NoSharedMemory: There is no memory, or no descriptor, for it.
        TypeError: `lock` is another kind of lock.
    """

    __slots__ = ("__weakref__", "_board", "_lock", "abandoned_by")

    #: Process id of the holder that died with the lock in its hand, from whom this object took it over last; else `None`.
    abandoned_by: int | None

    def __init__(self, lock: _BaseLock | None = None) -> None:
        if lock is not None and not isinstance(lock, _BaseLock):
            raise TypeError(f"a condition needs a shoal.Lock or shoal.RLock, not a {type(lock).__name__}")
        self._attach(RLock() if lock is None else lock, Board.make(State()))

    def _attach(self, lock: _BaseLock, board: Board) -> None:
        self._lock = lock
        self._board = board
        self.abandoned_by = None

    # --- the lock -------------------------------------------------------------------------------

    def acquire(self, block: bool = True, timeout: float | None = None, *, blocking: bool | None = None) -> Hold:
        """Acquire the lock; see `Lock.acquire`."""
        return self._noted(self._lock.acquire(block, timeout, blocking=blocking))

    def release(self) -> None:
        """Release the lock."""
        self._lock.release()

    def __enter__(self) -> Hold:
        return self._noted(self._lock.acquire())

    def __exit__(self, *problem: object) -> None:
        self._lock.release()

    def _noted(self, hold: Hold) -> Hold:
        if hold:
            self.abandoned_by = hold.abandoned_by
        return hold

    @property
    def abandoned(self) -> bool:
        """Whether the lock was taken over from a holder that died, when this object acquired it last, in `wait` or else."""
        return self.abandoned_by is not None

    # --- waiting --------------------------------------------------------------------------------

    def wait(self, timeout: float | None = None) -> bool:
        """Release the lock, wait to be notified, acquire the lock again; returns whether one was notified in time.

        Look at `abandoned` then: the lock may come from somebody who died with it, perhaps before it could notify. Such a death
        wakes one of those who wait.

        Args:
            timeout: Seconds to wait; `None` is no limit. Acquiring the lock again is not limited.

        Raises:
            RuntimeError: This thread does not hold the lock.
            TypeError: `timeout` is no number.
            ValueError: `timeout` is NaN.
        """
        until = deadline(timeout)
        if not self._lock._is_mine():
            raise RuntimeError("cannot wait on a condition whose lock this thread does not hold")
        board, note = self._board, Note()
        before = board.read().value
        try:
            board.step(note, states.join, identities.me(), board.slots)
            slot = note.slot
            depth = self._lock._depth()
            try:
                self._lock._release_all()
                if slot < 0:
                    return self._wait_in_no_slot(before, until)
                board.sleep(slot, until, self._sweep)
            finally:
                self._noted(self._lock._acquire_all(depth))
            return board.step(note, states.leave, slot).answer != WAITING
        except BaseException:
            if note.slot >= 0:
                board.step(note, states.stop_waiting, note.slot)
            raise

    def _wait_in_no_slot(self, before: int, until: float | None) -> bool:
        """Wait for any notification: nobody can be told in particular who has no slot."""
        while self._board.read().value == before:
            if not self._board.poll(until, self._sweep):
                return False
        return True

    def wait_for(self, predicate: Callable[[], ResultT], timeout: float | None = None) -> ResultT:
        """Wait until `predicate()` is true, and return what it returned last; a false one when the time is over.

        Raises:
            RuntimeError: This thread does not hold the lock.
            TypeError: `timeout` is no number.
            ValueError: `timeout` is NaN.
        """
        until = deadline(timeout)
        result = predicate()
        while not result:
            left_s = None if until is None else until - time.monotonic()
            if left_s is not None and left_s <= 0:
                break
            self.wait(left_s)
            result = predicate()
        return result

    def notify(self, n: int = 1) -> None:
        """Wake the `n` who have waited longest, or as many as there are. Never waits.

        Raises:
            RuntimeError: This thread does not hold the lock.
            TypeError: `n` is no int.
            ValueError: `n` is negative.
        """
        n = operator.index(n)
        if n < 0:
            raise ValueError(f"cannot notify {n} waiters")
        self._tell(states.notify, n)

    def notify_all(self) -> None:
        """Wake everybody who waits. Never waits.

        Raises:
            RuntimeError: This thread does not hold the lock.
        """
        self._tell(states.notify_all)

    def _tell(self, *step: Any) -> None:
        if not self._lock._is_mine():
            raise RuntimeError("cannot notify on a condition whose lock this thread does not hold")
        self._board.step(Note(), *step)

    def _sweep(self) -> None:
        self._board.sweep(states.bury_waiters)
        if self._lock._is_abandoned():
            self._board.step(Note(), states.holder_died)

    def statistics(self) -> ConditionStatistics:
        """Return a picture of the condition at this moment."""
        state = self._board.read()
        waiting = states.waiting(state)
        return ConditionStatistics(
            waiting=waiting, told=len(state.line) - waiting, notifications=state.value, holder=self._lock.holder
        )

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        cells.only_passed(protocol)
        return _arrive, (type(self), self._lock, self._board)

    def __eq__(self, other: object) -> bool:
        """Whether both are the same condition: of the same memory."""
        return self._board == other._board if isinstance(other, Condition) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._board)

    def __repr__(self) -> str:
        return f"<shoal.{type(self).__name__} over {self._lock!r}, {states.waiting(self._board.read())} waiting>"


def _arrive(kind: type[Condition], lock: _BaseLock, board: Board) -> Condition:
    condition = kind.__new__(kind)
    condition._attach(lock, board)
    return condition
