"""The board: the state of a semaphore, condition or barrier in shared memory, changed in steps that happen whole or not at all.

Role: a guard, two records of the state and the number that says which one counts; and the slots in which waiters sleep. Owner:
every process that has the object. Protocol: README.md, "The board".

Invariants
    B1  A step is computed from the record that counts, written to the other one, and done by one store of VERSION. Killed
        before it nothing has happened, after it everything.
    B2  Between the last look at VERSION and its store no other code of this thread runs: a signal handler's own step comes
        before or after, and the step it interrupted is computed again.
    B3  Who sleeps looks again after `RECHECK_S`, so a wake-up that a killed process owed is at most that late.
    B4  What a step did is noted in `Note` before any handler can raise, so whoever is interrupted knows what to undo.
"""

from __future__ import annotations

import os
import time
from array import array
from collections.abc import Callable
from typing import Any, Final

from shoal._os import futex, mutex
from shoal._os.mutex import MUTEX_BYTES, OWN
from shoal._sync import cells, identities
from shoal._sync.deadlines import RECHECK_S
from shoal._sync.guard import Guard
from shoal._sync.states import FULL, NO, Outcome, State, Waiter, find

#: How often one looks for whom there is no slot. Seconds.
POLL_S: Final = 0.01
#: Waiters of one object that have a slot.
SLOTS: Final = 64

_HEAD_WORDS: Final = 8
VERSION, SWEPT, SLOT_COUNT, ROOM, FIXED, WAITS = range(6)
_RECORD_HEAD: Final = 4
_MASK: Final = 0xFFFFFFFF

#: Whether stores become visible in the order they are made, and loads happen in theirs.
_ORDERED: Final = os.uname().machine in ("x86_64", "i686", "s390x")

Step = Callable[..., Outcome]
NOTHING: Final = Outcome(None, answer=NO)


class Note:
    """What became of a caller: its slot, or -1; and what the last step told it."""

    __slots__ = ("answer", "slot")

    def __init__(self) -> None:
        self.slot = -1
        self.answer = NO


