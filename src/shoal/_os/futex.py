"""Sleep until a word of shared memory changes, and wake who sleeps.

Role: the futex system call through `ctypes`. Owner: nobody; whoever shares the word agrees on what it means.

Invariants
    X1  `wait` returns at once if the word is not what the caller saw, so a change between looking and sleeping is not missed.
    X2  `wait` may return without a reason. Callers look again.
Relies on
    - A little-endian machine, so that the half of a 64-bit word that begins at its address is the one that changes.
      Known to work on x86-64. The others in `_NUMBERS` have such an order and this call, but nothing was ever run on them.
    - Whoever changes the word calls `wake` after it, and may be killed in between, or a woken one before it acts. So nobody
      waits without a limit: see `_sync/README.md` about the bounded recheck.
"""

from __future__ import annotations

import ctypes
import errno
import platform
from typing import Any, Final

#: Number of the system call, by machine; the newer architectures share one table.
_NUMBERS: Final = {"x86_64": 202, "aarch64": 98, "riscv64": 98, "ppc64le": 221, "loongarch64": 98}
_WAIT: Final = 0
_WAKE: Final = 1
EVERYBODY: Final = 0x7FFFFFFF

_libc = ctypes.CDLL(None, use_errno=True)
_syscall: Any = _libc.syscall
_syscall.restype = ctypes.c_long
# Variadic, but all six arguments are words here, which every calling convention we run on passes alike.
_syscall.argtypes = [ctypes.c_long, ctypes.c_void_p, ctypes.c_long, ctypes.c_long, ctypes.c_void_p]
_quick: Any = ctypes.PyDLL(None).syscall
_quick.restype = ctypes.c_long
_quick.argtypes = _syscall.argtypes


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


def _number() -> int:
    machine = platform.machine()
    if machine not in _NUMBERS:
        raise OSError(errno.ENOSYS, f"shoal does not know the futex call of {machine}")
    return _NUMBERS[machine]


_FUTEX: Final = _number()


#: Let somebody else run on this processor, and the other threads of this process, for a moment; about 1 us if nobody wants to.
give_way: Any = _libc.sched_yield


def wait(address: int, seen: int, timeout_s: float) -> bool:
    """Sleep while the 32-bit word at `address` is `seen`, for up to `timeout_s` seconds. Other threads run meanwhile.

    Returns False if the time was over; True if woken, if the word was another, if a signal came, or for no reason (X2).
    """
    limit = _Timespec(int(timeout_s), int(timeout_s % 1 * 1e9))
    if _syscall(_FUTEX, address, _WAIT, seen, ctypes.addressof(limit)) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.EAGAIN, errno.EINTR):
        return True
    if number == errno.ETIMEDOUT:
        return False
    raise OSError(number, "futex wait")


def wake(address: int, count: int = 1) -> int:
    """Wake up to `count` of those who sleep on the word at `address`; returns how many. Does not block."""
    return int(_quick(_FUTEX, address, _WAKE, count, None))
