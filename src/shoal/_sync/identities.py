"""Who somebody is, in one word of shared memory.

Role: pack the identity of a process, or of a thread of it, into 64 bits, and say whether it is gone. Owner: nobody.

Invariants
    I1  A word is never 0, and names one process (`me`) or one thread (`this_thread`) for as long as that lives.
    I2  A forked child is somebody else.
"""

from __future__ import annotations

import os
import threading
from typing import Final

from shoal._os import processes

#: Linux never has a pid of more bits; the rest is for the start time, in ticks.
_START_BITS: Final = 42
_START_MASK: Final = (1 << _START_BITS) - 1


def pack(pid: int, start: int) -> int:
    """Return the word of a process."""
    return pid << _START_BITS | start & _START_MASK


def pid_of(who: int) -> int:
    """Return the pid in the word of a process."""
    return who >> _START_BITS


def gone(who: int) -> bool:
    """Has that process ended? See `processes.gone`."""
    return processes.gone(pid_of(who), who & _START_MASK)


def me() -> int:
    """Return the word of this process."""
    return _mine.word or _mine.find()


class _Mine:
    __slots__ = ("word",)

    def __init__(self) -> None:
        self.word = 0

    def find(self) -> int:
        self.word = pack(*processes.identity())
        return self.word


def this_thread() -> int:
    """Return the word of the current thread: its pid, and its number as the kernel counts threads."""
    return os.getpid() << 32 | threading.get_native_id()


def thread_pid(word: int) -> int:
    """Return the pid in the word of a thread."""
    return word >> 32


def thread_lives(word: int) -> bool:
    """Is there such a thread, and has it not ended? Its number may have been used again: not for decisions.

    One that has ended, but is a zombie, has let go of its mutexes. What cannot be found out counts as alive.
    """
    place = f"/proc/{word >> 32}/task/{word & 0xFFFFFFFF}"
    if not os.path.exists(place):
        return False
    try:
        with open(f"{place}/stat", "rb") as file:
            return processes.stat_fields(file.read())[0] not in (b"Z", b"X")
    except OSError:
        return True


_mine = _Mine()


def _become_another() -> None:
    _mine.word = 0


os.register_at_fork(after_in_child=_become_another)
