"""A barrier that breaks, and says by whom, when somebody it waits for has died.

Role: `Barrier`. Owner: every process that has one. What happens is decided in `states.py`, and stored by `board.py`.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from shoal._sync import cells, identities, states
from shoal._sync.board import SLOTS, Board, Note
from shoal._sync.deadlines import deadline, seconds
from shoal._sync.states import FULL, QUEUED, REFUSED, State, Waiter
from shoal.errors import BrokenBarrierError

_REASONS = {
    states.DIED: "it died",
    states.TIMED_OUT: "it waited longer than its timeout",
    states.ABORTED: "it called abort()",
    states.RESET: "it called reset() while others waited",
    states.ACTION_FAILED: "its action failed",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class BarrierStatistics:
    """A barrier at one moment.

    Attributes:
        parties: How many pass together.
        waiting: How many wait now.
        broken: Whether it is broken.
        broken_by: Process id of who broke it, or `None`.
    """

    parties: int
    waiting: int
    broken: bool
    broken_by: int | None


class Barrier:
    """A meeting point of `parties` threads or processes, as `multiprocessing.Barrier`, that does not wait for the dead.

    It breaks when a process that waits at it is killed, and when one that took part in the last round is dead while another
    one that did waits again. A process that dies before it has ever come is not known here: give a `timeout`.

    Args:
        parties: How many have to come.
        action: Called by the last one that comes, before any of them passes.
        timeout: Seconds one waits if `wait` does not say; `None` is no limit.

    Raises:
        NoSharedMemory: There is no memory, or no descriptor, for it.
        TypeError: `parties` is no int, or `timeout` no number.
        ValueError: `parties` is less than 1, or `timeout` is NaN.
    """

    __slots__ = ("__weakref__", "_action", "_board", "_timeout")

    def __init__(self, parties: int, action: Callable[[], object] | None = None, timeout: float | None = None) -> None:
        parties = operator.index(parties)
        if parties < 1:
            raise ValueError(f"a barrier needs at least 1 party, not {parties}")
        timeout = None if timeout is None else seconds(timeout)
        # Those of the last round may still be leaving while the next ones come.
        self._attach(action, timeout, Board.make(State(), slots=2 * parties + SLOTS, room=parties, fixed=parties))

    def _attach(self, action: Callable[[], object] | None, timeout: float | None, board: Board) -> None:
        self._action = action
        self._timeout = timeout
        self._board = board

    def wait(self, timeout: float | None = None) -> int:
        """Wait until all parties have come; returns a number from 0 to `parties` - 1, another one for each.

        Args:
            timeout: Seconds to wait, after which the barrier breaks; `None` is that of the barrier.

        Raises:
            BrokenBarrierError: Somebody it waits for has died, or has waited too long, or it was broken or reset otherwise.
            TypeError: `timeout` is no number.
            ValueError: `timeout` is NaN.
        """
        until = deadline(self._timeout if timeout is None else timeout)
        note = Note()
        try:
            return self._wait(note, until)
        except BaseException:
            if note.slot >= 0:
                self._board.step(note, states.leave, note.slot)
            raise

    def _wait(self, note: Note, until: float | None) -> int:
        board, me = self._board, identities.me()
        acts = self._action is not None
        came = board.join(note, until, self._sweep, states.arrive, me, board.fixed, board.slots, acts)
        if came.answer == FULL:
            board.step(note, states.break_barrier, states.TIMED_OUT, me)
        if came.answer in (FULL, REFUSED):
            state = board.read()
            raise _broken(state.mode or states.RESET, state.value)
        if came.answer != QUEUED:
            if not acts:
                return came.detail
            self._act(me)
        told = board.sleep(came.slot, until, self._sweep) or self._run_out(came.slot, me)
        board.step(note, states.leave, came.slot)
        if told is None or told.answer != states.PASSED:
            raise _broken(told.answer - states.BROKEN, told.detail) if told else _broken(states.RESET, 0)
        return told.detail

    def _act(self, me: int) -> None:
        """Run the action in the name of all, who wait meanwhile."""
        try:
            assert self._action is not None
            self._action()
        except BaseException:
            self._board.step(Note(), states.break_barrier, states.ACTION_FAILED, me)
            raise
        self._board.step(Note(), states.let_pass)

    def _run_out(self, slot: int, me: int) -> Waiter | None:
        """The time is over: break the barrier, unless the last one has come and is about to let us pass."""
        self._board.step(Note(), states.run_out, me, self._board.fixed)
        return self._board.sleep(slot, None, self._sweep)

    def _sweep(self) -> None:
        self._board.sweep(states.bury_parties)

    def abort(self) -> None:
        """Break the barrier: whoever waits or comes gets `BrokenBarrierError`, until `reset`."""
        self._board.step(Note(), states.break_barrier, states.ABORTED, identities.me())

    def reset(self) -> None:
        """Make the barrier as new; whoever waits gets `BrokenBarrierError`."""
        self._board.step(Note(), states.reset, identities.me())

    @property
    def parties(self) -> int:
        """How many pass together."""
        return self._board.fixed

    @property
    def n_waiting(self) -> int:
        """How many wait now."""
        return states.waiting(self._board.read())

    @property
    def broken(self) -> bool:
        """Whether it is broken."""
        return self._board.read().mode != states.WHOLE

    def statistics(self) -> BarrierStatistics:
        """Return a picture of the barrier at this moment."""
        state = self._board.read()
        return BarrierStatistics(
            parties=self.parties,
            waiting=states.waiting(state),
            broken=bool(state.mode),
            broken_by=identities.pid_of(state.value) if state.mode else None,
        )

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        cells.only_passed(protocol)
        return _arrive, (type(self), self._action, self._timeout, self._board)

    def __eq__(self, other: object) -> bool:
        """Whether both are the same barrier: of the same memory."""
        return self._board == other._board if isinstance(other, Barrier) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._board)

    def __repr__(self) -> str:
        state = "broken" if self.broken else f"{self.n_waiting} waiting"
        return f"<shoal.{type(self).__name__} of {self.parties}, {state}>"


def _broken(why: int, who: int) -> BrokenBarrierError:
    return BrokenBarrierError(reason=_REASONS[why], pid=identities.pid_of(who) or None)


def _arrive(kind: type[Barrier], action: Callable[[], object] | None, timeout: float | None, board: Board) -> Barrier:
    barrier = kind.__new__(kind)
    barrier._attach(action, timeout, board)
    return barrier