class Board:
    """A state in a cell."""

    __slots__ = ("_bases", "_guard", "_head", "_sleepers", "_slots_address", "_words", "cell", "room", "slots")

    def __init__(self, cell: cells.Cell) -> None:
        self.cell = cell
        self._guard = Guard(cell.address)
        self._head = head = cell.words(MUTEX_BYTES, _HEAD_WORDS)
        self.slots, self.room = int(head[SLOT_COUNT]), int(head[ROOM])
        size = _record_words(self.slots, self.room)
        start = MUTEX_BYTES + 8 * _HEAD_WORDS
        self._words = cell.words(start, 2 * size)
        self._bases = (0, size)
        self._sleepers = cell.words(start + 16 * size, self.slots, "I")
        self._slots_address = cell.address + start + 16 * size

    @classmethod
    def make(cls, state: State, *, slots: int = SLOTS, room: int = 0, fixed: int = 0) -> Board:
        """Return a new board: slots for waiters, room for holders, and a number that never changes."""
        size = _record_words(slots, room)
        cell = cells.make(MUTEX_BYTES + 8 * _HEAD_WORDS + 16 * size + 4 * slots)
        mutex.make(cell.address)
        head = cell.words(MUTEX_BYTES, _HEAD_WORDS)
        head[SLOT_COUNT], head[ROOM], head[FIXED] = slots, room, fixed
        board = cls(cell)
        record = _encoded(state)
        board._words[: len(record)] = record
        return board

    @property
    def fixed(self) -> int:
        """The number given to `make`."""
        return int(self._head[FIXED])

    @property
    def waits(self) -> int:
        """How often somebody had to wait; counted loosely."""
        return int(self._head[WAITS])

    # --- reading --------------------------------------------------------------------------------

    def read(self) -> State:
        """Return the state. Takes no lock where the processor lets others see stores in their order."""
        head = self._head
        if not _ORDERED:
            got = self._guard.enter()
            try:
                return self._decoded(head[VERSION]) or State()
            finally:
                if got != OWN:
                    self._guard.leave()
        while True:
            version = head[VERSION]
            state = self._decoded(version)
            # The record that counts is written to again only after another one has counted.
            if state is not None and head[VERSION] == version:
                return state

    def _decoded(self, version: int) -> State | None:
        base = self._bases[version & 1]
        words = self._words
        value, mode, waiters, holders = words[base : base + _RECORD_HEAD].tolist()
        if not waiters and not holders:
            return State(value, mode)
        if waiters > self.slots or holders > self.room:
            return None  # torn: somebody is writing
        at = base + _RECORD_HEAD
        end = 3 * waiters
        flat = words[at : at + end + 2 * holders].tolist()
        line = [Waiter(flat[n + 1] >> 8, flat[n], flat[n + 1] & 0xFF, flat[n + 2]) for n in range(0, end, 3)]
        return State(value, mode, tuple(line), tuple(zip(flat[end::2], flat[end + 1 :: 2], strict=True)))

    # --- steps ----------------------------------------------------------------------------------

    def step(self, note: Note, function: Step, *arguments: object) -> Outcome:
        """Do one step, and wake whom it says. Does not wait but for the guard."""
        head, words = self._head, self._words
        got = self._guard.enter()
        try:
            while True:
                version = head[VERSION]
                state = self._decoded(version)
                outcome = function(state, *arguments)
                after = outcome.state
                if after is None:
                    note.answer = outcome.answer
                    return outcome
                record = _encoded(after)
                base = self._bases[~version & 1]
                place = slice(base, base + len(record))
                answer, slot = outcome.answer, outcome.slot
                if head[VERSION] == version:
                    words[place] = record
                    head[VERSION] = version + 1
                    note.answer = answer
                    note.slot = slot
                    break
            for sleeper in outcome.wake:
                self._sleepers[sleeper] = (self._sleepers[sleeper] + 1) & _MASK
        finally:
            if got != OWN:
                self._guard.leave()
        for sleeper in outcome.wake:
            futex.wake(self._slots_address + 4 * sleeper)
        return outcome

    # --- waiting --------------------------------------------------------------------------------

    def sleep(self, slot: int, deadline: float | None, sweep: Callable[[], object]) -> Waiter | None:
        """Sleep in one's slot until told something; returns that, or None when the time is over."""
        sleepers, address = self._sleepers, self._slots_address + 4 * slot
        self._head[WAITS] += 1
        while True:
            seen = sleepers[slot]
            found = find(self.read(), slot)
            if found is None or found.answer:
                return found
            left_s = RECHECK_S if deadline is None else min(RECHECK_S, deadline - time.monotonic())
            if left_s <= 0:
                return None
            if not futex.wait(address, seen, left_s):
                sweep()

    def poll(self, deadline: float | None, sweep: Callable[[], object]) -> bool:
        """Pause a little, for want of a slot; False when the time is over."""
        left_s = POLL_S if deadline is None else min(POLL_S, deadline - time.monotonic())
        if left_s <= 0:
            return False
        time.sleep(left_s)
        sweep()
        return True

    def join(self, note: Note, deadline: float | None, sweep: Callable[[], object], *step: Any) -> Outcome:
        """Do a step that may find no slot until it does; FULL when the time is over."""
        outcome = self.step(note, *step)
        while outcome.answer == FULL and self.poll(deadline, sweep):
            outcome = self.step(note, *step)
        return outcome

    # --- the dead -------------------------------------------------------------------------------

    def sweep(self, bury: Step, *arguments: object, at_once: bool = False) -> Outcome:
        """Do the step `bury` with those in the state who are dead; unless somebody has just looked, or nobody is."""
        now = time.monotonic_ns()
        if not at_once and abs(now - self._head[SWEPT]) < RECHECK_S * 0.9e9:
            return NOTHING
        self._head[SWEPT] = now
        state = self.read()
        known = {waiter.who for waiter in state.line}.union(who for who, _ in state.holders)
        known.discard(identities.me())
        dead = frozenset(who for who in known if identities.gone(who))
        return self.step(Note(), bury, dead, *arguments) if dead else NOTHING

    def __eq__(self, other: object) -> bool:
        """Whether both are the same memory."""
        return self.cell.address == other.cell.address if isinstance(other, Board) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.cell.address)

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return Board, (self.cell,)


def _record_words(slots: int, room: int) -> int:
    return _RECORD_HEAD + 3 * slots + 2 * room


def _encoded(state: State) -> array[int]:
    flat = [state.value, state.mode, len(state.line), len(state.holders)]
    for waiter in state.line:
        flat += waiter.who, waiter.slot << 8 | waiter.answer, waiter.detail
    for entry in state.holders:
        flat += entry
    return array("Q", flat)
