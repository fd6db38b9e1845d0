"""What semaphores, conditions and barriers do, as plain functions: a state and what happens to it in, a new state out.

Pure: no clocks, no memory, no processes. Whoever calls (`board.py`) is inside the guard, so nothing here takes a lock.

A state is a few numbers, and the line of those who wait, longest first. Who is told something keeps its place in the line, with
the answer, until it has taken note of it: so what was meant for one that has died can be given on.

Invariants
    W1  A slot is in the line at most once, so an answer reaches the one it is meant for.
    W2  Answers are given from the front of the line.
    W3  A semaphore's permits are conserved: what is free, what is under way and what is noted of holders change together.
    W4  No permit comes back from the dead that would make more of them than the semaphore was made with.
    W5  Permits are free only while nobody waits.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final, NamedTuple

# What a waiter was told.
WAITING: Final = 0
#: A permit of a semaphore, or what `notify` said: if its receiver is dead, somebody else gets it.
GRANTED: Final = 1
#: What `notify_all` said: everybody else has been told, too.
TOLD_ALL: Final = 2
PASSED: Final = 3
#: And above, by how much more: why a barrier is broken.
BROKEN: Final = 4

# Why a barrier is broken.
WHOLE: Final = 0
DIED: Final = 1
TIMED_OUT: Final = 2
ABORTED: Final = 3
RESET: Final = 4
ACTION_FAILED: Final = 5

# What the caller of a step is told.
NO: Final = 0
YES: Final = 1
#: It stands in the line now, in `Outcome.slot`.
QUEUED: Final = 2
#: There is no slot for it now.
FULL: Final = 3
#: That may not be done: more permits than the bound, or the barrier is broken.
REFUSED: Final = 4


class Waiter(NamedTuple):
    """One place in the line."""

    slot: int
    who: int
    answer: int = WAITING
    #: At a barrier: its place among those who came together; of a broken one, who broke it.
    detail: int = 0


class State(NamedTuple):
    """Everything about one object that changes.

    Attributes:
        value: Semaphore: free permits. Condition: how often somebody was notified. Barrier: who broke it.
        mode: Barrier: why it is broken, or 0.
        line: Who waits or was told and has not taken note, longest first.
        holders: Semaphore: (process, permits it holds). Barrier: (process, how often it was in the last round).
    """

    value: int = 0
    mode: int = 0
    line: tuple[Waiter, ...] = ()
    holders: tuple[tuple[int, int], ...] = ()


class Outcome(NamedTuple):
    """The state after a step (`None`: as before), the slots to wake, and what the caller is told."""

    state: State | None
    wake: tuple[int, ...] = ()
    answer: int = NO
    slot: int = -1
    detail: int = 0


_NO = Outcome(None)
_FULL = Outcome(None, answer=FULL)


# --- the line -----------------------------------------------------------------------------------


def free_slot(state: State, slots: int) -> int:
    """Return one of so many slots that nobody is in, or -1."""
    taken = {waiter.slot for waiter in state.line}
    return next((slot for slot in range(slots) if slot not in taken), -1)


def join(state: State, who: int, slots: int) -> Outcome:
    """Stand at the end of the line, if there is a slot."""
    slot = free_slot(state, slots)
    if slot < 0:
        return _FULL
    return Outcome(state._replace(line=(*state.line, Waiter(slot, who))), answer=QUEUED, slot=slot)


def find(state: State, slot: int) -> Waiter | None:
    """Return who stands in a slot."""
    return next((waiter for waiter in state.line if waiter.slot == slot), None)


def leave(state: State, slot: int) -> Outcome:
    """Leave the line; the answer is what one was told."""
    found = find(state, slot)
    if found is None:
        return _NO
    line = tuple(waiter for waiter in state.line if waiter.slot != slot)
    return Outcome(state._replace(line=line), answer=found.answer, detail=found.detail)


def tell(state: State, count: int, answer: int) -> Outcome:
    """Give an answer to the first `count` who have none; the answer to the caller is how many there were."""
    line = list(state.line)
    wake: list[int] = []
    for place, waiter in enumerate(line):
        if len(wake) == count:
            break
        if waiter.answer == WAITING:
            line[place] = waiter._replace(answer=answer)
            wake.append(waiter.slot)
    return Outcome(state._replace(line=tuple(line)), tuple(wake), len(wake))


def waiting(state: State) -> int:
    """Return how many wait."""
    return sum(waiter.answer == WAITING for waiter in state.line)


def _living(state: State, dead: Collection[int]) -> tuple[Waiter, ...]:
    return tuple(waiter for waiter in state.line if waiter.who not in dead)


def _orphaned(state: State, dead: Collection[int]) -> int:
    return sum(waiter.answer == GRANTED and waiter.who in dead for waiter in state.line)


# --- semaphore ----------------------------------------------------------------------------------


def held_by(state: State, who: int) -> int:
    """Return how many permits a process is noted to hold."""
    for one, count in state.holders:
        if one == who:
            return count
    return 0


def _noted(state: State, who: int, change: int, room: int) -> tuple[tuple[int, int], ...]:
    """Return the holders when that one holds more or fewer. For whom there is no room is not noted."""
    count = held_by(state, who) + change
    others = tuple([entry for entry in state.holders if entry[0] != who])
    return (*others, (who, count)) if count > 0 and len(others) < room else others


def _grant(state: State) -> Outcome:
    """Give free permits to those who wait (W5)."""
    if not state.line:
        return Outcome(state, (), YES)
    told, wake, given, *_ = tell(state, state.value, GRANTED)
    assert told is not None
    return Outcome(told._replace(value=told.value - given), wake, YES)


def acquire(state: State, who: int, slots: int, room: int) -> Outcome:
    """Take a permit: YES; or stand in line for one, if there are slots at all."""
    if state.value > 0:
        return Outcome(State(state.value - 1, 0, state.line, _noted(state, who, 1, room)), (), YES)
    return join(state, who, slots) if slots else _NO


def release(state: State, who: int, count: int, bound: int) -> Outcome:
    """Give back permits of this process, and add some if it holds fewer. A bound of 0 is none."""
    if bound and state.value + count > bound:
        return Outcome(None, answer=REFUSED)
    holders = _noted(state, who, -min(count, held_by(state, who)), len(state.holders))
    return _grant(State(state.value + count, 0, state.line, holders))


def take(state: State, slot: int, who: int, room: int) -> Outcome:
    """Take the permit one was granted: YES; or NO, and go on waiting."""
    found = find(state, slot)
    if found is None or found.answer != GRANTED:
        return _NO
    left = leave(state, slot).state
    assert left is not None
    return Outcome(left._replace(holders=_noted(left, who, 1, room)), answer=YES)


def give_up(state: State, slot: int) -> Outcome:
    """Leave the line; a permit that was granted meanwhile is given on."""
    left, _, told, *_ = leave(state, slot)
    if left is None or told != GRANTED:
        return Outcome(left)
    return _grant(left._replace(value=left.value + 1))._replace(answer=NO)


def bury_holders(state: State, dead: Collection[int], made_with: int) -> Outcome:
    """Take back what dead processes hold or were granted, and give it to those who wait."""
    line = _living(state, dead)
    holders = tuple(entry for entry in state.holders if entry[0] not in dead)
    if (line, holders) == (state.line, state.holders):
        return _NO
    value = state.value + _orphaned(state, dead)
    alive = value + sum(waiter.answer == GRANTED for waiter in line) + sum(count for _, count in holders)
    held = sum(count for who, count in state.holders if who in dead)
    return _grant(State(value + max(0, min(held, made_with - alive)), 0, line, holders))  # W4


# --- condition ----------------------------------------------------------------------------------


def notify(state: State, count: int) -> Outcome:
    """Tell the first `count`."""
    return tell(state._replace(value=state.value + 1), count, GRANTED)


def notify_all(state: State) -> Outcome:
    """Tell everybody."""
    return tell(state._replace(value=state.value + 1), len(state.line), TOLD_ALL)


def holder_died(state: State) -> Outcome:
    """Somebody died with the lock of the condition, perhaps before it could notify: tell one waiter, unless one is on its way."""
    return _NO if len(state.line) > waiting(state) else tell(state, 1, GRANTED)


def stop_waiting(state: State, slot: int) -> Outcome:
    """Leave the line although one was told; what `notify` said is told the next one."""
    left, _, told, *_ = leave(state, slot)
    return tell(left, 1, GRANTED) if left is not None and told == GRANTED else Outcome(left)


def bury_waiters(state: State, dead: Collection[int]) -> Outcome:
    """Remove dead waiters; what `notify` told them is told the next ones."""
    line = _living(state, dead)
    if line == state.line:
        return _NO
    return tell(state._replace(line=line), _orphaned(state, dead), GRANTED)


# --- barrier ------------------------------------------------------------------------------------


def arrive(state: State, who: int, parties: int, slots: int, acts: bool) -> Outcome:
    """Come to a barrier: QUEUED; or YES for the last one, who lets the others pass, or stands in line if it `acts` first."""
    if state.mode:
        return Outcome(None, answer=REFUSED)
    here = waiting(state)
    if here >= parties:  # the last one of a round acts, and has not let the others pass yet
        return _FULL
    if here + 1 < parties:
        return join(state, who, slots)
    if acts:
        joined = join(state, who, slots)
        return joined._replace(answer=YES) if joined.answer == QUEUED else joined
    passed = let_pass(state, who)
    return passed._replace(detail=here)


def let_pass(state: State, last: int = 0) -> Outcome:
    """Everybody who waits passes, with the `last` one if that does not stand in line. NO if it is broken meanwhile."""
    if state.mode:
        return _NO
    line = list(state.line)
    wake: list[int] = []
    members = {last: 1} if last else {}
    for place, waiter in enumerate(line):
        if waiter.answer == WAITING:
            line[place] = waiter._replace(answer=PASSED, detail=len(wake))
            wake.append(waiter.slot)
            members[waiter.who] = members.get(waiter.who, 0) + 1
    return Outcome(State(0, WHOLE, tuple(line), tuple(members.items())), tuple(wake), YES)


def break_barrier(state: State, why: int, who: int) -> Outcome:
    """Nobody passes any more, until a reset."""
    if state.mode:
        return _NO
    line, wake = _told_broken(state, why, who)
    return Outcome(State(who, why, line), wake, YES)


def run_out(state: State, who: int, parties: int) -> Outcome:
    """Break it because somebody has waited too long; not if all have come, and the last one is about to let them pass."""
    return _NO if waiting(state) >= parties else break_barrier(state, TIMED_OUT, who)


def reset(state: State, who: int) -> Outcome:
    """Make the barrier as new; whoever waits is told that it was broken."""
    line, wake = _told_broken(state, RESET, who)
    return Outcome(State(line=line), wake, YES)


def _told_broken(state: State, why: int, who: int) -> tuple[tuple[Waiter, ...], tuple[int, ...]]:
    line = tuple(
        waiter._replace(answer=BROKEN + why, detail=who) if waiter.answer == WAITING else waiter
        for waiter in state.line
    )
    return line, tuple(waiter.slot for waiter in state.line if waiter.answer == WAITING)


def bury_parties(state: State, dead: Collection[int]) -> Outcome:
    """Break the barrier if a dead process waits at it, or will not come again though others of its last round have."""
    line = _living(state, dead)
    after = state._replace(line=line)
    if not state.mode:
        culprits = [waiter.who for waiter in state.line if waiter.who in dead and waiter.answer == WAITING]
        members = {who for who, _ in state.holders}
        if any(waiter.who in members and waiter.answer == WAITING for waiter in line):
            culprits += sorted(members.intersection(dead))
        if culprits:
            return break_barrier(after, DIED, culprits[0])
    return _NO if line == state.line else Outcome(after, answer=YES)
