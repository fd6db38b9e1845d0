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
from collections.abc import Callable


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
        mine.acquire(timeout=-1 if timeout is None or timeout > threading.TIMEOUT_MAX else max(0.0, timeout))
        if not self._set:  # who gave up is not to stay on the list
            with contextlib.suppress(ValueError):
                self._waiters.remove(mine)
        return self._set


class StopEvent(threading.Event):
    """A `threading.Event` for users to look at and wait for, made of a latch.

    `ask` is called by `set` in its place: where setting it would be without effect it does what is meant by that, or refuses.
    """

    def __init__(self, ask: Callable[[], object] | None = None) -> None:
        # Not the base's: its condition is what is to be avoided.
        self._latch = Latch()
        self._ask = ask

    def is_set(self) -> bool:
        """Whether it has happened."""
        return self._latch.is_set()

    isSet = is_set  # noqa: N815 - as the base has it

    def set(self) -> None:
        """Have it happen."""
        if self._ask is not None:
            self._ask()
        else:
            self.note()

    def note(self) -> None:
        """It has happened. Wakes everybody."""
        self._latch.set()

    def clear(self) -> None:
        """Be as if it had not happened."""
        if self._latch.is_set():
            self._latch = Latch()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it has happened, or `timeout` seconds have passed; return whether it has."""
        return self._latch.wait(timeout)

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {'set' if self.is_set() else 'unset'}>"
