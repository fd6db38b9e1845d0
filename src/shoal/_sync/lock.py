"""Locks that survive whoever holds them: the next owner gets them, and is told.

Role: `Lock`, `RLock` and the `Hold` they give. Owner: the thread that acquired it. Protocol: README.md, "Lock".

Invariants
    L1  Only the thread that has the mutex writes OWNER and DEPTH; OWNER is its word from the moment it has entered until it
        leaves, else 0. Who enters and finds another word there takes over from somebody who died inside.
    L2  Whoever waits for the mutex has said so in QUEUED, so one who leaves and wants to enter again goes to the door first.
    L3  The memory of a lock stays mapped while a thread here holds it, and until the kernel has put away a thread that
        ended so, though nobody else has the object any more.
    L4  No signal handler runs between the store of OWNER and the return to the caller, nor between the store of 0 and the
        unlocking: what a handler raises finds the lock either held, with an owner, or not held.
    L5  Nobody waits for a process that does not hold the lock, such as one that was stopped at the door.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from shoal._os import mutex
from shoal._os.mutex import BUSY, MUTEX_BYTES, OWN
from shoal._sync import cells
from shoal._sync.deadlines import deadline, left, seconds
from shoal._sync.identities import this_thread, thread_lives, thread_pid

LockT = TypeVar("LockT", bound="_BaseLock")

_WORDS: Final = 8
OWNER, DEPTH, QUEUED, WAITS, ABANDONED = range(5)
_CELL_BYTES: Final = 2 * MUTEX_BYTES + 8 * _WORDS
#: How long one waits at the door before one looks whether the lock is free all the same (L5). Seconds.
TURN_S: Final = 0.1

#: What a thread holds: the cells of its locks, by the address of their mutex.
Held = dict[int, cells.Cell]


#: By the word of each thread of this process (L3): what it is in ends before the kernel lets go of what it held.
_threads: dict[int, Held] = {}
#: How many threads are noted before one looks which have ended; it grows with those that live.
_LOOK_AT: Final = 32
_look_at = _LOOK_AT


class _Local(threading.local):
    """`state` of the current thread: what it holds, and its word. A pair, because one look is quicker than two."""

    def __init__(self) -> None:
        self.state: tuple[Held, int] = ({}, this_thread())
        if len(_threads) >= _look_at:
            _forget_the_ended()
        _threads[self.state[1]] = self.state[0]


def _forget_the_ended() -> None:
    """Look at every thread; so not for each that comes, but when there are twice as many as the last time."""
    global _look_at
    for word in list(_threads):
        if not thread_lives(word):
            _threads.pop(word, None)
    _look_at = max(_LOOK_AT, 2 * len(_threads))


_local = _Local()


def _hold_nothing() -> None:
    _threads.clear()
    _local.__init__()  # type: ignore[misc]


os.register_at_fork(after_in_child=_hold_nothing)


@dataclass(frozen=True, slots=True, kw_only=True)
class LockStatistics:
    """A lock at one moment.

    Attributes:
        holder: Process id of who holds it, or `None`.
        queued: Whether somebody waits for it.
        waits: How often it was acquired by somebody who had to wait for it.
        abandoned: How often its next owner got it from one that had died.
    """

    holder: int | None
    queued: bool
    waits: int
    abandoned: int


class Hold:
    """One hold of a lock: true, and a context manager that releases it. What `acquire` returns after a time-out is false.

    Attributes:
        abandoned_by: Process id of the holder that died with the lock in its hand, from whom this hold was taken over; what
            the lock protects may be half changed. `None` if nobody did.
    """

    __slots__ = ("_cell", "_mutex", "_words", "abandoned_by")

    abandoned_by: int | None

    def __init__(self, cell: cells.Cell, words: cells.Words, address: int, abandoned_by: int | None = None) -> None:
        self._cell = cell
        self._words = words
        self._mutex = address
        self.abandoned_by = abandoned_by

    @property
    def abandoned(self) -> bool:
        """Whether the last holder died with the lock in its hand."""
        return self.abandoned_by is not None

    def release(self) -> None:
        """Release the lock; see `Lock.release`."""
        words = self._words
        held, _ = _local.state
        if self._mutex not in held:
            raise _not_held(words[OWNER])
        if words[DEPTH]:
            words[DEPTH] -= 1
            return
        words[OWNER] = 0  # L4: from here to the unlocking there is no call
        del held[self._mutex]
        mutex.unlock_now(self._mutex)

    def __enter__(self) -> Hold:
        return self

    def __exit__(self, *problem: object) -> None:
        self.release()

    def __bool__(self) -> bool:
        return True

    def __eq__(self, other: object) -> bool:
        """Equal to itself and to `True`, so that it can stand where `threading` returns `True`."""
        return other is bool(self) or other is self

    def __hash__(self) -> int:
        return hash(bool(self))

    def __repr__(self) -> str:
        taken_over = f", abandoned by process {self.abandoned_by}" if self.abandoned else ""
        return f"<shoal.Hold{taken_over}>"


class NoHold(Hold):
    """What `acquire` returns when it did not get the lock: false, and not to be entered."""

    __slots__ = ()

    def release(self) -> None:
        raise RuntimeError("cannot release a lock that was not acquired")

    def __enter__(self) -> Hold:
        owner = self._words[OWNER]
        raise TimeoutError(f"the lock was not acquired: {_held_by(owner)}")

    def __bool__(self) -> bool:
        return False

    def __repr__(self) -> str:
        return "<shoal.Hold: not acquired>"


def _held_by(owner: int) -> str:
    if not owner:
        return "nobody holds it"
    own = thread_pid(owner) == os.getpid()
    return "another thread of this process holds it" if own else f"process {thread_pid(owner)} holds it"


def _not_held(owner: int) -> RuntimeError:
    return RuntimeError(f"this thread does not hold the lock, so it cannot release it: {_held_by(owner)}")


class _BaseLock:
    """What `Lock` and `RLock` have in common."""

    __slots__ = ("__weakref__", "_cell", "_hold", "_mutex", "_words")

    _recursive = False

    def __init__(self) -> None:
        cell = cells.make(_CELL_BYTES)
        mutex.make(cell.address)
        mutex.make(cell.address + MUTEX_BYTES)
        self._attach(cell)

    def _attach(self, cell: cells.Cell) -> None:
        self._cell = cell
        self._mutex = cell.address + MUTEX_BYTES
        self._words = cell.words(2 * MUTEX_BYTES, _WORDS)
        self._hold = Hold(cell, self._words, self._mutex)  # every hold but an abandoned one

    def acquire(self, block: bool = True, timeout: float | None = None, *, blocking: bool | None = None) -> Hold:
        """Acquire the lock, and return the hold; a false one if it is not to be had in time.

        Waits for who holds it, and behind who has waited longer. Other threads run meanwhile, signals are answered within
        0.1 s. If the holder died with the lock in its hand, `abandoned_by` of the hold says so. As a context manager the
        hold releases the lock, and a false one raises `TimeoutError`.

        Args:
            block: Whether to wait at all.
            timeout: Seconds to wait; `None` is no limit, less than 0 is 0.
            blocking: Another name of `block`, that of `threading`.

        Raises:
            RuntimeError: This thread holds it already and would wait for ever (`Lock` only).
            TypeError: `timeout` is no number.
            ValueError: `timeout` is NaN.
        """
        if timeout is not None:
            timeout = seconds(timeout)
        words, address = self._words, self._mutex
        held, me = _local.state
        try:
            number = errno.EBUSY if words[QUEUED] and address not in held else mutex.try_lock_now(address)
            if not number and not words[OWNER]:
                held[address] = self._cell
                words[OWNER] = me
                return self._hold
            hold = self._acquire_slowly(number, block if blocking is None else blocking, timeout)
            if hold is not None:
                return hold
        except BaseException:
            if address not in held:  # else we have entered before
                mutex.give_up(address)
            raise
        # Outside the `try`: if this is a signal handler, what it is refused is of the thread it came upon, and stays that one's.
        return self._acquire_again(block if blocking is None else blocking, timeout)

    # An alias, not a method that calls it: a `with` statement that is interrupted has either entered or not (L4).
    __enter__ = acquire

    def __exit__(self, *problem: object) -> None:
        self._hold.release()

    def release(self) -> None:
        """Release the lock.

        Raises:
            RuntimeError: This thread does not hold it.
        """
        self._hold.release()

    def _acquire_slowly(self, number: int, block: bool, timeout: float | None) -> Hold | None:
        """Returns `None` if this thread has the mutex already."""
        words = self._words
        held, me = _local.state
        got = BUSY if number == errno.EBUSY else mutex.answer(self._mutex, number) if number else mutex.LOCKED
        if not got:
            # Who does not wait overtakes nobody for long, and the one at the door may be stopped (L5).
            got = self._queue(timeout) if block and timeout != 0 else mutex.try_lock(self._mutex)
        if got == OWN:
            return None
        if not got:
            return NoHold(self._cell, words, self._mutex)
        dead = 0 if self._mutex in held else words[OWNER]
        hold = Hold(self._cell, words, self._mutex, thread_pid(dead)) if dead else self._hold
        if dead:
            words[ABANDONED] += 1
            _forget_the_ended()  # perhaps it was a thread of ours
        words[DEPTH] = 0
        held[self._mutex] = self._cell
        words[OWNER] = me
        return hold

    def _queue(self, timeout: float | None) -> int:
        """Wait at the door, then for the mutex; by turns while the door is not to be had. Returns what `mutex.lock` does."""
        words, door = self._words, self._cell.address
        until = deadline(timeout)
        at_door, said = BUSY, False
        try:
            while True:
                # OWN: a signal handler wants the lock while its own thread waits for it, and has its place.
                at_door = at_door or mutex.lock(door, left(until, TURN_S))
                # Again at each turn: others, as they leave, may have taken it back.
                words[QUEUED] = said = True
                turn_s = left(until, TURN_S)
                got = mutex.lock(self._mutex, turn_s)
                if got > 0:
                    words[WAITS] += 1
                if got or not turn_s:
                    return got
        finally:
            if at_door != OWN:
                if said:
                    words[QUEUED] = False
                mutex.give_up(door)  # interrupted, perhaps, as one was told of a death there

    def _acquire_again(self, block: bool, timeout: float | None) -> Hold:
        """This thread has the mutex already."""
        words = self._words
        held, me = _local.state
        if self._recursive:
            # In a signal handler that came as its thread was entering we are the first to enter.
            held[self._mutex] = self._cell
            words[OWNER] = me
            words[DEPTH] += 1
            return self._hold
        if block and timeout is None:
            raise RuntimeError(
                "this thread holds the lock already, and would wait for itself for ever; see shoal.RLock"
            )
        if block and timeout is not None and timeout > 0:
            time.sleep(timeout)
        return NoHold(self._cell, words, self._mutex)

    @property
    def holder(self) -> int | None:
        """Process id of who holds the lock now, or `None`."""
        owner = self._words[OWNER]
        # A holder that died leaves its word to the next one.
        return thread_pid(owner) if owner and thread_lives(owner) else None

    def locked(self) -> bool:
        """Say whether somebody holds the lock."""
        return self.holder is not None

    def statistics(self) -> LockStatistics:
        """Return a picture of the lock at this moment."""
        words = self._words
        return LockStatistics(
            holder=self.holder, queued=bool(words[QUEUED]), waits=words[WAITS], abandoned=words[ABANDONED]
        )

    # --- for a condition ------------------------------------------------------------------------

    def _is_mine(self) -> bool:
        return self._mutex in _local.state[0]

    def _is_abandoned(self) -> bool:
        """Whether its holder has died and nobody has taken it over yet."""
        words, address = self._words, self._mutex
        held, _ = _local.state
        dead = words[OWNER]
        if not dead or address in held:
            return False
        got = BUSY
        try:
            # Only the kernel knows for sure. The word stays for the next owner, who is told by it.
            got = mutex.try_lock(address)
            return got > 0 and words[OWNER] != 0
        finally:
            if address not in held:
                mutex.give_up(address)
            elif got > 0:  # a signal handler has been in and out of a reentrant lock meanwhile
                words[OWNER] = dead
                del held[address]
                mutex.unlock_now(address)

    def _depth(self) -> int:
        return int(self._words[DEPTH])

    def _release_all(self) -> None:
        """Release it however often it is held."""
        self._words[DEPTH] = 0
        self._hold.release()

    def _acquire_all(self, depth: int) -> Hold:
        """Undo `_release_all`, which may have been interrupted; `depth` is that of before."""
        hold = self._hold if self._is_mine() else self.acquire()
        self._words[DEPTH] = depth
        return hold

    # --- one lock, many processes ---------------------------------------------------------------

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        cells.only_passed(protocol)
        return _arrive, (type(self), self._cell)

    def __eq__(self, other: object) -> bool:
        """Whether both are the same lock: of the same memory."""
        return self._mutex == other._mutex if isinstance(other, _BaseLock) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._mutex)

    def __repr__(self) -> str:
        holder = self.holder
        return f"<shoal.{type(self).__name__}, {'free' if holder is None else f'held by process {holder}'}>"


def _arrive(kind: type[LockT], cell: cells.Cell) -> LockT:
    lock = kind.__new__(kind)
    lock._attach(cell)
    return lock


class Lock(_BaseLock):
    """A lock for any number of processes and threads that survives the death of whoever holds it.

    As `multiprocessing.Lock`, except that the thread that acquired it has to release it, and that its next owner is told when
    a holder died, at whatever instant and however::

        with lock as hold:
            if hold.abandoned:
                repair()
            ...

    Pass it to tasks and processes as an argument, alone or inside others; forked children inherit it. All of them have the
    same lock. Whoever waits is served in turn, roughly.

    Raises:
        NoSharedMemory: There is no memory, or no descriptor, for it.
    """

    __slots__ = ()


class RLock(_BaseLock):
    """As `Lock`, but the thread that holds it may acquire it again; it is free when it was released as often."""

    __slots__ = ()

    _recursive = True
