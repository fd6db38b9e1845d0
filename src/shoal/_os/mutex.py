"""Locks in shared memory that survive the death of whoever holds them: the kernel's robust mutexes.

Role: pthread mutexes that are process-shared, robust and error-checking, through `ctypes`. Owner: nobody; whoever has the
memory has the lock, and keeps the memory mapped while it holds it.

Invariants
    M1  A mutex belongs to the *thread* that locked it. When that thread or its process ends, however it ends, the kernel gives
        it to the next one, who is told.
    M2  Nobody ever sees a mutex in need of repair: who is told of a death has already made it consistent. Killed between
        being told and that, the next one is told again.
    M3  Waiting answers signals: it is done in slices of `SLICE_S`, between which Python runs its handlers.
Relies on
    - The page stays mapped while a mutex on it is held: at a death the kernel walks the list of held mutexes in the dead
      process's memory, and stops at a page that is not there.

Rejected
    an unbounded pthread_mutex_lock   it does not come back for a signal, so Ctrl-C would have to wait for the lock
    a lock word of our own            Python has no compare-and-swap, and a compiler may not be needed to install
"""

from __future__ import annotations

import ctypes
import errno
import os
import time
from typing import Any, Final

#: Room for one mutex; 40 bytes with glibc and musl on 64-bit machines, and a line of its own in the processor's caches.
MUTEX_BYTES: Final = 64
#: How long a signal may go unanswered. Seconds.
SLICE_S: Final = 0.1

#: What `try_lock` and `lock` answer. Anything that counts as true means: it is yours now.
BUSY: Final = 0
LOCKED: Final = 1
#: Yours, and the thread that held it ended without unlocking it.
OWNER_DIED: Final = 2
#: Not locked again: this thread holds it already. Negative, because waiting would never end.
OWN: Final = -1

_PROCESS_SHARED: Final = 1
_ERRORCHECK: Final = 2
_ROBUST: Final = 1
_CLOCK_MONOTONIC: Final = 1

# What cannot block keeps the interpreter's lock: cheaper, and no other thread is let in between.
_quick = ctypes.PyDLL(None)
_libc = ctypes.CDLL(None)


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


_trylock: Any = _quick.pthread_mutex_trylock
_unlock: Any = _quick.pthread_mutex_unlock
_consistent: Any = _quick.pthread_mutex_consistent
for _function in (_trylock, _unlock, _consistent):
    _function.argtypes = [ctypes.c_void_p]
    _function.restype = ctypes.c_int

# musl has no clocklock; a slice on the wall clock ends late when somebody turns that back, never early enough to matter.
_by_monotonic = hasattr(_libc, "pthread_mutex_clocklock")
if _by_monotonic:
    _clocklock: Any = _libc.pthread_mutex_clocklock
    _clocklock.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p]
else:
    _timedlock: Any = _libc.pthread_mutex_timedlock
    _timedlock.argtypes = [ctypes.c_void_p, ctypes.c_void_p]


def make(address: int) -> None:
    """Make a mutex of the `MUTEX_BYTES` zero bytes at `address`.

    Raises:
        OSError: This system has no robust mutexes between processes.
    """
    attributes = ctypes.create_string_buffer(64)
    steps: list[tuple[str, tuple[Any, ...]]] = [
        ("pthread_mutexattr_init", (attributes,)),
        ("pthread_mutexattr_setpshared", (attributes, _PROCESS_SHARED)),
        ("pthread_mutexattr_setrobust", (attributes, _ROBUST)),
        ("pthread_mutexattr_settype", (attributes, _ERRORCHECK)),
        ("pthread_mutex_init", (ctypes.c_void_p(address), attributes)),
    ]
    for name, arguments in steps:
        number = getattr(_libc, name)(*arguments)
        if number:
            raise OSError(number, f"{name}: {os.strerror(number)}")


def try_lock(address: int) -> int:
    """Lock the mutex at `address` if that can be done now; returns LOCKED, OWNER_DIED, BUSY or OWN.

    Raises:
        OSError: There is no mutex at that address.
    """
    number = _trylock(address)
    return LOCKED if not number else answer(address, number)


#: Lock the mutex at an address if that can be done now; returns 0 if so, else what `answer` is to be asked about. One C call.
try_lock_now: Any = _trylock


def answer(address: int, number: int) -> int:
    """Return what `try_lock` would have, for a number other than 0 that `try_lock_now` returned."""
    if number == errno.EOWNERDEAD:
        _consistent(address)  # M2
        return OWNER_DIED
    if number in (errno.EBUSY, errno.ETIMEDOUT):
        return BUSY
    if number == errno.EDEADLK:
        return OWN
    raise OSError(number, f"mutex: {os.strerror(number)}")


def lock(address: int, timeout_s: float | None = None) -> int:
    """Lock the mutex at `address`; returns LOCKED, OWNER_DIED, OWN, or BUSY after `timeout_s` seconds (None: no limit).

    Other threads run meanwhile. What a signal handler raises comes out of here, and then the mutex is not locked.

    Raises:
        OSError: As `try_lock`.
    """
    got = try_lock(address)
    if got or timeout_s == 0:
        return got
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    limit = _Timespec()
    pointer = ctypes.addressof(limit)
    while True:
        left_s = SLICE_S if deadline is None else min(SLICE_S, deadline - time.monotonic())
        if left_s <= 0:
            return BUSY
        if _lock_until(address, limit, pointer, left_s, found := _Answer()):
            return found.got


class _Answer:
    """What a wait found, kept where a signal handler that raises cannot lose it."""

    __slots__ = ("got",)

    def __init__(self) -> None:
        self.got = BUSY


def _lock_until(address: int, limit: _Timespec, pointer: int, slice_s: float, found: _Answer) -> bool:
    clock = time.clock_gettime_ns(time.CLOCK_MONOTONIC if _by_monotonic else time.CLOCK_REALTIME) + int(slice_s * 1e9)
    limit.seconds, limit.nanoseconds = divmod(clock, 1_000_000_000)
    number = errno.EBUSY
    try:
        number = _clocklock(address, _CLOCK_MONOTONIC, pointer) if _by_monotonic else _timedlock(address, pointer)
        found.got = LOCKED if not number else answer(address, number)
    except BaseException:
        # A handler raised, perhaps an OSError, as the call came back, perhaps with the lock.
        give_up(address)
        raise
    return found.got != BUSY


#: Unlock the mutex at an address and return 0; another number if this thread does not hold it. One C call: a signal handler
#: that raises comes before or after it, never between its beginning and its effect.
unlock_now: Any = _unlock


def unlock(address: int) -> bool:
    """Unlock the mutex at `address`; False if this thread does not hold it."""
    return not _unlock(address)


def give_up(address: int) -> None:
    """Unlock the mutex at `address` if this thread holds it; for whoever was interrupted while taking it.

    It may just have been told of a death (M2): unlocked as it is, the mutex would be of no use to anybody ever again.
    """
    _consistent(address)
    _unlock(address)
