"""Semaphores whose permits come back when their holder dies.

Role: `Semaphore` and `BoundedSemaphore`. Owner: every process that has one. What happens is decided in `states.py`, and stored
by `board.py`.

Invariants
    S1  A caller that is interrupted in `acquire` has no permit and no place in the line.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any, Final

from shoal._sync import cells, identities, states
from shoal._sync.board import Board, Note
from shoal._sync.deadlines import deadline, seconds
from shoal._sync.states import QUEUED, REFUSED, YES, State

#: Processes of which it is noted what they hold: as many as there are permits, but no fewer and no more than these. The permits
#: of more do not come back from the dead.
_LEAST_ROOM: Final = 64
_MOST_ROOM: Final = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class SemaphoreStatistics:
    """A semaphore at one moment.

    Attributes:
        value: Free permits.
        waiting: How many wait for one.
        holders: Permits held, by process id.
        waits: How often somebody had to wait.
    """

    value: int
    waiting: int
    holders: dict[int, int]
    waits: int


class Semaphore:
    """A counter of permits, as `multiprocessing.Semaphore`, that survives the death of whoever holds or awaits them.

    What a process has acquired and not released comes back when it dies, up to as many permits as the semaphore was made with.
    That is so for the first 512 processes that hold some at once, or 64 if there were fewer permits in the beginning. Whoever waits is served strictly in turn. Any process may release, also one that holds nothing: that adds a permit.

    Args:
        value: Permits in the beginning.

    Raises:
        NoSharedMemory: There is no memory, or no descriptor, for it.
        ValueError: `value` is negative.
    """

    __slots__ = ("__weakref__", "_board")

    _bounded = False

    def __init__(self, value: int = 1) -> None:
        value = operator.index(value)
        if value < 0:
            raise ValueError(f"a semaphore cannot begin with {value} permits")
        room = max(_LEAST_ROOM, min(value, _MOST_ROOM))
        self._board = Board.make(State(value), room=room, fixed=value)

    def acquire(self, block: bool = True, timeout: float | None = None, *, blocking: bool | None = None) -> bool:
        """Take a permit; returns whether there was one in time.

        Waits behind who has waited longer. Other threads run meanwhile, signals are answered at once.

        Args:
            block: Whether to wait at all.
            timeout: Seconds to wait; `None` is no limit, less than 0 is 0.
            blocking: Another name of `block`, that of `threading`.

        Raises:
            TypeError: `timeout` is no number.
            ValueError: `timeout` is NaN.
        """
        if timeout is not None:
            timeout = seconds(timeout)
        note = Note()
        try:
            return self._acquire(note, block if blocking is None else blocking, timeout)
        except BaseException:  # S1
            if note.slot >= 0:
                self._board.step(note, states.give_up, note.slot)
            elif note.answer == YES:
                self._board.step(note, states.release, identities.me(), 1, 0)
            raise

    def _acquire(self, note: Note, block: bool, timeout: float | None) -> bool:
        board, me = self._board, identities.me()
        waits = block and timeout != 0
        if board.step(note, states.acquire, me, board.slots if waits else 0, board.room).answer == YES:
            return True
        if not waits:
            # Perhaps all of them are held by the dead.
            self._sweep(at_once=True)
            return board.step(note, states.acquire, me, 0, board.room).answer == YES
        until = deadline(timeout)
        if note.answer != QUEUED:
            board.join(note, until, self._sweep, states.acquire, me, board.slots, board.room)
            if note.answer != QUEUED:
                return note.answer == YES
        slot = note.slot
        board.sleep(slot, until, self._sweep)
        if board.step(note, states.take, slot, me, board.room).answer == YES:
            return True
        board.step(note, states.give_up, slot)
        return False

    def release(self, n: int = 1) -> None:
        """Give back `n` permits, and wake as many of those who wait. Never waits.

        Raises:
            TypeError: `n` is no int.
            ValueError: There would be more permits than in the beginning (`BoundedSemaphore`), or `n` is less than 1.
        """
        n = operator.index(n)
        if n < 1:
            raise ValueError(f"cannot release {n} permits")
        board = self._board
        bound = board.fixed if self._bounded else 0
        if board.step(Note(), states.release, identities.me(), n, bound).answer == REFUSED:
            raise ValueError(f"a semaphore of {bound} permits was released more often than it was acquired")

    def _sweep(self, *, at_once: bool = False) -> None:
        self._board.sweep(states.bury_holders, self._board.fixed, at_once=at_once)

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *problem: object) -> None:
        self.release()

    def get_value(self) -> int:
        """Return how many permits are free."""
        return self._board.read().value

    def locked(self) -> bool:
        """Say whether there is no free permit."""
        return not self.get_value()

    def statistics(self) -> SemaphoreStatistics:
        """Return a picture of the semaphore at this moment."""
        state = self._board.read()
        holders = {identities.pid_of(who): count for who, count in state.holders}
        return SemaphoreStatistics(
            value=state.value, waiting=states.waiting(state), holders=holders, waits=self._board.waits
        )

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        cells.only_passed(protocol)
        return _arrive, (type(self), self._board)

    def __eq__(self, other: object) -> bool:
        """Whether both are the same semaphore: of the same memory."""
        return self._board == other._board if isinstance(other, Semaphore) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._board)

    def __repr__(self) -> str:
        return f"<shoal.{type(self).__name__}, {self.get_value()} permits free>"


class BoundedSemaphore(Semaphore):
    """As `Semaphore`, but it is an error to release more permits than it began with."""

    __slots__ = ()

    _bounded = True


def _arrive(kind: type[Semaphore], board: Board) -> Semaphore:
    semaphore = kind.__new__(kind)
    semaphore._board = board
    return semaphore
