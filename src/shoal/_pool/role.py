"""The role: who reads the sockets of a pool.

Role: leader and followers. One thread at a time leads, which is to read for all; callers that wait for something
follow, asleep, until what they wait for is there or the lead is free. Owner: `engine.Engine`.

Invariants
    R1  At most one thread leads.
    R2  While somebody follows, the lead does not stay free: whoever gives it up, or stops following, wakes one who
        follows. The background thread is no substitute: it may be held up in a callback, or follow in one.
    R3  A follower is on the list before it looks whether the lead is free; a leader looks at the list after freeing it.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable


class Role:
    """The lead of one pool, and those who wait for it. Any thread may call anything."""

    def __init__(self) -> None:
        self._lead = threading.Lock()
        self._leader = 0
        self._followers: deque[threading.Condition] = deque()

    @property
    def mine(self) -> bool:
        """Whether this thread leads."""
        return self._leader == threading.get_ident()

    @property
    def taken(self) -> bool:
        """Whether somebody leads."""
        return self._lead.locked()

    def take(self) -> bool:
        """Lead, if nobody does. Does not block."""
        if not self._lead.acquire(blocking=False):
            return False
        self._leader = threading.get_ident()
        return True

    def await_last(self) -> None:
        """Take the lead for good, as soon as it is free."""
        self._lead.acquire()

    def leave(self) -> None:
        """Give the lead up."""
        self._leader = 0
        self._lead.release()
        self.pass_on()

    def pass_on(self) -> None:
        """Wake one follower, if the lead is free (R2)."""
        if self._followers and not self._lead.locked():
            with contextlib.suppress(IndexError):  # it left meanwhile, and wakes the next one itself
                changed = self._followers[0]
                with changed:
                    changed.notify_all()

    def follow(self, ready: Callable[[], bool], changed: threading.Condition, timeout: float | None) -> None:
        """Sleep until `ready()`, the lead is free, or `timeout` seconds passed. May return early.

        `changed` is notified by whoever makes `ready()` true. The caller calls `pass_on` when it does not go on to lead.
        """
        self._followers.append(changed)
        try:
            with changed:
                if not ready() and self._lead.locked():
                    changed.wait(timeout)
        finally:
            self._followers.remove(changed)
