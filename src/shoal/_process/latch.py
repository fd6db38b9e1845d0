"""Something that happens once, and those who wait for it.

Role: what `threading.Event` is for, safe from Ctrl-C. Owner: whoever made it. Any thread may call anything.

An exception that a signal handler raises strikes between any two steps of Python code. In an `Event` that may be while its
inner lock is held, or is thought to be held, and whoever sets it later waits for ever. Here no lock is held by anybody who
waits: each waiter has one of its own, which only `set` releases.

Invariants
    L1  A waiter is on the list before it looks whether it has happened; `set` says so before it looks at the list.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque


class Latch:
    """It has happened, or not yet."""

    __slots__ = ("_set", "_waiters")

    def __init__(self) -> None:
        self._set = False
        self._waiters: deque[threading.Lock] = deque()

    def is_set(self) -> bool:
        """Whether it has happened."""
        return self._set

    def set(self) -> None:
        """It has happened. Wakes everybody."""
        self._set = True
        while self._waiters:
            with contextlib.suppress(IndexError):  # two threads may be at it
                self._waiters.popleft().release()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it has happened, or `timeout` seconds have passed; return whether it has."""
        if self._set:
            return True
        mine = threading.Lock()
        mine.acquire()
        self._waiters.append(mine)
        if self.is_set():  # L1: `set` may not have seen us
            return True
        mine.acquire(timeout=-1 if timeout is None else timeout)
        if not self._set:  # who gave up is not to stay on the list
            with contextlib.suppress(ValueError):
                self._waiters.remove(mine)
        return self._set
