"""Calling the user back.

Role: what `add_done_callback` was given, called one after the other by the background thread. Owner: `engine.Engine`.

Invariants
    C1  A callback is called by the background thread; by whoever adds it only if that thread has ended.
    C2  Nobody waits for a callback without limit: it may want a lock that the waiting thread holds.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable

#: A caller that leaves with its result gives callbacks that are due at most this long.
_PATIENCE_S = 0.02


class Callbacks:
    """Callbacks that are due. `add` is safe from any thread."""

    def __init__(self, nudge: Callable[[], None]) -> None:
        self._nudge = nudge  # wakes the background thread
        self._due: deque[Callable[[], None]] = deque()
        self._done = threading.Event()  # set when none is due
        self._late = False
        self._ended = False

    def __bool__(self) -> bool:
        return bool(self._due)

    def add(self, callback: Callable[[], None]) -> None:
        """Have `callback` called soon."""
        self._done.clear()
        self._due.append(callback)
        self._nudge()
        if self._ended:
            self.run()

    def run(self) -> None:
        """Call what is due. The background thread."""
        while self._due:
            with contextlib.suppress(IndexError):  # two threads may be at it in the end
                self._due.popleft()()
        self._done.set()
        self._late = False

    def end(self) -> None:
        """Call what is due; from now on whoever adds one calls it. The background thread, last."""
        self._ended = True
        self.run()

    def give_time(self) -> None:
        """Let callbacks run before a busy caller goes on, so that they do not lag behind its results. Not the background thread.

        After one case that took too long nobody waits until the background thread has caught up (C2).
        """
        if not self._late:
            self._late = not self._done.wait(_PATIENCE_S)
